"""What can be wrong with a chat template."""

from __future__ import annotations

from agent.inference.errors import InvalidRequest


class TemplateError(InvalidRequest):
    """A template that cannot be read or executed. ``line`` counts from 1; 0 when unknown."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line


class TemplateLimit(TemplateError):
    """A template that asked for more size, depth or work than one prompt may cost."""

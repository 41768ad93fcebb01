"""How much work one template run may do."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from agent.inference.chat.errors import TemplateLimit


class WorkBudget:
    """Counts down from ``steps``."""

    __slots__ = ("left",)

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Raises TemplateLimit when nothing is left."""
        self.left -= steps
        if self.left < 0:
            raise TemplateLimit("template takes too many steps")


_COMPILE_TIME_STEPS: Final = 100_000
_current: ContextVar[WorkBudget | None] = ContextVar("template_work_budget", default=None)


def current_budget() -> WorkBudget:
    """The budget of the run in progress. Constant folding during compilation has a fresh one."""
    return _current.get() or WorkBudget(_COMPILE_TIME_STEPS)


@contextmanager
def spending(budget: WorkBudget) -> Generator[None]:
    """Make ``budget`` current in this context."""
    token = _current.set(budget)
    try:
        yield
    finally:
        _current.reset(token)

"""What every kind of template is given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.inference.request import JsonValue, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in order, ready to render. ``tools`` are definitions in OpenAI's JSON shape.

    ``think`` None leaves the choice to the template; ``now`` is what templates print as the
    current date.
    """

    messages: tuple[Message, ...]
    now: datetime
    tools: tuple[JsonValue, ...] = ()
    think: bool | None = None
    think_level: str = ""
    bos_text: str = ""
    eos_text: str = ""

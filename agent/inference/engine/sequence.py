"""One sequence and the slot it occupies, as the scheduler sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

SHIFT_FRACTION: Final = 2
"""A full context loses this share (one half) of what follows the kept tokens, as Ollama's does."""


@dataclass(slots=True, eq=False)
class Slot:
    """One of llama.cpp's sequence ids. ``tokens`` are resident in KV, in position order."""

    index: int
    tokens: list[int] = field(default_factory=list[int])
    cells: list[int] = field(default_factory=list[int])
    occupant: ScheduledSequence | None = None
    last_used: int = 0


class ScheduledSequence:
    """The window of tokens a sequence wants in KV and how far it got.

    ``window`` is the prompt plus everything drawn so far, minus what context shifts cut out. The
    next token can be drawn once all of it is resident.
    """

    __slots__ = (
        "arrival",
        "cached",
        "context_limit",
        "id",
        "keep",
        "preempted",
        "shift",
        "slot",
        "started",
        "window",
    )

    def __init__(
        self,
        id: int,  # noqa: A002 - the field's natural name
        window: Sequence[int],
        *,
        context_limit: int,
        keep: int,
        shift: bool,
    ) -> None:
        assert window, "an empty prompt has nothing to predict from"
        self.id = id
        self.window: list[int] = list(window)
        self.context_limit = context_limit
        self.keep = keep
        self.shift = shift
        self.slot: Slot | None = None
        self.arrival = 0
        self.cached = 0
        """Prompt tokens that were found in a cache at first admission."""
        self.started = False
        """At least one token was drawn since the last (re)fill: a decode row."""
        self.preempted = False

    @property
    def resident(self) -> int:
        """Tokens of the window that are in KV."""
        return len(self.slot.tokens) if self.slot is not None else 0

    @property
    def pending(self) -> int:
        """Tokens of the window that still have to be computed."""
        return len(self.window) - self.resident


def cut_window(window: Sequence[int], keep: int, limit: int) -> tuple[int, int] | None:
    """Where a context shift cuts: ``[start, end)`` of ``window``, or None if nothing may go.

    Half of what follows the kept head is dropped, oldest first.
    """
    start = min(keep, max(limit - 2, 0))
    count = (len(window) - start) // SHIFT_FRACTION
    if count <= 0:
        return None
    return start, start + count


def replay_window(
    prompt: Sequence[int], emitted: Sequence[int], *, context_limit: int, keep: int
) -> list[int]:
    """The window an uninterrupted sequence would have after ``emitted``, shifts included."""
    window = list(prompt)
    if len(window) + len(emitted) <= context_limit:
        window.extend(emitted)
        return window
    for token in emitted:
        if len(window) >= context_limit:
            cut = cut_window(window, keep, context_limit)
            if cut is not None:
                del window[cut[0] : cut[1]]
        window.append(token)
    return window

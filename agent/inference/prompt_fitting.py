"""Making a prompt fit its context: which messages go, and which tokens. Pure.

Ollama's rules: a chat loses its oldest messages first; what still does not fit loses its middle,
so that the head that ``num_keep`` protects and the most recent part stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.inference.errors import PromptTooLong

PROMPT_TOO_LONG: Final = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)


def cut_middle(tokens: Sequence[int], *, context: int, keep: int) -> tuple[int, ...]:
    """``tokens`` without enough of its middle to leave about half of the free context.

    ``keep`` tokens stay in front (negative for all that fit). Returns ``tokens`` unchanged when
    at least one answer token fits behind them. Raises PromptTooLong for a context that cannot
    hold two tokens.
    """
    if len(tokens) <= context - 1:
        return tuple(tokens)
    if context < 2:
        raise PromptTooLong(PROMPT_TOO_LONG)
    # One token behind the kept head must remain, or the model would not see the end.
    head = min(context - 2 if keep < 0 else keep, context - 2)
    length = context - max((context - head) // 2, 1)
    return (*tokens[:head], *tokens[len(tokens) - (length - head) :])


class DropSearch:
    """Finds the fewest oldest messages to drop, asking for few token counts.

    Ask ``next_try`` how many messages to drop, count the tokens of what remains and hand the
    count to ``record``; once ``next_try`` gives None, ``best`` is the answer (all of them when
    nothing fits). Counting is what costs, so the second try is a guess from the sizes of the
    messages, and the search then widens around it before it halves.
    """

    def __init__(self, sizes: Sequence[int], *, limit: int) -> None:
        """``sizes`` are characters of the messages that may go, oldest first; ``limit`` the
        tokens that fit."""
        self._sizes = sizes
        self._limit = limit
        self._low = 0
        self._high = len(sizes)
        self._last: int | None = None
        self._stride = 1
        self._fit_seen = False
        self._misfit_seen = False
        self._guess = 0
        self.best = len(sizes)

    def next_try(self) -> int | None:
        """The next number to try; the first is 0, since most prompts fit."""
        if self._low > self._high:
            return None
        if self._last is None:
            return 0
        if self._last == 0:
            return min(max(self._guess, self._low), self._high)
        if self._fit_seen and self._misfit_seen:
            return (self._low + self._high) // 2
        # Still on one side of the answer: stride away from the guess.
        if self._fit_seen:
            return max(self._high + 1 - self._stride, self._low)
        return min(self._low - 1 + self._stride, self._high)

    def record(self, dropped: int, tokens: int) -> None:
        """What came of a try."""
        fits = tokens <= self._limit
        if self._last is None:
            self._guess = self._first_guess(tokens)
        else:
            if self._last != 0:
                self._stride *= 2
            self._fit_seen = self._fit_seen or fits
            self._misfit_seen = self._misfit_seen or not fits
        self._last = dropped
        if fits:
            self.best = dropped
            self._high = dropped - 1
        else:
            self._low = dropped + 1

    def _first_guess(self, tokens: int) -> int:
        excess = tokens - self._limit
        # Tokens are taken to be spread evenly over characters.
        removed = 0.0
        per_character = tokens / max(sum(self._sizes), 1)
        for count, size in enumerate(self._sizes, start=1):
            removed += size * per_character
            if removed >= excess:
                return count
        return len(self._sizes)

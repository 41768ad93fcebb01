"""What must survive a runner so that another one can go on with the same answer. Pure.

The ledger keeps every token drawn and how much text of them was delivered. A new runner is
given both: it re-feeds the tokens and continues, so the reader sees a pause but neither a gap
nor a repeat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from agent.inference.errors import InferenceError
from agent.inference.protocol import Delta

RUNNERS_PER_REQUEST_LIMIT: Final = 2
"""A request that ends this many runners is taken to be the cause and fails."""
IDENTICAL_TOKENS_LIMIT: Final = 30
"""More equal tokens in a row than this end the answer."""


class SequenceBroken(InferenceError):
    """A delta that does not continue exactly where the one before ended."""


@dataclass(slots=True)
class AnswerLedger:
    """The answer so far, over all runners."""

    tokens: list[int] = field(default_factory=list[int])
    characters: int = 0
    """Delivered text in code points."""
    _last_token: int = -1
    _repeats: int = 0

    def accept(self, delta: Delta) -> None:
        """Take in what one step added. Raises SequenceBroken and changes nothing when tokens
        are missing or repeated."""
        if delta.index != len(self.tokens) and (delta.tokens or delta.index > len(self.tokens)):
            raise SequenceBroken(
                f"tokens from position {delta.index} came where {len(self.tokens)} was due"
            )
        self.tokens.extend(delta.tokens)
        self.characters += len(delta.text)
        for token in delta.tokens:
            if token == self._last_token:
                self._repeats += 1
            else:
                self._last_token = token
                self._repeats = 1
            if self._repeats > IDENTICAL_TOKENS_LIMIT:
                return

    @property
    def stuck(self) -> bool:
        """Whether the model has begun to repeat one token without end."""
        return self._repeats > IDENTICAL_TOKENS_LIMIT


@dataclass(slots=True)
class Stopwatch:
    """Prompt and answer time over several runners, in nanoseconds.

    A runner that finishes reports its own times; for one that died they are what was observed
    from here: until its first delta, and from there to its last.
    """

    prompt_ns: int = 0
    eval_ns: int = 0
    _started_ns: int | None = None
    _first_ns: int | None = None
    _last_ns: int | None = None

    def start(self, now_ns: int) -> None:
        """A runner was given the sequence."""
        self._started_ns, self._first_ns, self._last_ns = now_ns, None, None

    def observe(self, now_ns: int) -> None:
        """A delta arrived."""
        if self._first_ns is None:
            self._first_ns = now_ns
        self._last_ns = now_ns

    def stop_observed(self, now_ns: int) -> None:
        """The runner is gone without a report."""
        if self._started_ns is None:
            return
        if self._first_ns is None or self._last_ns is None:
            self.prompt_ns += now_ns - self._started_ns
        else:
            self.prompt_ns += self._first_ns - self._started_ns
            self.eval_ns += self._last_ns - self._first_ns
        self._started_ns = None

    def stop_reported(self, prompt_ns: int, eval_ns: int) -> None:
        """The runner finished and told its own times."""
        self.prompt_ns += prompt_ns
        self.eval_ns += eval_ns
        self._started_ns = None

"""The reading end of one sequence: deltas merged while the reader is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from agent.inference.errors import ClientTooSlow, InferenceError
from agent.inference.protocol import Delta, LogprobRow

STREAM_LIMIT_BYTES: Final = 1 << 20
"""Unread text, tokens and probabilities one sequence may hold."""
_TOKEN_COST_BYTES: Final = 8
_LOGPROB_COST_BYTES: Final = 96


class SequenceGap(Exception):
    """A delta does not start where the one before ended: the runner cannot be trusted."""


class SequenceStream:
    """Buffer between the channel's reader task and the one task that iterates.

    ``accept`` is called by the channel and never blocks; iteration waits until there is news
    and takes all of it as one delta.
    """

    __slots__ = (
        "_cost_bytes", "_error", "_finish", "_first", "_limit_bytes", "_logprobs", "_merged",
        "_next_index", "_on_overflow", "_pending", "_texts", "_tokens", "_wake", "finished",
        "sequence_id",
    )  # fmt: skip

    def __init__(
        self,
        sequence_id: int,
        first_index: int,
        on_overflow: Callable[[SequenceStream], None],
        limit_bytes: int = STREAM_LIMIT_BYTES,
    ) -> None:
        self.sequence_id = sequence_id
        self.finished = False
        """The runner has said its last word about this sequence."""
        self._next_index = first_index
        self._on_overflow = on_overflow
        self._limit_bytes = limit_bytes
        self._pending: Delta | None = None
        self._merged = False
        self._first = first_index
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[LogprobRow] = []
        self._finish: Delta | None = None
        self._cost_bytes = 0
        self._error: InferenceError | None = None
        self._wake: trio.Event | None = None

    def accept(self, delta: Delta) -> None:
        """Add one delta. Raises SequenceGap when tokens are missing or repeated."""
        if delta.tokens:
            if delta.index != self._next_index:
                raise SequenceGap(
                    f"sequence {self.sequence_id} jumped from token {self._next_index} "
                    f"to {delta.index}"
                )
            self._next_index += len(delta.tokens)
        if delta.finish is not None:
            self.finished = True
        if self._error is not None:
            return
        self._cost_bytes += (
            len(delta.text)
            + _TOKEN_COST_BYTES * len(delta.tokens)
            + sum(_LOGPROB_COST_BYTES * (1 + len(row.top)) for row in delta.logprobs)
        )
        if self._pending is None:
            self._pending = delta
        else:
            self._merge(delta)
        if self._cost_bytes > self._limit_bytes:
            self.fail(ClientTooSlow("the answer was not read for too long"))
            self._on_overflow(self)
        elif self._wake is not None:
            self._wake.set()

    def fail(self, error: InferenceError) -> None:
        """End iteration with ``error``. What was received before is still delivered, unless the
        buffer itself overflowed."""
        if self._error is None:
            self._error = error
            if isinstance(error, ClientTooSlow):
                self._clear()
            if self._wake is not None:
                self._wake.set()

    def __aiter__(self) -> SequenceStream:
        return self

    async def __anext__(self) -> Delta:
        """The next merged delta; checks for cancellation even when one is ready."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._pending is None:
            if self._finish is not None:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._wake = trio.Event()
            await self._wake.wait()
            self._wake = None
        delta = self._take()
        if delta.finish is not None:
            self._finish = delta
        return delta

    def _merge(self, delta: Delta) -> None:
        if not self._merged:
            first = self._pending
            if first is None:
                raise AssertionError("there is something to merge with")
            self._merged = True
            self._first = first.index
            self._tokens.extend(first.tokens)
            self._texts.append(first.text)
            self._logprobs.extend(first.logprobs)
        self._tokens.extend(delta.tokens)
        self._texts.append(delta.text)
        self._logprobs.extend(delta.logprobs)
        self._pending = delta

    def _take(self) -> Delta:
        last = self._pending
        if last is None:
            raise AssertionError("there is something to take")
        if self._merged:
            last = Delta(
                sequence_id=self.sequence_id,
                index=self._first,
                tokens=tuple(self._tokens),
                text="".join(self._texts),
                finish=last.finish,
                summary=last.summary,
                logprobs=tuple(self._logprobs),
                reason=last.reason,
            )
        self._clear()
        return last

    def _clear(self) -> None:
        self._pending = None
        self._merged = False
        self._cost_bytes = 0
        self._tokens.clear()
        self._texts.clear()
        self._logprobs.clear()

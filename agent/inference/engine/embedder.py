"""Vectors for batches of inputs, on a context of its own.

Encoders abort the process when an input exceeds the micro batch or the trained positions, so every
limit is checked before llama.cpp sees a batch.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agent.inference.engine.statistics import EngineStatistics
from agent.inference.llama import library
from agent.inference.llama.batch import Batch
from agent.inference.llama.context import Context
from agent.inference.llama.model import Model
from agent.inference.protocol import CallRejected, Embed, Frame, SetThreads, Vectors

Emit = Callable[[Frame], None]
EmbedderCommand = Embed | SetThreads | None


@dataclass(slots=True, eq=False)
class _Call:
    """One ``Embed`` frame and the vectors it has so far."""

    frame: Embed
    vectors: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])


class Embedder:
    """Serves ``Embed`` frames on the thread that calls ``run``; inputs of several waiting calls
    share a batch."""

    def __init__(self, model: Model, context: Context, emit: Emit, *, input_limit: int) -> None:
        self._model = model
        self._context = context
        self._emit = emit
        self._input_limit = input_limit
        self._batch = Batch(context.batch_capacity)
        self._inbox: queue.SimpleQueue[EmbedderCommand] = queue.SimpleQueue()
        self._stopping = False
        self._statistics = EngineStatistics(context.slots)
        is_rank = library.POOLING_NAMES[context.pooling] == "rank"
        self._is_rank = is_rank
        self._dimensions: int = (
            max(1, library.model_n_cls_out(model.handle))
            if is_rank
            else library.model_n_embd_out(model.handle)
        )

    def post(self, command: Embed | SetThreads) -> None:
        """Hand over a command, from any thread."""
        self._inbox.put(command)

    def stop(self) -> None:
        """End ``run`` soon, from any thread."""
        self._stopping = True
        self._context.abort.set()
        self._inbox.put(None)

    def run(self) -> None:
        """Serve until ``stop``."""
        while not self._stopping:
            calls: list[_Call] = []
            self._handle(self._inbox.get(), calls)
            while not self._inbox.empty():
                self._handle(self._inbox.get(), calls)
            if calls:
                self._serve(calls)
                self._report(0)

    def close(self) -> None:
        """Nothing to free: the context and the model belong to the caller."""

    def _handle(self, command: EmbedderCommand, calls: list[_Call]) -> None:
        match command:
            case Embed():
                reason = self._refusal(command)
                if reason:
                    self._emit(CallRejected(command.call_id, reason))
                else:
                    calls.append(_Call(command))
            case SetThreads(threads):
                self._context.set_threads(threads)
            case None:
                pass

    def _refusal(self, frame: Embed) -> str:
        for tokens in frame.inputs:
            if not tokens:
                return "an input has no tokens"
            if len(tokens) > self._input_limit:
                return f"an input of {len(tokens)} tokens is over the limit of {self._input_limit}"
            if any(not 0 <= token < self._model.vocabulary.size for token in tokens):
                return "a token is not in the vocabulary"
        return ""

    def _serve(self, calls: Sequence[_Call]) -> None:
        pending = [(call, tokens) for call in calls for tokens in call.frame.inputs]
        self._report(len(pending))
        while pending and not self._stopping:
            count = self._fitting(pending)
            group, pending = pending[:count], pending[count:]
            code = self._compute(group)
            if code != 0:
                for call in {id(one): one for one, _ in [*group, *pending]}.values():
                    reason = f"llama.cpp could not compute the vectors (code {code})"
                    self._emit(CallRejected(call.frame.call_id, reason))
                return
        for call in calls:
            if len(call.vectors) == len(call.frame.inputs):
                data = b"".join(vector.astype("<f4").tobytes() for vector in call.vectors)
                self._emit(Vectors(call.frame.call_id, self._dimensions, data))

    def _fitting(self, pending: Sequence[tuple[_Call, Sequence[int]]]) -> int:
        rows = 0
        for count, (_, tokens) in enumerate(pending):
            rows += len(tokens)
            if rows > self._context.batch_capacity or count == self._context.slots:
                return count
        return len(pending)

    def _compute(self, group: Sequence[tuple[_Call, Sequence[int]]]) -> int:
        self._context.clear()
        batch = self._batch
        batch.clear()
        for sequence, (_, tokens) in enumerate(group):
            batch.add_run(tokens, 0, sequence, last_output=True)
        batch.want_all_outputs()
        code = self._context.decode(batch)
        if code != 0:
            return code
        for sequence, (call, _) in enumerate(group):
            vector = self._context.pooled(sequence, self._dimensions)
            if vector is None:
                return -1
            call.vectors.append(vector if self._is_rank else _normalised(vector))
        return 0

    def _report(self, waiting: int) -> None:
        busy = 1 if waiting else 0
        self._emit(
            self._statistics.frame(
                busy=busy, waiting=waiting, cells_used=0, cells_cached=0, preemptions=0
            )
        )


def _normalised(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector

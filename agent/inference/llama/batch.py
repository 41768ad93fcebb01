"""A llama_batch over numpy memory, allocated once and filled by slices."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.inference.llama import library


class Batch:
    """Rows of (token, position, sequence, wants output). Not thread safe."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._tokens: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._positions: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._sequence_counts: NDArray[np.int32] = np.ones(capacity, np.int32)
        self._sequences: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._outputs: NDArray[np.int8] = np.zeros(capacity, np.int8)
        first = self._sequences.ctypes.data
        self._sequence_rows: NDArray[np.uint64] = (
            first + 4 * np.arange(capacity, dtype=np.uint64)
        ).astype(np.uint64)
        integers = ctypes.POINTER(ctypes.c_int32)
        self.struct: Any = library.BatchStruct(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(integers),
            embd=None,
            pos=self._positions.ctypes.data_as(integers),
            n_seq_id=self._sequence_counts.ctypes.data_as(integers),
            seq_id=ctypes.cast(self._sequence_rows.ctypes.data, ctypes.POINTER(integers)),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        """Forget all rows."""
        self.size = 0

    def add_token(self, token: int, position: int, sequence: int) -> None:
        """One row that wants its logits: the usual decode row."""
        row = self.size
        assert row < self.capacity, "batch overflow would abort the process"
        self._tokens[row] = token
        self._positions[row] = position
        self._sequences[row] = sequence
        self._outputs[row] = 1
        self.size = row + 1

    def add_run(
        self, tokens: Sequence[int], position: int, sequence: int, *, last_output: bool
    ) -> None:
        """Consecutive rows of one sequence; only the last may want its logits."""
        start, count = self.size, len(tokens)
        end = start + count
        assert end <= self.capacity, "batch overflow would abort the process"
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(position, position + count, dtype=np.int32)
        self._sequences[start:end] = sequence
        self._outputs[start:end] = 0
        if last_output:
            self._outputs[end - 1] = 1
        self.size = end

    def want_all_outputs(self) -> None:
        """Mark every row as output: pooled embeddings need it."""
        self._outputs[: self.size] = 1

    def prepare(self) -> Any:
        """The structure to hand to llama.cpp."""
        self.struct.n_tokens = self.size
        return self.struct

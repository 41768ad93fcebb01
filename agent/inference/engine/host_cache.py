"""Prompt caches moved out of KV into host memory, by least recent use.

Idle cells slow every step of a unified cache, so what a finished request leaves behind is kept
here and put back when a later prompt begins with it. Buffers are reused: writing to fresh pages
costs fifty times more than writing to warm ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.inference.engine.cells import common_prefix

ENTRY_LIMIT: Final = 64
SPARE_LIMIT: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """One sequence's cache: the tokens it covers and llama.cpp's own bytes."""

    tokens: list[int]
    buffer: NDArray[np.uint8]
    size_bytes: int


class HostCache:
    """Bounded by bytes and by entries; both bounds include spare buffers."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: list[Saved] = []
        self._spare: list[NDArray[np.uint8]] = []

    @property
    def used_bytes(self) -> int:
        """Memory held, spare buffers included."""
        return sum(entry.buffer.nbytes for entry in self._entries) + sum(
            buffer.nbytes for buffer in self._spare
        )

    def __len__(self) -> int:
        return len(self._entries)

    def has_warm(self, size_bytes: int) -> bool:
        """Whether a save of this size would find a used buffer."""
        return any(buffer.nbytes >= size_bytes for buffer in self._spare)

    def buffer(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """A buffer to save into, or None if it can never fit. Evicts the least recently used."""
        wanted = size_bytes + size_bytes // 4
        if wanted > self._limit_bytes:
            return None
        for index, spare in enumerate(self._spare):
            if spare.nbytes >= size_bytes:
                return self._spare.pop(index)
        while self._entries and (
            self.used_bytes + wanted > self._limit_bytes or len(self._entries) >= ENTRY_LIMIT
        ):
            dropped = self._entries.pop(0).buffer
            if dropped.nbytes >= size_bytes:
                return dropped
        while self._spare and self.used_bytes + wanted > self._limit_bytes:
            self._spare.pop(0)
        return np.empty(wanted, np.uint8)

    def put(self, tokens: Sequence[int], buffer: NDArray[np.uint8], size_bytes: int) -> None:
        """Keep a saved cache; entries that it extends are superseded."""
        kept = list(tokens)
        for entry in [one for one in self._entries if kept[: len(one.tokens)] == one.tokens]:
            self._entries.remove(entry)
            self.give_back(entry.buffer)
        self._entries.append(Saved(kept, buffer, size_bytes))

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Return a buffer that holds nothing worth keeping."""
        if len(self._spare) < SPARE_LIMIT:
            self._spare.append(buffer)

    def best(self, tokens: Sequence[int]) -> tuple[Saved | None, int]:
        """The entry with the longest common prefix and its length."""
        best: Saved | None = None
        best_length = 0
        for entry in self._entries:
            length = common_prefix(entry.tokens, tokens)
            if length > best_length:
                best, best_length = entry, length
        return best, best_length

    def holds(self, entry: Saved) -> bool:
        """Whether ``entry`` is still there; its buffer is reused once it is not."""
        return any(one is entry for one in self._entries)

    def covers(self, tokens: Sequence[int]) -> bool:
        """Whether an entry already begins with all of ``tokens``."""
        kept = list(tokens)
        return any(entry.tokens[: len(kept)] == kept for entry in self._entries)

    def touch(self, entry: Saved) -> None:
        """Mark as most recently used."""
        self._entries.remove(entry)
        self._entries.append(entry)

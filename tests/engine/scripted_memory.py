"""A model of llama.cpp's KV memory that fails where the real one would misbehave."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agent.inference.engine.schedule import Row


@dataclass(eq=False)
class Cell:
    """One cell: the token at a position, held by one or more slots."""

    token: int
    position: int
    holders: set[int] = field(default_factory=set)


class ScriptedMemory:
    """Unified memory shares cells; split memory copies whole streams only."""

    def __init__(self, capacity: int, slots: int, *, unified: bool = True) -> None:
        self.capacity = capacity
        self.unified = unified
        self.slots: list[list[Cell]] = [[] for _ in range(slots)]
        self.saves = 0
        self.restores = 0

    @property
    def used(self) -> int:
        return len({id(cell) for slot in self.slots for cell in slot})

    def tokens(self, slot: int) -> list[int]:
        cells = self.slots[slot]
        assert [cell.position for cell in cells] == list(range(len(cells))), "positions have gaps"
        return [cell.token for cell in cells]

    def decode(self, rows: list[Row]) -> None:
        order = [row.sequence.slot.index for row in rows if row.sequence.slot]
        assert order == sorted(set(order)), "rows must come in slot order, one run per slot"
        for row in rows:
            assert row.sequence.slot is not None
            slot = self.slots[row.sequence.slot.index]
            assert len(slot) == row.start, "a position gap"
            for token in row.sequence.window[row.start : row.start + row.count]:
                slot.append(Cell(token, len(slot), {row.sequence.slot.index}))
        limit = self.capacity if self.unified else self.capacity // len(self.slots)
        held = self.used if self.unified else max(len(slot) for slot in self.slots)
        assert held <= limit, "the memory is over its capacity"

    def remove(self, slot: int, start: int, end: int) -> bool:
        low = max(start, 0)
        high = len(self.slots[slot]) if end < 0 else end
        kept = []
        for cell in self.slots[slot]:
            if low <= cell.position < high:
                cell.holders.discard(slot)
            else:
                kept.append(cell)
        self.slots[slot] = kept
        return True

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        assert not self.slots[target], "the target of a copy must be empty"
        if not self.unified:
            assert (start, end) == (-1, -1), "a partial copy between streams aborts the process"
            self.slots[target] = [
                Cell(cell.token, cell.position, {target}) for cell in self.slots[source]
            ]
            return
        for cell in self.slots[source]:
            if start <= cell.position < end:
                cell.holders.add(target)
                self.slots[target].append(cell)

    def shift(self, slot: int, start: int, end: int, by: int) -> None:
        for cell in self.slots[slot]:
            if start <= cell.position < end:
                assert cell.holders == {slot}, "shifting a shared cell moves it for both"
                cell.position += by

    def state_size(self, slot: int) -> int:
        return 8 * len(self.slots[slot])

    def save(self, slot: int, buffer: np.ndarray, size_bytes: int) -> bool:
        tokens = np.array([cell.token for cell in self.slots[slot]], np.int64)
        buffer[:size_bytes] = tokens.view(np.uint8)
        self.saves += 1
        return True

    def restore(self, slot: int, buffer: np.ndarray, size_bytes: int) -> bool:
        assert not self.slots[slot], "restoring into a used slot"
        tokens = buffer[:size_bytes].copy().view(np.int64).tolist()
        self.slots[slot] = [Cell(token, position, {slot}) for position, token in enumerate(tokens)]
        self.restores += 1
        return True

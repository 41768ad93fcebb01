"""Which KV cells each slot holds, shared prefixes counted once. Pure bookkeeping.

llama.cpp's unified memory lets sequences share the cells of a common prefix. Admission must know
the true number of cells in use, so every cell has an identity and a reference count here.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class CellLedger:
    """Cells ``0 .. capacity-1`` with reference counts."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._references = array("H", bytes(2 * capacity))
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def free(self) -> int:
        """Cells nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Cells somebody holds, each counted once."""
        return self.capacity - len(self._free)

    def take(self, count: int) -> list[int]:
        """``count`` fresh cells. Running out is a bug of the caller."""
        assert count <= len(self._free), "cells were promised that do not exist"
        if count == 1:
            cell = self._free.pop()
            self._references[cell] = 1
            return [cell]
        split = len(self._free) - count
        cells = self._free[split:]
        del self._free[split:]
        for cell in cells:
            self._references[cell] = 1
        return cells

    def share(self, cells: Sequence[int]) -> None:
        """One more holder for each of ``cells``."""
        references = self._references
        for cell in cells:
            assert references[cell] > 0, "only held cells can be shared"
            references[cell] += 1

    def release(self, cells: Sequence[int]) -> None:
        """One holder less for each of ``cells``."""
        references = self._references
        for cell in cells:
            left = references[cell] - 1
            assert left >= 0, "a cell was released twice"
            references[cell] = left
            if left == 0:
                self._free.append(cell)

    def any_shared(self, cells: Sequence[int]) -> bool:
        """Whether another slot holds any of ``cells`` too."""
        return any(self._references[cell] > 1 for cell in cells)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix. Compares slices first: lists do that in C."""
    limit = min(len(left), len(right))
    start = 0
    stride = 256
    while start < limit:
        end = min(start + stride, limit)
        if left[start:end] != right[start:end]:
            break
        start = end
    else:
        return limit
    end = min(start + stride, limit)
    while end - start > 1:
        middle = (start + end) // 2
        if left[start:middle] == right[start:middle]:
            start = middle
        else:
            end = middle
    return start

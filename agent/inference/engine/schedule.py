"""Decides, step by step, which tokens run and where their cache lives.

Deterministic and free of I/O: KV effects go through the ``KvMemory`` protocol, time is the step
number. The loop around it is *admit, plan, decode, commit*. Rules:

* Decode rows first, one per running sequence; prompt chunks fill the rest of a budget, oldest
  request first, so a long prompt never stalls the others.
* A prompt that begins like something already resident shares or continues that cache; one that
  begins like a prompt being computed right now waits for it.
* Admission reserves room for growth. When KV still runs out, idle caches go first, then the
  youngest sequence is preempted and held back until its window fits again; the oldest is never
  preempted, so there is always progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from agent.inference.engine.cells import CellLedger, common_prefix
from agent.inference.engine.host_cache import HostCache, Saved
from agent.inference.engine.sequence import ScheduledSequence, Slot, cut_window

GROWTH_MARGIN: Final = 32
"""Cells kept free for each running sequence at admission."""
REUSE_MINIMUM: Final = 4
"""Shorter common prefixes are not worth a cache operation."""
SAVE_MINIMUM: Final = 64
"""Shorter caches are not worth moving to host memory."""
FOLLOW_MINIMUM: Final = 64
"""A waiting prompt follows a running one only if it gains at least this many tokens."""


class KvMemory(Protocol):
    """The cache operations a schedule needs; ``agent.inference.llama.context`` is the real one."""

    def remove(self, slot: int, start: int, end: int) -> bool: ...
    def copy(self, source: int, target: int, start: int, end: int) -> None: ...
    def shift(self, slot: int, start: int, end: int, by: int) -> None: ...
    def state_size(self, slot: int) -> int: ...
    def save(self, slot: int, buffer: np.ndarray, size_bytes: int) -> bool: ...
    def restore(self, slot: int, buffer: np.ndarray, size_bytes: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Fixed facts of one context."""

    cells: int
    slots: int
    sequence_cells: int
    unified: bool
    can_shift: bool
    can_rewind: bool
    idle_cells: int


@dataclass(frozen=True, slots=True)
class Row:
    """``count`` tokens of a window from ``start``; ``output`` asks for the last one's logits."""

    sequence: ScheduledSequence
    start: int
    count: int
    output: bool


class Scheduler:
    """State of one context's slots and of the sequences that run or wait."""

    def __init__(
        self,
        layout: KvLayout,
        memory: KvMemory,
        host_cache: HostCache,
        *,
        batch_capacity: int,
        prefill_budget: int,
    ) -> None:
        self.layout = layout
        self._memory = memory
        self._host_cache = host_cache
        self._batch_capacity = batch_capacity
        self._prefill_budget = prefill_budget
        self._ledger = CellLedger(layout.cells)
        self._slots = [Slot(index) for index in range(layout.slots)]
        self._waiting: deque[ScheduledSequence] = deque()
        self._active: list[ScheduledSequence] = []
        self._arrivals = 0
        self._clock = 0
        self.preemptions = 0

    # -- what is going on ----------------------------------------------------------------------

    @property
    def active(self) -> Sequence[ScheduledSequence]:
        """Sequences that hold a slot, by slot."""
        return self._active

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def cells_used(self) -> int:
        """KV cells in use, idle caches included."""
        return self._ledger.used if self.layout.unified else sum(len(s.tokens) for s in self._slots)

    @property
    def cells_idle(self) -> int:
        """Tokens of idle caches, shared prefixes counted for each."""
        return sum(len(slot.tokens) for slot in self._slots if slot.occupant is None)

    # -- coming and going ----------------------------------------------------------------------

    def submit(self, sequence: ScheduledSequence) -> None:
        """Queue a sequence; its window must fit its context limit."""
        assert len(sequence.window) <= sequence.context_limit <= self.layout.sequence_cells
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self._waiting.append(sequence)

    def finish(self, sequence: ScheduledSequence, *, keep_cache: bool = True) -> None:
        """Take a sequence out, running or waiting. Its cache stays for later prompts."""
        slot = sequence.slot
        if slot is None:
            self._waiting.remove(sequence)
            return
        self._vacate(sequence)
        if not keep_cache:
            self._clear(slot)
        elif self.layout.unified and not self._waiting:
            self._trim_idle()

    def rest(self) -> None:
        """Called when nothing runs: idle caches beyond the budget move to host memory."""
        if self.layout.unified:
            self._trim_idle()

    # -- one step ------------------------------------------------------------------------------

    def plan(self) -> list[Row]:
        """Rows of the next batch in slot order; empty when nothing can run.

        Split memory computes rows of one micro batch only for consecutively increasing sequence
        ids, so the order is not cosmetic: unsorted rows double the passes over the weights.
        """
        self._clock += 1
        self._admit()
        if self._all_decode():
            return [Row(one, len(one.window) - 1, 1, output=True) for one in self._active]
        for sequence in list(self._active):
            if sequence.slot is not None and sequence.pending == 1:
                self._shift_if_full(sequence)
        self._make_room()
        decoding = [one for one in self._active if one.started and one.pending == 1]
        budget = self._batch_capacity
        if decoding:
            budget = min(self._batch_capacity, len(decoding) + self._prefill_budget)
        budget -= len(decoding)
        if self.layout.unified:
            budget = min(budget, self._ledger.free - len(decoding))
        rows = [Row(one, one.resident, 1, output=True) for one in decoding]
        filling = [one for one in self._active if not (one.started and one.pending == 1)]
        for sequence in sorted(filling, key=lambda one: one.arrival):
            if budget <= 0:
                break
            count = min(budget, sequence.pending)
            rows.append(Row(sequence, sequence.resident, count, output=count == sequence.pending))
            budget -= count
        rows.sort(key=lambda row: row.sequence.slot.index if row.sequence.slot else 0)
        return rows

    def _all_decode(self) -> bool:
        """Whether every sequence just needs its next token and there is room for all: the usual
        step, which the general rules would plan the same way, only slower."""
        if self.layout.unified and self._ledger.free <= len(self._active):
            return False
        return all(
            one.started
            and one.slot is not None
            and len(one.window) == len(one.slot.tokens) + 1
            and len(one.window) <= one.context_limit
            for one in self._active
        )

    def commit(self, rows: Sequence[Row]) -> None:
        """The batch was computed: its tokens are resident now."""
        for row in rows:
            slot = row.sequence.slot
            assert slot is not None
            assert len(slot.tokens) == row.start
            slot.tokens.extend(row.sequence.window[row.start : row.start + row.count])
            if self.layout.unified:
                slot.cells.extend(self._ledger.take(row.count))
            slot.last_used = self._clock
            if row.output:
                row.sequence.started = True

    def roll_back(self, rows: Sequence[Row]) -> None:
        """The batch was not (wholly) computed: drop whatever part of it reached KV."""
        for row in rows:
            slot = row.sequence.slot
            if slot is not None and not self._memory.remove(slot.index, row.start, -1):
                self._clear(slot)
                row.sequence.started = False

    def append(self, sequence: ScheduledSequence, token: int) -> None:
        """A token was drawn: it joins the window and runs in the next step."""
        sequence.window.append(token)

    def out_of_cells(self) -> bool:
        """llama.cpp found no room although the ledger did. Frees some; False if it cannot."""
        return self._drop_idle() or self._preempt_youngest()

    # -- admission -----------------------------------------------------------------------------

    def _admit(self) -> None:
        if not self._waiting:
            return
        deferred: list[ScheduledSequence] = []
        while self._waiting and len(self._active) < len(self._slots):
            sequence = self._waiting[0]
            if self._follows_running(sequence):
                deferred.append(self._waiting.popleft())
                continue
            if not self._try_admit(sequence):
                break
            self._waiting.popleft()
        self._waiting.extendleft(reversed(deferred))

    def _follows_running(self, sequence: ScheduledSequence) -> bool:
        """Whether a prompt being computed now will soon hold much more of this one's beginning
        than anything resident does."""
        if not self.layout.can_rewind:
            return False
        for leader in self._active:
            if leader.started or leader.pending <= 1:
                continue
            common = common_prefix(leader.window, sequence.window)
            if common - leader.resident < FOLLOW_MINIMUM:
                continue
            if common - self._best_resident(sequence.window)[1] >= FOLLOW_MINIMUM:
                return True
        return False

    def _best_resident(self, window: Sequence[int]) -> tuple[Slot | None, int]:
        """The slot whose cache begins most like ``window``, and how many tokens can be used.

        The last token is always computed anew: its logits are needed.
        """
        best: Slot | None = None
        best_length = 0
        usable = len(window) - 1
        for slot in self._slots:
            if not slot.tokens:
                continue
            length = min(common_prefix(slot.tokens, window), usable)
            if not self.layout.can_rewind and (
                slot.occupant is not None or length < len(slot.tokens)
            ):
                continue
            if length > best_length:
                best, best_length = slot, length
        return (best, best_length) if best_length >= REUSE_MINIMUM else (None, 0)

    def _try_admit(self, sequence: ScheduledSequence) -> bool:
        donor, reused = self._best_resident(sequence.window)
        saved: Saved | None = None
        if self.layout.can_rewind:
            candidate, length = self._host_cache.best(sequence.window)
            length = min(length, len(sequence.window) - 1)
            if candidate is not None and length >= reused + SAVE_MINIMUM:
                saved, donor = candidate, None
        if not self._reserve(sequence, donor, reused, saved):
            return False
        slot = self._choose_slot(donor, reused)
        if donor is not slot:
            self._empty(slot)
            if donor is not None:
                self._share(donor, slot, reused)
        if saved is not None:
            self._restore(slot, saved)
        self._cut(slot, common_prefix(slot.tokens, sequence.window), len(sequence.window) - 1)
        slot.occupant = sequence
        slot.last_used = self._clock
        sequence.slot = slot
        sequence.started = False
        if not sequence.preempted:
            sequence.cached = len(slot.tokens)
        self._active.append(sequence)
        self._active.sort(key=_slot_index)
        return True

    def _reserve(
        self,
        sequence: ScheduledSequence,
        donor: Slot | None,
        reused: int,
        saved: Saved | None,
    ) -> bool:
        """Make the window's cells available, dropping idle caches if need be."""
        if not self.layout.unified:
            return True
        unfilled = sum(one.pending for one in self._active)
        need = len(sequence.window) - reused + unfilled
        if saved is not None:
            need = max(len(saved.tokens), len(sequence.window)) + unfilled
        need += GROWTH_MARGIN * (len(self._active) + 1)
        if sequence.preempted:
            # Held back until the room is really there, or it would be preempted again at once.
            need += GROWTH_MARGIN * (len(self._active) + 1)
        need = min(need, self.layout.cells)
        while self._ledger.free < need and self._drop_idle(but=donor):
            pass
        return self._ledger.free >= need or not self._active

    def _choose_slot(self, donor: Slot | None, reused: int) -> Slot:
        free = [slot for slot in self._slots if slot.occupant is None]
        assert free, "admission starts only with a free slot"
        if donor is not None and donor.occupant is None:
            mostly_used = reused * 2 >= len(donor.tokens)
            if mostly_used or not self.layout.can_rewind or len(free) == 1:
                return donor
        others = [slot for slot in free if slot is not donor]
        if not self.layout.unified:
            # The lowest free slot keeps the active ids contiguous.
            return others[0]
        empty = [slot for slot in others if not slot.tokens]
        return empty[0] if empty else min(others, key=lambda slot: slot.last_used)

    # -- cache operations ----------------------------------------------------------------------

    def _share(self, donor: Slot, target: Slot, count: int) -> None:
        if self.layout.unified:
            self._memory.copy(donor.index, target.index, 0, count)
            target.cells = donor.cells[:count]
            self._ledger.share(target.cells)
            target.tokens = donor.tokens[:count]
            return
        # A partial copy between streams aborts the process: copy all, cut afterwards.
        self._memory.copy(donor.index, target.index, -1, -1)
        target.tokens = list(donor.tokens)

    def _restore(self, slot: Slot, saved: Saved) -> None:
        if not self._host_cache.holds(saved):
            return  # making room evicted it
        if self.layout.unified and self._ledger.free < len(saved.tokens):
            return
        if not self._memory.restore(slot.index, saved.buffer, saved.size_bytes):
            self._memory.remove(slot.index, -1, -1)
            return
        self._host_cache.touch(saved)
        slot.tokens = list(saved.tokens)
        if self.layout.unified:
            slot.cells = self._ledger.take(len(slot.tokens))

    def _cut(self, slot: Slot, common: int, usable: int) -> None:
        """Keep only the first ``min(common, usable)`` tokens of a slot."""
        length = min(common, usable)
        if length >= len(slot.tokens):
            return
        if length < REUSE_MINIMUM or not self._memory.remove(slot.index, length, -1):
            self._clear(slot)
            return
        self._ledger.release(slot.cells[length:])
        del slot.cells[length:]
        del slot.tokens[length:]

    def _clear(self, slot: Slot) -> None:
        self._memory.remove(slot.index, -1, -1)
        self._ledger.release(slot.cells)
        slot.cells = []
        slot.tokens = []

    def _empty(self, slot: Slot) -> None:
        """Clear a slot for a new occupant, saving its cache when that is cheap now."""
        if not slot.tokens:
            return
        size_bytes = self._memory.state_size(slot.index) if self._worth_saving(slot) else 0
        if size_bytes and self._host_cache.has_warm(size_bytes):
            self._save(slot)
        self._clear(slot)

    def _worth_saving(self, slot: Slot) -> bool:
        return (
            self.layout.can_rewind
            and len(slot.tokens) >= SAVE_MINIMUM
            and not self._host_cache.covers(slot.tokens)
        )

    def _save(self, slot: Slot) -> None:
        size_bytes = self._memory.state_size(slot.index)
        buffer = self._host_cache.buffer(size_bytes)
        if buffer is None:
            return
        if self._memory.save(slot.index, buffer, size_bytes):
            self._host_cache.put(slot.tokens, buffer, size_bytes)
        else:
            self._host_cache.give_back(buffer)

    def _trim_idle(self) -> None:
        """Idle cells slow every step: beyond the budget they move to host memory, oldest first."""
        idle = sorted(self._idle_slots(), key=lambda slot: slot.last_used)
        total = sum(len(slot.tokens) for slot in idle)
        for slot in idle:
            if total <= self.layout.idle_cells:
                return
            total -= len(slot.tokens)
            if self._worth_saving(slot):
                self._save(slot)
            self._clear(slot)

    def _drop_idle(self, but: Slot | None = None) -> bool:
        idle = [slot for slot in self._idle_slots() if slot is not but]
        if not idle:
            return False
        self._empty(min(idle, key=lambda slot: slot.last_used))
        return True

    def _idle_slots(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.occupant is None and slot.tokens]

    # -- pressure ------------------------------------------------------------------------------

    def _shift_if_full(self, sequence: ScheduledSequence) -> None:
        """Cut the middle out of a full window. Sequences that may not shift never get here: the
        engine ends them when their window is full."""
        slot = sequence.slot
        assert slot is not None
        if len(sequence.window) <= sequence.context_limit:
            return
        cut = cut_window(slot.tokens, sequence.keep, sequence.context_limit)
        assert cut is not None, "a context limit of at least 4 always leaves something to cut"
        start, end = cut
        is_shared = self.layout.unified and self._ledger.any_shared(slot.cells[end:])
        if self.layout.can_shift and self.layout.can_rewind and not is_shared:
            length = len(slot.tokens)
            self._memory.remove(slot.index, start, end)
            self._memory.shift(slot.index, end, length, start - end)
            self._ledger.release(slot.cells[start:end])
            del slot.cells[start:end]
            del slot.tokens[start:end]
        else:
            # Shifting shared cells would move them for the other sequence as well.
            self._clear(slot)
            sequence.started = False
        del sequence.window[start:end]

    def _make_room(self) -> None:
        """Guarantee one cell for every running sequence's next token."""
        if not self.layout.unified:
            return
        while self._active and self._ledger.free < sum(
            1 for one in self._active if one.started and one.pending == 1
        ):
            if not self._drop_idle() and not self._preempt_youngest():
                return
        if self._active and self._ledger.free == 0 and not self._drop_idle():
            self._preempt_youngest()

    def _preempt_youngest(self) -> bool:
        if len(self._active) <= 1:
            return False
        victim = max(self._active, key=lambda one: one.arrival)
        slot = victim.slot
        assert slot is not None
        self._vacate(victim)
        self._clear(slot)
        victim.preempted = True
        self.preemptions += 1
        self._waiting.appendleft(victim)
        return True

    def _vacate(self, sequence: ScheduledSequence) -> None:
        slot = sequence.slot
        assert slot is not None
        slot.occupant = None
        slot.last_used = self._clock
        sequence.slot = None
        self._active.remove(sequence)


def _slot_index(sequence: ScheduledSequence) -> int:
    assert sequence.slot is not None
    return sequence.slot.index

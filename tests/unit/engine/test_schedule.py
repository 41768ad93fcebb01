"""Single decisions of the scheduler, each in the smallest world that shows it."""

from __future__ import annotations

from dataclasses import replace

from agent.inference.engine.host_cache import HostCache
from agent.inference.engine.schedule import KvLayout, Scheduler
from agent.inference.engine.sequence import ScheduledSequence, replay_window
from tests.engine.scripted_memory import ScriptedMemory

LAYOUT = KvLayout(
    cells=400,
    slots=4,
    sequence_cells=400,
    unified=True,
    can_shift=True,
    can_rewind=True,
    idle_cells=1000,
)
PREFIX = list(range(100, 200))


class Bench:
    """A scheduler on scripted memory; every drawn token is 7."""

    def __init__(self, layout: KvLayout = LAYOUT, host_bytes: int = 0, budget: int = 32) -> None:
        self.layout = layout
        self.memory = ScriptedMemory(layout.cells, layout.slots, unified=layout.unified)
        self.host = HostCache(host_bytes)
        self.scheduler = Scheduler(
            layout, self.memory, self.host, batch_capacity=64, prefill_budget=budget
        )
        self.numbers = 0
        self.drawn = 0

    def submit(self, window: list[int], *, limit: int | None = None) -> ScheduledSequence:
        self.numbers += 1
        sequence = ScheduledSequence(
            self.numbers,
            window,
            context_limit=limit or self.layout.sequence_cells,
            keep=4,
            shift=True,
        )
        self.scheduler.submit(sequence)
        return sequence

    def step(self) -> list[tuple[int, int]]:
        """Run one step; returns (sequence id, rows) pairs."""
        rows = self.scheduler.plan()
        self.memory.decode(rows)
        self.scheduler.commit(rows)
        for row in rows:
            if row.output:
                self.scheduler.append(row.sequence, 7)
                self.drawn += 1
        for sequence in self.scheduler.active:
            assert sequence.slot is not None
            assert self.memory.tokens(sequence.slot.index) == sequence.slot.tokens
        return [(row.sequence.id, row.count) for row in rows]


def test_a_long_prompt_is_chunked_so_that_others_keep_decoding() -> None:
    bench = Bench(budget=10)
    first = bench.submit([1, 2, 3])
    bench.step()
    second = bench.submit(list(range(1000, 1035)))
    steps = [bench.step() for _ in range(4)]
    assert steps == [
        [(first.id, 1), (second.id, 10)],
        [(first.id, 1), (second.id, 10)],
        [(first.id, 1), (second.id, 10)],
        [(first.id, 1), (second.id, 5)],
    ]


def test_a_prompt_that_begins_like_a_running_one_shares_its_cells() -> None:
    bench = Bench()
    bench.submit([*PREFIX, 1])
    bench.step()
    bench.step()
    bench.submit([*PREFIX, 2])
    bench.step()
    assert bench.memory.used == len(PREFIX) + 2 + 1


def test_a_prompt_that_begins_like_one_being_computed_waits_for_it() -> None:
    bench = Bench()
    leader = bench.submit([*PREFIX, 1])
    follower = bench.submit([*PREFIX, 2])
    assert bench.step() == [(leader.id, 64)]
    assert bench.step() == [(leader.id, 37), (follower.id, 27)] or follower.cached == 64
    while not follower.started:
        bench.step()
    assert follower.cached >= 64
    assert bench.memory.used <= len(PREFIX) + 64


def test_cells_shared_with_another_sequence_are_never_shifted() -> None:
    # Shifting moves a cell for every sequence that holds it; the scripted memory refuses that.
    bench = Bench()
    first = bench.submit([*PREFIX, 1], limit=120)
    bench.step()
    bench.step()
    second = bench.submit([*PREFIX, 2], limit=120)
    for _ in range(40):
        bench.step()
    assert len(first.window) < 120
    assert len(second.window) < 120


def test_a_lone_sequence_shifts_in_place() -> None:
    bench = Bench()
    bench.submit([*PREFIX, 1], limit=120)
    bench.step()
    computed = [sum(count for _, count in bench.step()) for _ in range(40)]
    assert max(computed[1:]) == 1, "a shift must not recompute"


def test_split_memory_rows_come_in_slot_order_from_the_lowest_slots() -> None:
    bench = Bench(replace(LAYOUT, unified=False, sequence_cells=100))
    sequences = [bench.submit([number] * 5) for number in range(1, 4)]
    bench.step()
    bench.scheduler.finish(sequences[0], keep_cache=False)
    bench.submit([9] * 5)
    bench.step()
    assert [one.slot.index for one in bench.scheduler.active if one.slot] == [0, 1, 2]


def test_idle_caches_move_to_host_memory_and_come_back() -> None:
    bench = Bench(replace(LAYOUT, idle_cells=0), host_bytes=1 << 20)
    first = bench.submit([*PREFIX, 1])
    bench.step()
    bench.step()
    bench.scheduler.finish(first)
    assert bench.memory.used == 0, "idle cells slow every step of unified memory"
    second = bench.submit([*PREFIX, 2])
    bench.step()
    assert second.cached == len(PREFIX)
    assert bench.memory.restores == 1


def test_preemption_takes_the_youngest_and_holds_it_back() -> None:
    bench = Bench(replace(LAYOUT, cells=200, sequence_cells=200, idle_cells=0))
    old = bench.submit([1] * 60)
    young = bench.submit([2] * 60)
    while not bench.scheduler.preemptions:
        bench.step()
    assert old.slot is not None
    assert young.slot is None
    for _ in range(10):
        bench.step()
    assert young.slot is None, "it would be preempted again at once"
    bench.scheduler.finish(old)
    bench.step()
    assert young.slot is not None


def test_replaying_a_continued_answer_cuts_where_the_first_run_did() -> None:
    bench = Bench()
    prompt = [*PREFIX, 1]
    sequence = bench.submit(prompt, limit=120)
    while bench.drawn < 90:
        bench.step()
    replayed = replay_window(prompt, [7] * bench.drawn, context_limit=120, keep=4)
    assert replayed == sequence.window

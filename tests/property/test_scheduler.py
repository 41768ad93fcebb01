"""The scheduler under random load: nothing starves, nothing overflows, everything ends once."""

from __future__ import annotations

from dataclasses import dataclass, field
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.inference.engine import schedule
from agent.inference.engine.host_cache import HostCache
from agent.inference.engine.schedule import KvLayout, Scheduler
from agent.inference.engine.sequence import ScheduledSequence
from tests.engine.scripted_memory import ScriptedMemory

BATCH = 16
BUDGET = 4


@dataclass
class Load:
    """One request of a random world: a prompt from few shared beginnings, an answer length."""

    prompt: list[int]
    answer: int
    arrives: int
    cancelled_after: int | None
    shift: bool


@dataclass
class World:
    cells: int
    slots: int
    unified: bool
    idle_cells: int
    host_bytes: int
    context_limit: int
    loads: list[Load] = field(default_factory=list)


prefixes = [[1] * 40, [1] * 20 + [2] * 20, [3] * 30, [4, 5, 6, 7] * 5]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    slots = draw(st.integers(1, 5))
    unified = draw(st.booleans())
    cells = draw(st.integers(48, 160)) if unified else slots * draw(st.integers(48, 80))
    world = World(
        cells,
        slots,
        unified,
        draw(st.sampled_from([0, 20, 1000])),
        draw(st.sampled_from([0, 600, 2_000, 1 << 20])),
        draw(st.integers(48, 160)),
    )
    for _ in range(draw(st.integers(1, 10))):
        base = draw(st.sampled_from(prefixes))
        prompt = base[: draw(st.sampled_from([len(base), len(base) - 3, 2]))] + draw(
            st.lists(st.integers(8, 12), min_size=1, max_size=6)
        )
        world.loads.append(
            Load(
                prompt,
                draw(st.integers(1, 90)),
                draw(st.integers(0, 30)),
                draw(st.none() | st.integers(0, 40)),
                draw(st.booleans()),
            )
        )
    return world


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_every_request_ends_exactly_once_within_bounded_steps(world: World) -> None:
    with patch.multiple(schedule, SAVE_MINIMUM=8, FOLLOW_MINIMUM=8, GROWTH_MARGIN=4):
        run_world(world)


def run_world(world: World) -> None:
    memory = ScriptedMemory(world.cells, world.slots, unified=world.unified)
    per_sequence = world.cells if world.unified else world.cells // world.slots
    scheduler = Scheduler(
        KvLayout(
            cells=world.cells,
            slots=world.slots,
            sequence_cells=per_sequence,
            unified=world.unified,
            can_shift=True,
            can_rewind=True,
            idle_cells=world.idle_cells,
        ),
        memory,
        HostCache(world.host_bytes),
        batch_capacity=BATCH,
        prefill_budget=BUDGET,
    )
    running: dict[int, tuple[ScheduledSequence, Load]] = {}
    ended: dict[int, int] = {}
    answered: dict[int, int] = {}
    total = sum(len(load.prompt) + load.answer for load in world.loads)
    step = 0
    while len(ended) < len(world.loads):
        step += 1
        assert step < 60 * total + 100, "a request starves"
        for number, load in enumerate(world.loads):
            if load.arrives == step - 1:
                sequence = ScheduledSequence(
                    number,
                    load.prompt,
                    context_limit=min(world.context_limit, per_sequence),
                    keep=4,
                    shift=load.shift,
                )
                scheduler.submit(sequence)
                running[number] = (sequence, load)
                answered[number] = 0
        for number, (sequence, load) in list(running.items()):
            if load.cancelled_after is not None and load.arrives + load.cancelled_after < step:
                scheduler.finish(sequence)
                ended[number] = ended.get(number, 0) + 1
                del running[number]
        rows = scheduler.plan()
        if not rows:
            assert not scheduler.active
            scheduler.rest()
        decoding = [row for row in rows if row.sequence.started and row.count == 1 and row.output]
        assert sum(row.count for row in rows) <= BATCH
        if decoding:
            assert sum(row.count for row in rows) <= len(decoding) + BUDGET
        memory.decode(rows)
        scheduler.commit(rows)
        for row in rows:
            if not row.output:
                continue
            number = row.sequence.id
            sequence, load = running[number]
            assert sequence.pending == 0, "a token may be drawn only once all is resident"
            answered[number] += 1
            token = 100 + (number * 31 + answered[number]) % 7
            scheduler.append(sequence, token)
            full = not sequence.shift and len(sequence.window) >= sequence.context_limit
            if answered[number] >= load.answer or full:
                scheduler.finish(sequence)
                ended[number] = ended.get(number, 0) + 1
                del running[number]
        for sequence in scheduler.active:
            assert sequence.slot is not None
            resident = memory.tokens(sequence.slot.index)
            assert resident == sequence.slot.tokens
            assert resident == sequence.window[: len(resident)]
        if world.unified:
            assert scheduler.cells_used == memory.used
    assert all(count == 1 for count in ended.values())
    assert scheduler.waiting == 0

"""Random nodes, models and requests against the pool and its pure decisions."""

from __future__ import annotations

import random
from dataclasses import replace

import trio
import trio.testing
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent.inference.admission import (
    CRASH_LIMIT,
    CrashHistory,
    Evict,
    Resident,
    Room,
    Start,
    Wait,
    choose_victims,
    decide_room,
    eviction_order,
    retry_after_s,
)
from agent.inference.devices import ScriptedProbe
from agent.inference.errors import InferenceError, LoadFailed
from agent.inference.inventory import Claim, Reservation, available_bytes, without_runners
from agent.inference.memory import FIT_SHARE, GIB, LoadPlan, LoadWish, Refusal, plan_load
from agent.inference.options import Options
from agent.inference.request import KeepAlive
from agent.inference.supervisor import LoadCrashed
from agent.inference.threads import ThreadClaim, share_threads
from tests.unit.inference.pool_support import (
    MIB,
    ScriptedHost,
    header,
    inventory,
    model,
    open_pool,
    settings,
)

GPU_BYTES = st.lists(st.integers(0, 48).map(lambda n: n * GIB), max_size=3)
HEADERS = st.builds(
    header,
    layers=st.integers(1, 40),
    layer_bytes=st.integers(1, 1024).map(lambda n: n * MIB),
    heads_kv=st.sampled_from([0, 1, 8, 32]),
    train_context=st.sampled_from([0, 512, 8192, 262144]),
)
OPTIONS = st.builds(
    Options,
    num_ctx=st.sampled_from([0, 0, 1, 2048, 100_000]),
    num_batch=st.sampled_from([1, 512, 2048]),
    num_gpu=st.sampled_from([-1, -1, 0, 5, 99]),
    main_gpu=st.sampled_from([None, None, 0]),
)
WISHES = st.builds(LoadWish, header=HEADERS, options=OPTIONS, embedding=st.booleans())
CONFIGS = st.builds(
    settings,
    num_parallel=st.sampled_from([0, 0, 1, 4]),
    sched_spread=st.booleans(),
    kv_cache_type=st.sampled_from(["f16", "q8_0", "f32"]),
    gpu_overhead_bytes=st.sampled_from([0, GIB]),
)


@st.composite
def machines(draw):
    machine = inventory(*draw(GPU_BYTES), ram_bytes=draw(st.integers(1, 128)) * GIB)
    return replace(
        machine,
        host=replace(machine.host, free_bytes=draw(st.integers(0, machine.host.total_bytes))),
    )


@st.composite
def reservations_of(draw, machine):
    return tuple(
        Reservation(
            runner_id=f"r{number}",
            claims=tuple(
                Claim(device.id, draw(st.integers(0, device.total_bytes // 4)))
                for device in machine.devices
            ),
            visible=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 3)))
    )


@given(st.data(), WISHES, CONFIGS, machines())
def test_a_plan_stays_within_four_fifths_of_every_device(data, wish, config, machine):
    held = data.draw(reservations_of(machine))
    outcome = plan_load(wish, config, machine, held)
    if isinstance(outcome, Refusal):
        # Enough in sum may still be too little on each of several GPUs.
        scattered = len(machine.gpus) > 1 and wish.options.num_gpu > 0
        assert outcome.need_bytes > outcome.have_bytes or scattered or outcome.kind == "option"
        if outcome.kind == "memory":
            assert "GiB" in outcome.reason or "MiB" in outcome.reason
        return
    for device in machine.devices:
        taken = sum(c.size_bytes for c in outcome.claims if c.device_id == device.id)
        assert taken <= available_bytes(device, held) * FIT_SHARE
    assert 1 <= outcome.slots <= 16
    assert outcome.cells >= outcome.sequence_context
    assert 0 <= outcome.gpu_layers <= wish.header.block_count + 1
    if outcome.tensor_split:
        assert sum(outcome.tensor_split) == outcome.gpu_layers
    if wish.embedding:
        assert outcome.micro_batch == outcome.batch >= outcome.sequence_context
    else:
        assert outcome.micro_batch <= outcome.batch <= outcome.cells


@given(WISHES, CONFIGS, machines(), st.integers(0, 64).map(lambda n: n * GIB))
def test_more_memory_never_loses_a_model(wish, config, machine, more_bytes):
    grown = replace(
        machine,
        host=replace(
            machine.host,
            total_bytes=machine.host.total_bytes + more_bytes,
            free_bytes=machine.host.free_bytes + more_bytes,
        ),
    )
    before, after = plan_load(wish, config, machine), plan_load(wish, config, grown)
    if isinstance(before, LoadPlan):
        assert isinstance(after, LoadPlan)
        assert after.gpu_layers >= before.gpu_layers or before.gpu_layers == 0


@given(HEADERS, machines(), st.integers(4, 50_000), st.integers(1, 4))
def test_a_larger_context_never_needs_less(summary, machine, context, factor):
    summary = replace(summary, context_length=0)

    def size(num_ctx):
        outcome = plan_load(
            LoadWish(header=summary, options=Options(num_ctx=num_ctx)),
            settings(num_parallel=1, host_cache_bytes=0),
            machine,
        )
        return outcome.size_bytes if isinstance(outcome, LoadPlan) else None

    small, large = size(context), size(context * factor)
    assert large is None or small is not None
    if small is not None and large is not None and not machine.gpus:
        assert large >= small


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 3, 100]), st.booleans()), max_size=12),
)
def test_thread_shares_sum_to_at_most_the_budget(budget, wishes):
    claims = [
        ThreadClaim(runner_id=str(number), cap=cap, on_gpu=on_gpu)
        for number, (cap, on_gpu) in enumerate(wishes)
    ]
    shares = share_threads(budget, claims)
    on_cpu = [claim for claim in claims if not claim.on_gpu]
    total = sum(shares[claim.runner_id] for claim in on_cpu)
    assert set(shares) == {claim.runner_id for claim in claims}
    assert all(share >= 1 for share in shares.values())
    assert total <= max(budget, len(on_cpu))
    assert all(shares[c.runner_id] <= max(1, c.cap) for c in on_cpu if c.cap)
    free = [shares[claim.runner_id] for claim in on_cpu if not claim.cap]
    assert not free or max(free) - min(free) <= 1
    if free:
        assert total == max(budget, len(on_cpu))


RESIDENTS = st.lists(
    st.builds(
        Resident,
        runner_id=st.uuids().map(str),
        busy=st.booleans(),
        stoppable=st.booleans(),
        session_s=st.sampled_from([0.0, 60.0, 300.0, float("inf")]),
        last_used_s=st.floats(0, 1000),
    ),
    max_size=6,
    unique_by=lambda r: r.runner_id,
)


@given(RESIDENTS, st.data())
def test_victims_are_enough_needed_and_never_busy_while_idle_ones_suffice(residents, data):
    sizes = {r.runner_id: data.draw(st.integers(0, 10)) for r in residents}
    need = data.draw(st.integers(0, 40))

    def fits(ended):
        return sum(sizes[runner_id] for runner_id in ended) >= need

    victims = choose_victims(residents, fits)
    stoppable = {r.runner_id for r in residents if r.stoppable}
    if victims is None:
        assert not fits(stoppable)
        return
    assert fits(victims)
    assert victims <= stoppable
    assert all(not fits(victims - {runner_id}) for runner_id in victims)
    idle = frozenset(r.runner_id for r in residents if r.stoppable and not r.busy)
    if fits(idle):
        assert victims <= idle


@given(RESIDENTS)
def test_the_eviction_order_puts_idle_and_short_sessions_first(residents):
    order = eviction_order(residents)
    keys = [(r.busy, r.session_s, r.last_used_s) for r in order]
    assert keys == sorted(keys)


@given(st.data(), WISHES, CONFIGS, machines())
def test_room_is_never_given_twice(data, wish, config, machine):
    held = data.draw(reservations_of(machine))
    ids = {reservation.runner_id for reservation in held}
    room = Room(
        inventory=machine,
        reservations=held,
        residents=tuple(
            Resident(
                runner_id=runner_id,
                busy=data.draw(st.booleans()),
                stoppable=data.draw(st.booleans()),
                session_s=60.0,
                last_used_s=0.0,
            )
            for runner_id in sorted(ids)
        ),
        limit=data.draw(st.integers(1, 4)),
    )
    match decide_room(wish, config, room):
        case Start(plan):
            ended = frozenset[str]()
        case Evict(ended, plan):
            assert ended <= {r.runner_id for r in room.residents if r.stoppable}
        case Wait():
            # Nothing that may be ended would help, but the end of all would.
            assert ids
            return
        case Refusal():
            return
    assert len(ids - ended) < room.limit
    left = without_runners(machine, held, ended)
    for device in left.inventory.devices:
        taken = sum(c.size_bytes for c in plan.claims if c.device_id == device.id)
        assert taken <= available_bytes(device, left.reservations)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=20))
def test_crash_pauses_grow_and_end_in_quarantine(gaps):
    history, now_s, recent = CrashHistory(), 0.0, 0
    for gap_s in gaps:
        now_s = max(now_s + gap_s, history.retry_at_s(now_s))
        assert history.retry_at_s(now_s) <= now_s + 30
        history = history.crashed(now_s)
        recent = len(history.crashes_s)
        assert recent < CRASH_LIMIT
        assert (history.quarantine_left_s(now_s) > 0) or recent > 0


@given(st.integers(0, 10_000), st.integers(0, 64), st.floats(0, 1000))
def test_retry_estimates_stay_in_range_and_grow_with_the_queue(waiting, slots, request_s):
    estimate = retry_after_s(waiting, slots, request_s)
    assert 1 <= estimate <= 60
    assert retry_after_s(waiting + 1, slots, request_s) >= estimate


@st.composite
def requests(draw):
    return [
        (
            draw(st.floats(0, 30)),  # arrival
            draw(st.sampled_from("abcde")),
            draw(st.sampled_from([0, 0, 2048, 8192])),
            draw(st.floats(0, 10)),  # use
            draw(st.sampled_from([0.0, 1.0, 300.0, None])),
            draw(st.sampled_from([None, None, 0.0, 5.0])),  # patience
        )
        for _ in range(draw(st.integers(1, 25)))
    ]


@hypothesis_settings(max_examples=60, deadline=None)
@given(requests(), st.integers(1, 3), st.integers(0, 2**32), st.sampled_from([3, 24, 512]))
def test_every_request_ends_once_and_memory_and_threads_are_never_exceeded(
    plan, limit, seed, max_queue
):
    """Random arrivals, lengths, failures, deaths and impatient callers."""
    rng = random.Random(seed)
    sizes = {name: header(layers=4, layer_bytes=rng.randint(1, 3) * GIB) for name in "abcde"}
    ends: list[str] = []

    async def world():
        host = ScriptedHost()
        host.load_s, host.stop_s = rng.choice([0.0, 2.0]), rng.choice([0.0, 0.5])

        def failing(process, frame):
            throw = rng.randint(0, 9)
            if throw == 0:
                return LoadCrashed("m", "reading weights", "SIGSEGV")
            if throw == 1:
                return LoadFailed("m", "creating context", "failed to allocate")
            return None

        for name in "abcde":
            host.fail(model(name), failing)
        config = settings(max_loaded_models=limit, max_queue=max_queue)
        async with open_pool(host, config=config, probe=ScriptedProbe(inventory())) as (pool, _, _):

            def check():
                assert pool.reserved_bytes("node:cpu") <= 16 * GIB
                live = [p for p in host.processes if not p.stopped]
                assert len(live) <= limit
                computing = [p for p in live if not p.stopping and not p.ended.is_set()]
                threads = sum(p.threads[-1] for p in computing if p.threads)
                assert threads <= max(4, len(computing))

            async def ask(arrival_s, name, num_ctx, use_s, keep_s, patience_s):
                await trio.sleep(arrival_s)
                with trio.move_on_after(float("inf") if patience_s is None else patience_s) as wait:
                    try:
                        async with pool.lease(
                            model(name, summary=sizes[name]),
                            Options(num_ctx=num_ctx),
                            keep_alive=KeepAlive(keep_s),
                        ) as lease:
                            wait.deadline = float("inf")
                            check()
                            assert lease.context_length == (num_ctx or 4096)
                            await trio.sleep(use_s)
                            if rng.random() < 0.1:
                                rng.choice(host.processes).die("SIGKILL")
                            ends.append("served")
                    except InferenceError as error:
                        ends.append(type(error).__name__)
                if wait.cancelled_caught:
                    ends.append("left")
                check()

            with trio.fail_after(10_000):
                async with trio.open_nursery() as nursery:
                    for request in plan:
                        nursery.start_soon(ask, *request)
            assert pool.waiting() == 0

    trio.run(world, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(ends) == len(plan)

"""The pool with scripted runners and a clock of its own."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from agent.inference.devices import ScriptedProbe
from agent.inference.errors import (
    InsufficientMemory,
    InvalidOption,
    LoadFailed,
    LoadStalled,
    NodeStopping,
    QueueFull,
)
from agent.inference.memory import GIB
from agent.inference.options import Options
from agent.inference.request import KeepAlive
from agent.inference.supervisor import LoadCrashed
from agent.telemetry.metrics import Metrics

from .pool_support import MIB, ScriptedHost, header, inventory, model, open_pool, settings

OPTIONS = Options()
FOREVER = KeepAlive(None)


async def _touch(pool, installed, options=OPTIONS, keep_alive=None, **kwargs):
    async with pool.lease(installed, options, keep_alive=keep_alive, **kwargs) as lease:
        return lease


async def test_two_names_with_the_same_weights_share_one_runner(autojump_clock):
    async with open_pool() as (pool, host, _):
        first, second = model("one", weights="w"), model("two", weights="w")
        async with pool.lease(first, OPTIONS) as a, pool.lease(second, OPTIONS) as b:
            assert a.runner is b.runner
            (row,) = pool.running()
            assert row.name == "two:latest"
            assert row.state == "ready"
            assert row.slots_busy == 2
        assert len(host.processes) == 1


async def test_embedding_and_generating_use_runners_of_their_own(autojump_clock):
    async with open_pool() as (pool, host, _):
        await _touch(pool, model("one"))
        await _touch(pool, model("one"), embedding=True)
        assert [p.frame.embedding for p in host.processes] == [False, True]
        assert host.processes[1].frame.slots > 1, "inputs are batched"


async def test_concurrent_callers_wait_on_one_load(autojump_clock):
    async with open_pool() as (pool, host, _):
        host.load_s = 3.0
        leases = []

        async def ask():
            leases.append(await _touch(pool, model()))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert len(host.processes) == 1
        assert {lease.load_ns for lease in leases} == {3_000_000_000}
        assert (await _touch(pool, model())).load_ns == 0


async def test_a_smaller_context_is_served_by_the_larger_runner(autojump_clock):
    async with open_pool() as (pool, host, _):
        await _touch(pool, model(), Options(num_ctx=8192))
        lease = await _touch(pool, model(), Options(num_ctx=2048))
        assert lease.context_length == 2048
        assert (await _touch(pool, model())).context_length == 4096
        assert len(host.processes) == 1


async def test_a_small_context_of_one_caller_does_not_shrink_that_of_others(autojump_clock):
    async with open_pool() as (pool, host, _):
        await _touch(pool, model(), Options(num_ctx=512))
        assert (await _touch(pool, model())).context_length == 4096
        assert (await _touch(pool, model(), Options(num_ctx=512))).context_length == 512
        assert len(host.processes) == 2


async def test_a_larger_context_reloads_once_the_runner_is_idle(autojump_clock):
    async with open_pool() as (pool, host, _), trio.open_nursery() as nursery:
        async with pool.lease(model(), Options(num_ctx=2048)):
            nursery.start_soon(_touch, pool, model(), Options(num_ctx=8192))
            await trio.sleep(10)
            assert len(host.processes) == 1
        await trio.sleep(1)
        assert [p.stopped for p in host.processes] == [True, False]
        assert host.processes[1].frame.sequence_context == 8192


async def test_a_waiting_reload_is_not_starved_by_requests_that_fit_the_old_runner(autojump_clock):
    async with open_pool() as (pool, _, _), trio.open_nursery() as nursery:
        done = trio.Event()

        async def chat():
            while not done.is_set():
                async with pool.lease(model(), Options(num_ctx=2048)):
                    await trio.sleep(1)

        nursery.start_soon(chat)
        await trio.sleep(0.5)
        nursery.start_soon(chat)
        with trio.fail_after(5):
            await _touch(pool, model(), Options(num_ctx=8192))
        done.set()


async def test_threads_are_changed_on_the_live_runner_without_a_reload(autojump_clock):
    async with open_pool() as (pool, host, _):
        await _touch(pool, model())
        await _touch(pool, model(), Options(num_thread=2))
        assert len(host.processes) == 1
        assert host.processes[0].threads == [1, 4, 2]


async def test_threads_of_all_runners_never_exceed_the_budget(autojump_clock):
    async with open_pool() as (pool, host, _):
        names = ["a", "b", "c"]
        for name in names:
            await _touch(pool, model(name))
            live = [p.threads[-1] for p in host.processes if not p.stopped]
            assert sum(live) <= 4
            assert min(live) >= 1
        await pool.stop(model("a"))
        await pool.stop(model("b"))
        await trio.sleep(1)
        assert [p.threads[-1] for p in host.processes if not p.stopped] == [4]


async def test_an_idle_runner_ends_after_its_keep_alive_and_not_before(autojump_clock):
    async with open_pool() as (pool, host, _):
        await _touch(pool, model(), keep_alive=KeepAlive(60))
        await trio.sleep(59)
        assert host.live == ["alpha"]
        await trio.sleep(1.5)
        assert host.live == []
        assert pool.running() == ()


async def test_each_request_restarts_the_keep_alive_with_its_own_value(autojump_clock):
    async with open_pool() as (pool, host, _):
        await _touch(pool, model(), keep_alive=KeepAlive(10))
        await trio.sleep(9)
        await _touch(pool, model(), keep_alive=KeepAlive(100))
        await trio.sleep(99)
        assert host.live == ["alpha"]
        await trio.sleep(2)
        assert host.live == []


async def test_keep_alive_zero_ends_the_runner_once_the_last_lease_is_gone(autojump_clock):
    async with open_pool() as (pool, host, _):
        async with pool.lease(model(), OPTIONS, keep_alive=KeepAlive(0)):
            await trio.sleep(1000)
            assert host.live == ["alpha"]
        await trio.sleep(0.1)
        assert host.live == []


async def test_keep_alive_forever_shows_no_expiry(autojump_clock):
    async with open_pool() as (pool, _, _):
        await _touch(pool, model(), keep_alive=FOREVER)
        await trio.sleep(80_000)
        assert pool.running()[0].expires_at_s is None


async def test_stop_waits_for_the_leases_and_returns_at_once(autojump_clock):
    async with open_pool() as (pool, host, _):
        async with pool.lease(model(), OPTIONS, keep_alive=FOREVER):
            await pool.stop(model())
            await trio.sleep(5)
            assert host.live == ["alpha"]
        await trio.sleep(0.1)
        assert host.live == []


async def test_the_last_waiter_leaving_aborts_the_load(autojump_clock):
    async with open_pool() as (pool, host, _):
        host.gate(model())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_touch, pool, model())
            nursery.start_soon(_touch, pool, model())
            await trio.sleep(1)
            assert len(host.processes) == 1
            nursery.cancel_scope.cancel()
        await trio.sleep(0.1)
        assert host.live == []
        assert pool.reserved_bytes("node:cpu") == 0


async def test_one_waiter_leaving_does_not_abort_the_load_of_the_other(autojump_clock):
    async with open_pool() as (pool, host, _):
        gate = host.gate(model())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_touch, pool, model())
            with trio.move_on_after(1):
                await _touch(pool, model())
            gate.set()
        assert len(host.processes) == 1


async def test_a_stuck_load_of_one_model_delays_no_other(autojump_clock):
    async with open_pool() as (pool, host, _), trio.open_nursery() as nursery:
        host.gate(model("stuck"))
        nursery.start_soon(_touch, pool, model("stuck"))
        await trio.sleep(1)
        with trio.fail_after(0.5):
            await _touch(pool, model("quick"))
        nursery.cancel_scope.cancel()


async def test_a_load_without_progress_fails_for_every_waiter_with_its_phase(autojump_clock):
    async with open_pool(config=settings(load_timeout_s=30)) as (pool, host, _):
        host.gate(model())
        errors = []

        async def ask():
            with pytest.raises(LoadStalled) as caught:
                await _touch(pool, model())
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert trio.current_time() >= 30
        assert [error.phase for error in errors] == ["reading weights"] * 2
        assert errors[0] is not errors[1]


async def test_the_idle_runner_with_the_shortest_session_is_evicted_first(autojump_clock):
    async with open_pool(config=settings(max_loaded_models=2)) as (pool, host, _):
        await _touch(pool, model("long"), keep_alive=KeepAlive(1000))
        await _touch(pool, model("short"), keep_alive=KeepAlive(100))
        await _touch(pool, model("third"), keep_alive=KeepAlive(1000))
        assert host.live == ["long", "third"]
        await _touch(pool, model("fourth"), keep_alive=KeepAlive(1000))
        assert host.live == ["fourth", "third"]


async def test_a_busy_runner_is_waited_for_and_takes_no_more_work_meanwhile(autojump_clock):
    async with open_pool(config=settings(max_loaded_models=1)) as (pool, host, _):
        order = []

        async def ask(name):
            async with pool.lease(model(name), OPTIONS):
                order.append(name)
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "busy")
            await trio.sleep(0.1)
            nursery.start_soon(ask, "next")
            await trio.sleep(0.1)
            nursery.start_soon(ask, "busy")
            await trio.sleep(0.1)
            assert host.live == ["busy"]
        assert order == ["busy", "next", "busy"]


async def test_automatic_limit_is_three_runners_on_a_machine_without_gpus(autojump_clock):
    async with open_pool() as (pool, host, _):
        for name in ("a", "b", "c", "d"):
            await _touch(pool, model(name))
        assert host.live == ["b", "c", "d"]


async def test_a_full_queue_refuses_with_an_estimate(autojump_clock):
    async with open_pool(config=settings(max_queue=2)) as (pool, host, _):
        host.gate(model())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_touch, pool, model())
            nursery.start_soon(_touch, pool, model())
            await trio.sleep(1)
            with pytest.raises(QueueFull) as caught:
                await _touch(pool, model("other"))
            assert (caught.value.waiting, caught.value.limit) == (2, 2)
            assert caught.value.retry_after_s >= 1
            nursery.cancel_scope.cancel()


async def test_requests_beyond_the_slots_count_as_waiting(autojump_clock):
    config = settings(max_queue=1, num_parallel=1)
    async with open_pool(config=config) as (pool, _, _):
        async with pool.lease(model(), OPTIONS), pool.lease(model(), OPTIONS):
            assert pool.waiting() == 1
            assert pool.running()[0].waiting == 1
            with pytest.raises(QueueFull):
                await _touch(pool, model())
        await _touch(pool, model())


async def test_a_model_that_can_never_fit_is_refused_with_need_and_have(autojump_clock):
    big = model("big", summary=header(layers=40, layer_bytes=GIB))
    async with open_pool() as (pool, host, _):
        with pytest.raises(InsufficientMemory, match=r"needs 40\.\d GiB .*; 12\.8 GiB may be used"):
            await _touch(pool, big)
        assert host.processes == []


async def test_memory_decides_eviction_and_is_never_promised_twice(autojump_clock):
    half = header(layers=8, layer_bytes=GIB)
    async with open_pool() as (pool, host, _):
        await _touch(pool, model("first", summary=half))
        assert 8 * GIB < pool.reserved_bytes("node:cpu") <= 16 * GIB
        await _touch(pool, model("second", summary=half))
        assert host.live == ["second"]


async def test_a_large_waiting_load_is_not_overtaken_forever_by_small_ones(autojump_clock):
    large = model("large", summary=header(layers=11, layer_bytes=GIB))
    small = header(layers=2, layer_bytes=GIB)
    async with (
        open_pool(config=settings(max_loaded_models=9)) as (pool, _, _),
        trio.open_nursery() as nursery,
    ):
        done = trio.Event()

        async def chat(name):
            while not done.is_set():
                async with pool.lease(model(name, summary=small), OPTIONS):
                    await trio.sleep(1)

        for name in ("a", "b", "c"):
            nursery.start_soon(chat, name)
            await trio.sleep(0.3)
        with trio.fail_after(20):
            await _touch(pool, large)
        done.set()


async def test_the_measured_size_replaces_the_estimate(autojump_clock):
    host = ScriptedHost()
    host.resident_bytes = 777 * MIB
    async with open_pool(host, config=settings(host_cache_bytes=0)) as (pool, _, _):
        await _touch(pool, model())
        assert pool.running()[0].size_bytes == 777 * MIB
        assert pool.reserved_bytes("node:cpu") == 777 * MIB


async def test_a_load_that_runs_out_of_memory_evicts_the_idle_and_tries_once_more(autojump_clock):
    async with open_pool() as (pool, host, _):
        await _touch(pool, model("idle"))
        tries = []

        def script(process, frame):
            tries.append(host.live)
            if len(tries) == 1:
                return LoadFailed("x", "creating context", "failed to allocate buffer")
            return None

        host.fail(model("new"), script)
        await _touch(pool, model("new"))
        assert tries == [["idle", "new"], ["new"]]


async def test_an_automatic_context_is_lowered_before_anything_is_evicted(autojump_clock):
    probe = ScriptedProbe(inventory(48 * GIB))
    async with open_pool(probe=probe) as (pool, host, _):
        await _touch(pool, model("idle"))
        contexts = []

        def script(process, frame):
            contexts.append(frame.sequence_context)
            if frame.sequence_context > 4096:
                return LoadFailed("x", "creating context", "cudaMalloc failed: out of memory")
            return None

        host.fail(model("new"), script)
        lease = await _touch(pool, model("new"))
        assert contexts == [131072, 32768, 4096]
        assert lease.context_length == 4096
        assert host.live == ["idle", "new"]


async def test_a_context_the_user_set_is_never_lowered(autojump_clock):
    async with open_pool() as (pool, host, _):
        contexts = []

        def script(process, frame):
            contexts.append(frame.sequence_context)
            return LoadFailed("x", "creating context", "failed to allocate buffer")

        host.fail(model(), script)
        with pytest.raises(LoadFailed, match="failed to allocate"):
            await _touch(pool, model(), Options(num_ctx=16384))
        assert contexts == [16384]


async def test_a_failed_load_is_told_to_all_and_the_next_request_tries_anew(autojump_clock):
    async with open_pool() as (pool, host, _):
        host.fail(model(), lambda *_: LoadFailed("x", "reading weights", "bad magic"))
        with pytest.raises(LoadFailed, match="bad magic"):
            await _touch(pool, model())
        host.failures.clear()
        await _touch(pool, model())


async def test_crashes_at_load_back_off_and_end_in_quarantine(autojump_clock):
    async with open_pool() as (pool, host, _):
        host.fail(model(), lambda *_: LoadCrashed("x", "reading weights", "SIGABRT"))
        waits = []
        for _ in range(5):
            before = trio.current_time()
            with pytest.raises(LoadFailed, match="SIGABRT"):
                await _touch(pool, model())
            waits.append(round(trio.current_time() - before))
        assert waits == [0, 0, 1, 2, 4]
        with pytest.raises(LoadFailed, match=r"left alone for 300 s"):
            await _touch(pool, model("alias", weights="alpha"))
        assert len(host.processes) == 5
        await _touch(pool, model("other"))
        await trio.sleep(301)
        host.failures.clear()
        await _touch(pool, model())


async def test_a_runner_that_dies_is_replaced_at_the_next_lease(autojump_clock):
    async with open_pool() as (pool, host, _):
        async with pool.lease(model(), OPTIONS):
            host.processes[0].die("SIGSEGV")
            await trio.testing.wait_all_tasks_blocked()
            assert pool.running() == ()
            async with pool.lease(model(), OPTIONS):
                assert len(host.processes) == 2
        await trio.sleep(1)
        assert host.live == ["alpha"]


async def test_a_dead_runner_is_leased_to_nobody_even_before_its_watcher_runs(autojump_clock):
    async with open_pool() as (pool, host, _), pool.lease(model(), OPTIONS):
        host.processes[0].die("SIGKILL")
        async with pool.lease(model(), OPTIONS) as second:
            assert second.runner is host.processes[1].runner


async def test_a_wrong_main_gpu_is_an_option_error(autojump_clock):
    async with open_pool(probe=ScriptedProbe(inventory(8 * GIB))) as (pool, _, _):
        with pytest.raises(InvalidOption, match="main_gpu 3 does not exist"):
            await _touch(pool, model(), Options(main_gpu=3))


async def test_closing_lets_leases_end_refuses_new_ones_and_stops_all(autojump_clock):
    async with open_pool() as (pool, host, _), trio.open_nursery() as nursery:
        ended = []

        async def hold():
            async with pool.lease(model(), OPTIONS):
                await trio.sleep(5)
            ended.append(trio.current_time())

        nursery.start_soon(hold)
        await trio.sleep(1)
        await pool.close(30)
        assert ended == [pytest.approx(5)]
        assert host.live == []
        with pytest.raises(NodeStopping):
            await _touch(pool, model())


async def test_closing_ends_after_the_grace_period_even_with_leases_held(autojump_clock):
    async with open_pool() as (pool, host, _), pool.lease(model(), OPTIONS):
        await pool.close(2)
        assert trio.current_time() == pytest.approx(2)
        assert host.live == []


async def test_waiters_of_a_closing_pool_are_told(autojump_clock):
    async with open_pool() as (pool, host, _), trio.open_nursery() as nursery:
        host.gate(model())

        async def ask():
            with pytest.raises(NodeStopping):
                await _touch(pool, model())

        nursery.start_soon(ask)
        await trio.sleep(1)
        await pool.close(5)
        assert trio.current_time() == pytest.approx(1)


async def test_metrics_follow_the_runners(autojump_clock):
    metrics = Metrics()

    def value(name, **labels):
        return metrics.registry.get_sample_value(name, labels)

    async with open_pool(metrics=metrics) as (pool, _, _):
        labels = {"runner": "alpha0000000", "model": "alpha:latest"}
        async with pool.lease(model(), OPTIONS, keep_alive=KeepAlive(0)):
            assert value("llamesh_runner_slots_busy", **labels) == 1
            assert value("llamesh_runner_starts_total") == 1
        await trio.sleep(1)
        assert value("llamesh_runner_slots_busy", **labels) is None
        assert value("llamesh_runner_exits_total", cause="stopped") == 1

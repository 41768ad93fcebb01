"""Real child processes: their start, death, end, log and record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

import agent.inference.supervisor as supervisor
from agent.inference.errors import LoadFailed, LoadStalled, RunnerDied
from agent.inference.processes import ProcessHandle, start_mark
from agent.inference.protocol import Generate, LoadModel, Sampling
from agent.inference.supervisor import LoadCrashed, ProcessHost, runner_environment

from .pool_support import settings

CHILD = (sys.executable, str(Path(__file__).with_name("runner_child.py")))
SAMPLING = Sampling(seed=1)


@asynccontextmanager
async def started(home, *, script="model", load=True, **kwargs):
    process = ProcessHost(settings(home), command=CHILD).start("r1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.serve)
        try:
            if load:
                await _load(process, script, **kwargs)
            yield process
        finally:
            with trio.CancelScope(shield=True):
                await process.stop()
            nursery.cancel_scope.cancel()
    assert not psutil.pid_exists(process.pid)
    assert list((home / "runners").iterdir()) == []


async def _load(process, script="model", *, stall_timeout_s=20.0):
    frame = LoadModel(build_id="", model_path=f"/models/{script}")
    return await process.load(
        frame, model="m", stall_timeout_s=stall_timeout_s, on_progress=lambda _: None
    )


async def test_a_runner_loads_answers_and_ends_when_asked(tmp_path):
    async with started(tmp_path) as process:
        assert await process.runner.tokenize("hi") == (104, 105)
        assert await process.runner.detokenize((104, 105)) == "hi"
        process.set_threads(3)
        record = json.loads((tmp_path / "runners" / "r1.json").read_text())
        assert record["pid"] == process.pid
        assert record["started"] == start_mark(process.pid)
    assert process.exit_text == "the runner process exited with status 0"


async def test_killing_the_process_gives_every_waiter_runner_died(tmp_path):
    async with started(tmp_path) as process:
        start = Generate(0, (65,), SAMPLING, -1)
        async with process.runner.generate(start) as stream:
            assert (await anext(stream)).text == "A"
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(RunnerDied):
                await anext(stream)
        with pytest.raises(RunnerDied):
            await process.runner.tokenize("x")
        assert await process.wait_ended()
        assert await process.stop() == "the runner process was ended by SIGKILL"


async def test_an_exit_while_loading_quotes_the_log(tmp_path):
    async with started(tmp_path, load=False) as process:
        with pytest.raises(LoadCrashed) as caught:
            await _load(process, "exit")
        assert caught.value.phase == "reading weights"
        assert "status 3" in caught.value.reason
        assert "tensor 7 is broken" in caught.value.reason


async def test_a_refused_load_is_no_crash(tmp_path):
    async with started(tmp_path, load=False) as process:
        with pytest.raises(LoadFailed, match="too many heads") as caught:
            await _load(process, "reject")
        assert not isinstance(caught.value, LoadCrashed)
        assert caught.value.phase == "creating context"


async def test_a_load_that_hangs_is_told_apart_and_its_process_ended(tmp_path):
    async with started(tmp_path, load=False) as process:
        with pytest.raises(LoadStalled) as caught:
            await _load(process, "stall", stall_timeout_s=2.0)  # its start takes a while too
        assert caught.value.phase == "reading weights"


async def test_a_process_that_ignores_every_request_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "SHUTDOWN_S", 0.1)
    monkeypatch.setattr(supervisor, "TERMINATE_S", 0.1)
    async with started(tmp_path, script="stubborn") as process:
        pass
    assert process.exit_text.endswith("SIGKILL")


async def test_cancelling_the_owner_leaves_no_process(tmp_path):
    pids = []
    with trio.CancelScope() as scope:
        async with started(tmp_path) as process:
            pids.append(process.pid)
            scope.cancel()
            await trio.sleep_forever()
    assert not psutil.pid_exists(pids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
@pytest.mark.parametrize("child_option", [(), ("--without-parent-signal",)])
async def test_runners_end_with_an_agent_that_is_killed(tmp_path, child_option):
    # Without the signal, the end of the socket does it.
    agent = f"""
import sys, trio
from pathlib import Path
from agent.inference.supervisor import ProcessHost
from agent.inference.protocol import LoadModel
from tests.unit.inference.pool_support import settings
async def main():
    host = ProcessHost(settings(Path({str(tmp_path)!r})), command={CHILD + child_option!r})
    process = host.start("r1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.serve)
        await process.load(LoadModel(build_id="", model_path="/m/model"), model="m",
                           stall_timeout_s=20, on_progress=lambda _: None)
        print(process.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    parent = subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert parent.stdout is not None
        pid = int(await trio.to_thread.run_sync(parent.stdout.readline))
        handle = ProcessHandle(pid)
        parent.kill()
        with trio.fail_after(10):
            await handle.wait()
        handle.close()
    finally:
        parent.kill()
        parent.communicate()


async def test_runners_are_never_spawned_from_a_worker_thread(tmp_path):
    # The parent-death signal would fire as soon as that thread ended.
    assert threading.current_thread() is threading.main_thread()
    host = ProcessHost(settings(tmp_path), command=CHILD)
    with pytest.raises(AssertionError):
        await trio.to_thread.run_sync(host.start, "r1")


async def test_openmp_is_told_to_wait_gently_before_the_process_starts(tmp_path):
    async with started(tmp_path):
        pass
    text = (tmp_path / "logs" / "runner-r1.log").read_text()
    assert "'GOMP_SPINCOUNT': '1000'" in text
    assert "'GGML_NO_BACKTRACE': '1'" in text


def test_passive_waiting_is_set_only_when_asked_for(tmp_path):
    passive = runner_environment(settings(tmp_path, cpu_wait="passive"), {})
    spinning = runner_environment(settings(tmp_path), {"OMP_WAIT_POLICY": "active"})
    assert passive["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in spinning
    assert spinning["OMP_NUM_THREADS"] == "4"


def test_the_package_is_found_from_a_checkout(tmp_path):
    environment = runner_environment(settings(tmp_path), {"PYTHONPATH": "/elsewhere"})
    first, second = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(first) / "agent" / "inference" / "protocol.py").is_file()
    assert second == "/elsewhere"


async def test_a_process_that_cannot_be_started_leaves_nothing_open(tmp_path):
    host = ProcessHost(settings(tmp_path), command=("/nowhere/python",))
    with pytest.raises(OSError, match="nowhere"):
        host.start("r1")

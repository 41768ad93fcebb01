"""The sweep ends what was recorded and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from agent.inference.orphans import RunnerRecord, end_orphans, write_record
from agent.inference.processes import ProcessHandle, start_mark

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


@contextmanager
def process(code=SLEEPER):
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def record(directory, pid, started, runner_id="r1"):
    write_record(
        directory,
        RunnerRecord(runner_id=runner_id, pid=pid, started=started, agent_pid=1),
    )


async def test_a_recorded_process_is_ended_and_its_record_removed(tmp_path):
    with process() as child:
        record(tmp_path, child.pid, start_mark(child.pid))
        (ended,) = await end_orphans(tmp_path)
        assert (ended.runner_id, ended.pid) == ("r1", child.pid)
        assert child.wait(5) == -15
        assert list(tmp_path.iterdir()) == []


async def test_one_that_ignores_the_request_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.inference.orphans.TERMINATE_S", 0.1)
    with process(STUBBORN) as child:
        record(tmp_path, child.pid, start_mark(child.pid))
        assert len(await end_orphans(tmp_path)) == 1
        assert child.wait(5) == -9


async def test_a_process_that_only_has_the_same_pid_is_left_alone(tmp_path):
    with process() as child:
        record(tmp_path, child.pid, "another start")
        assert await end_orphans(tmp_path) == ()
        assert child.poll() is None
        assert list(tmp_path.iterdir()) == []


async def test_a_process_that_is_gone_is_no_orphan(tmp_path):
    with process() as child:
        started = start_mark(child.pid)
    record(tmp_path, child.pid, started)
    assert await end_orphans(tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"pid": 1}',
        b'{"version": 1, "runner_id": "r", "pid": 1, "started": "x", "agent_pid": 1}',
        b'{"version": 1, "runner_id": "r", "pid": -1, "started": "x", "agent_pid": 1}',
        b'{"version": 9, "runner_id": "r", "pid": 5, "started": "x", "agent_pid": 1}',
    ],
)  # fmt: skip
async def test_a_damaged_record_ends_nothing_and_does_not_stop_the_sweep(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with process() as child:
        record(tmp_path, child.pid, start_mark(child.pid))
        assert len(await end_orphans(tmp_path)) == 1
        assert list(tmp_path.iterdir()) == []


async def test_a_missing_directory_is_no_error(tmp_path):
    assert await end_orphans(tmp_path / "none") == ()


def test_a_start_mark_tells_processes_apart_and_knows_the_dead():
    with process() as one, process() as two:
        assert start_mark(one.pid) == start_mark(one.pid)
        assert start_mark(os.getpid()) != start_mark(one.pid)
        two.kill()
        two.wait()
        assert start_mark(two.pid) is None
        with pytest.raises(ProcessLookupError):
            ProcessHandle(two.pid)

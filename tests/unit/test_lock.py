"""One agent per home directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.lock import LOCK_FILE, AlreadyRunning, agent_lock

_HOLDER = """
import sys, time
from pathlib import Path
from agent.lock import agent_lock
with agent_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_holder_is_named_to_the_second(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with agent_lock(home):
        assert (home / LOCK_FILE).read_text() == f"{os.getpid()}\n"
        assert home.stat().st_mode & 0o777 == 0o700
        with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}") as caught, agent_lock(home):
            pytest.fail("two holders")
        assert caught.value.pid == os.getpid()
    with agent_lock(home):
        pass


def test_an_unreadable_pid_is_no_obstacle(tmp_path: Path) -> None:
    with agent_lock(tmp_path):
        (tmp_path / LOCK_FILE).write_text("nonsense")
        with pytest.raises(AlreadyRunning, match="another agent"), agent_lock(tmp_path):
            pytest.fail("two holders")


def test_a_longer_pid_before_leaves_no_digits(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("99999999999\n")
    with agent_lock(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning) as caught, agent_lock(tmp_path):
            pytest.fail("two holders")
        assert caught.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    with agent_lock(tmp_path):
        pass


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    with agent_lock(tmp_path):
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
        )
    try:
        with agent_lock(tmp_path):
            pass
    finally:
        child.communicate(b"\n", timeout=10)

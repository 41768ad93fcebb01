"""One agent per home directory: an advisory lock with the holder's pid in it.

The lock is the kernel's (``flock``), so it ends with the process however that ends; the file
stays, and its content is only for people to read.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOCK_FILE: Final = "agent.lock"


@dataclass
class AlreadyRunning(Exception):
    """Another agent holds this home directory. ``pid`` is ``None`` if it was not readable."""

    home: Path
    pid: int | None

    def __str__(self) -> str:
        who = "another agent" if self.pid is None else f"the agent with pid {self.pid}"
        return (
            f"{self.home} is in use by {who}; stop it first, or give this node a directory of "
            "its own with LLAMESH_HOME or --home"
        )


@contextmanager
def agent_lock(home: Path) -> Generator[None]:
    """Hold ``home`` for this process while inside; creates the directory, closed to others.

    Raises AlreadyRunning without waiting, or OSError when the directory cannot be written.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(home, _pid_in(descriptor)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # A child being spawned right now may share the descriptor until its exec: closing alone
        # would leave the lock with it for that moment.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _pid_in(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None

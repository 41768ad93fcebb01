"""Processes seen from outside: identity that survives reuse of a pid, and waiting for an end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

import psutil
import trio

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD: Final = 19
"""``starttime`` among the fields of ``/proc/PID/stat`` after the command name."""
_POLL_S: Final = 0.05


def start_mark(pid: int) -> str | None:
    """When ``pid`` was started, as text that no other process with this pid ever has; ``None``
    when there is no such process or it has already ended and waits to be reaped.

    On Linux it is the boot and the kernel's tick count, which clock changes do not move.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            boot = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return None
        return f"{boot}:{fields[_START_FIELD]}"
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time():.2f}"
    except psutil.Error:
        return None


class ProcessHandle:
    """A claim on one process: signals and waits never reach another that got its pid.

    Linux's pidfd does this; elsewhere the pid is polled, and is safe as long as the process is
    our own unreaped child.
    """

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self.pid = pid
        self._fd: int | None = os.pidfd_open(pid) if sys.platform == "linux" else None
        if self._fd is not None:
            os.set_inheritable(self._fd, False)

    def close(self) -> None:
        """Release the handle; idempotent."""
        if self._fd is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process; one that has ended is left alone."""
        try:
            if sys.platform == "linux" and self._fd is not None:
                signal.pidfd_send_signal(self._fd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return

    async def wait(self) -> None:
        """Return once the process has ended, reaped or not."""
        if self._fd is not None:
            # One task may wait on one descriptor, so every waiter brings its own.
            fd = os.dup(self._fd)
            try:
                await trio.lowlevel.wait_readable(fd)
            finally:
                trio.lowlevel.notify_closing(fd)
                os.close(fd)
            return
        while start_mark(self.pid) is not None:  # noqa: ASYNC110 - no event tells of it here
            await trio.sleep(_POLL_S)

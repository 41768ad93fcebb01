"""What the machine and this process use, measured off the event loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import psutil
import trio

FRESH_S: Final = 1.0
"""A measurement younger than this is given again."""
WINDOW_S: Final = 0.1
"""How long rates are measured when there is no earlier reading to compare with."""
_STALE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUsage:
    """Fractions from 0 to 1, rates in bytes per second, sizes in bytes."""

    cpu: float
    memory: float
    network_bytes_per_s: float
    process_cpu_seconds: float
    process_resident_bytes: int


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    busy_s: float
    total_s: float
    network_bytes: int


class HostMeter:
    """Measures on demand; concurrent callers share one measurement."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._reading: _Reading | None = None
        self._usage: HostUsage | None = None
        self._process = psutil.Process()

    async def usage(self) -> HostUsage:
        """Usage since the last measurement, or over a short window if that is long ago."""
        async with self._lock:
            now_s = time.monotonic()
            if (
                self._usage is not None
                and self._reading is not None
                and now_s - self._reading.at_s < FRESH_S
            ):
                return self._usage
            self._usage = await trio.to_thread.run_sync(self._measure)
            return self._usage

    def _measure(self) -> HostUsage:
        before = self._reading
        if before is None or time.monotonic() - before.at_s > _STALE_S:
            before = _read()
            time.sleep(WINDOW_S)
        after = _read()
        self._reading = after
        total_s = after.total_s - before.total_s
        elapsed_s = after.at_s - before.at_s
        with self._process.oneshot():
            times = self._process.cpu_times()
            resident = self._process.memory_info().rss
        return HostUsage(
            cpu=min(max((after.busy_s - before.busy_s) / total_s, 0.0), 1.0) if total_s else 0.0,
            memory=psutil.virtual_memory().percent / 100,
            network_bytes_per_s=max(after.network_bytes - before.network_bytes, 0) / elapsed_s,
            process_cpu_seconds=times.user + times.system,
            process_resident_bytes=resident,
        )


def _read() -> _Reading:
    times = psutil.cpu_times()
    total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    network = psutil.net_io_counters()
    return _Reading(
        at_s=time.monotonic(),
        busy_s=total_s - idle_s,
        total_s=total_s,
        network_bytes=network.bytes_sent + network.bytes_recv if network else 0,
    )

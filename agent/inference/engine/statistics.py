"""Counters of an engine and the frame they are reported in."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.inference.engine.schedule import Row
from agent.inference.protocol import Statistics

REPORT_INTERVAL_NS: Final = 500_000_000


def resident_bytes() -> int:
    """Resident memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        # No /proc (macOS): the peak is the closest thing the standard library offers.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()


class EngineStatistics:
    """Counts what happened; nothing here is estimated."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.steps = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.cancelled = 0
        self.decode_ns = 0
        self.sample_ns = 0
        self._reported_ns = time.perf_counter_ns()
        self._reported_tokens = 0

    def step(self, rows: Sequence[Row], decode_ns: int, sample_ns: int) -> None:
        """One decoded batch."""
        assert rows
        self.steps += 1
        self.decode_ns += decode_ns
        self.sample_ns += sample_ns

    def admitted(self, prompt_tokens: int, cached_tokens: int) -> None:
        """One sequence got its slot for the first time."""
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens

    def due(self) -> bool:
        """Whether the last report is old enough for another."""
        return time.perf_counter_ns() - self._reported_ns >= REPORT_INTERVAL_NS

    def frame(
        self, *, busy: int, waiting: int, cells_used: int, cells_cached: int, preemptions: int
    ) -> Statistics:
        """The report, and the start of a new interval."""
        now_ns = time.perf_counter_ns()
        elapsed_s = max((now_ns - self._reported_ns) / 1e9, 1e-9)
        rate = (self.completion_tokens - self._reported_tokens) / elapsed_s
        self._reported_ns = now_ns
        self._reported_tokens = self.completion_tokens
        return Statistics(
            slots_busy=busy,
            waiting=waiting,
            cells_used=cells_used,
            cells_cached=cells_cached,
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            preemptions=preemptions,
            cancelled=self.cancelled,
            decode_ns=self.decode_ns,
            sample_ns=self.sample_ns,
            tokens_per_s=rate,
            resident_bytes=resident_bytes(),
        )

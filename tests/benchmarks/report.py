"""Verdicts and tables from measured rounds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tests.benchmarks.statistics import Bar, Interval, differences, interval, ratios, reached


class Round(msgspec.Struct, frozen=True):
    """One side's round as it is kept in the results file. Seconds."""

    tokens: int
    wall_s: float
    first_s: tuple[float, ...]
    cpu_s: float
    agent_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.wall_s

    @property
    def middle_first_s(self) -> float:
        ordered = sorted(self.first_s)
        return ordered[len(ordered) // 2]


class CellResult(msgspec.Struct, frozen=True):
    """Rounds of one cell by side, with its bars as (direction, value)."""

    name: str
    sides: dict[str, tuple[Round, ...]]
    bars: dict[str, tuple[str, float]] = {}


class Results(msgspec.Struct, frozen=True):
    """Everything one run measured."""

    command: str
    started: str
    machine: dict[str, str]
    settings: dict[str, str]
    cells: tuple[CellResult, ...] = ()
    added_ms: dict[str, tuple[float, ...]] = {}
    """Milliseconds of whole one-token requests by side, in rounds."""
    start_s: dict[str, tuple[float, ...]] = {}
    """Seconds from start of the process until something is there."""
    idle: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the report."""

    what: str
    measured: Interval
    bar: Bar

    @property
    def reached(self) -> bool:
        return reached(self.measured, self.bar)


ADDED_BAR_MS = Bar("at most", 3.0)
START_BAR_S = Bar("at most", 2.0)
IDLE_MEMORY_BAR_MB = Bar("at most", 150.0)
IDLE_CPU_BAR_PERCENT = Bar("at most", 2.0)


def cell_verdicts(cell: CellResult, theirs: str = "llama-server") -> list[Verdict]:
    """Throughput and first-token ratios of our sides against ``theirs``."""
    verdicts: list[Verdict] = []
    base = cell.sides.get(theirs)
    if base is None:
        return verdicts
    for side, rounds in cell.sides.items():
        if side == theirs:
            continue
        rates = ratios([one.rate for one in rounds], [one.rate for one in base])
        firsts = ratios(
            [one.middle_first_s for one in rounds], [one.middle_first_s for one in base]
        )
        verdicts += [
            Verdict(f"{cell.name}: {side} tokens/s", interval(rates), _bar(cell, side)),
            Verdict(f"{cell.name}: {side} first token", interval(firsts), _bar(cell, "first")),
        ]
    return verdicts


def verdicts(results: Results) -> list[Verdict]:
    """All verdicts of a run, cells first."""
    found = [verdict for cell in results.cells for verdict in cell_verdicts(cell)]
    if results.added_ms:
        added = differences(results.added_ms["node"], results.added_ms["runner"])
        found.append(Verdict("added per request, ms", interval(added), ADDED_BAR_MS))
    if "first HTTP answer" in results.start_s:
        start = interval(results.start_s["first HTTP answer"])
        found.append(Verdict("start to first HTTP answer, s", start, START_BAR_S))
    if results.idle:
        memory, cpu = results.idle["resident_mb"], results.idle["cpu_percent"]
        found += [
            Verdict("idle agent, MB", Interval(memory, memory, memory, 1), IDLE_MEMORY_BAR_MB),
            Verdict("idle agent, % of a core", Interval(cpu, cpu, cpu, 1), IDLE_CPU_BAR_PERCENT),
        ]
    return found


def markdown(results: Results) -> str:
    """The tables of ``docs/benchmarks.md``."""
    parts = [
        f"Measured {results.started} with `{results.command}`.\n",
        _table(("machine", ""), [list(item) for item in results.machine.items()]),
        _table(("setting", ""), [list(item) for item in results.settings.items()]),
    ]
    if results.cells:
        parts.append(_table(*_rates(results.cells)))
    parts.append(_table(*_verdict_rows(verdicts(results))))
    if results.start_s:
        rows = [[name, str(interval(values))] for name, values in results.start_s.items()]
        parts.append(_table(("from start of the process, s", "median [95 %]"), rows))
    return "\n".join(parts)


def _rates(cells: Sequence[CellResult]) -> tuple[Sequence[str], list[list[str]]]:
    head = ("cell", "side", "tokens/s", "first token, ms", "CPU per token, ms", "agent, ms")
    rows: list[list[str]] = []
    for cell in cells:
        for side, rounds in cell.sides.items():
            tokens = sum(one.tokens for one in rounds)
            rows.append(
                [
                    cell.name,
                    side,
                    f"{interval([one.rate for one in rounds]).median:.1f}",
                    f"{interval([one.middle_first_s for one in rounds]).median * 1e3:.0f}",
                    f"{sum(one.cpu_s for one in rounds) / tokens * 1e3:.2f}",
                    f"{sum(one.agent_cpu_s for one in rounds) / tokens * 1e3:.2f}",
                ]
            )
    return head, rows


def _verdict_rows(found: Sequence[Verdict]) -> tuple[Sequence[str], list[list[str]]]:
    head = ("what", "median [95 %]", "rounds", "to reach", "reached")
    rows = [
        [
            verdict.what,
            str(verdict.measured),
            str(verdict.measured.rounds),
            str(verdict.bar),
            "yes" if verdict.reached else "**no**",
        ]
        for verdict in found
    ]
    return head, rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _bar(cell: CellResult, side: str) -> Bar:
    bars: Mapping[str, tuple[str, float]] = cell.bars
    direction, value = bars[side]
    return Bar("at most" if direction == "at most" else "at least", value)

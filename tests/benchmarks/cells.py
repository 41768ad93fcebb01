"""What is measured: one cell is one workload, run in rounds that alternate between the sides."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.model import draw_prefix, draw_prompt
from tests.benchmarks.sides import Load, Measured, Side
from tests.benchmarks.statistics import Bar

STREAMS: Final = (1, 4, 8, 16)
SHORT_WORDS: Final = 64
SHORT_NEW: Final = 96
LONG_WORDS: Final = 400
LONG_NEW: Final = 64
PREFIX_TOKENS: Final = 1_000
PREFIX_CLIENTS: Final = 8
PREFIX_OWN_WORDS: Final = 16
SETTLE_S: Final = 0.3
"""Pause before each measurement: OpenMP threads of the side before stop spinning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One workload and what has to be reached in it."""

    name: str
    streams: int
    words: int
    new_tokens: int
    prefix_tokens: int = 0
    runner_bar: Bar = Bar("at least", 1.0)
    node_bar: Bar = Bar("at least", 0.97)
    first_bar: Bar = Bar("at most", 1.0)
    """Of the time to first token, ours over theirs."""

    def load(self, rng: random.Random) -> Load:
        """Prompts nobody has seen before, the same for all sides of a round."""
        prefix = draw_prefix(rng, self.prefix_tokens) + " " if self.prefix_tokens else ""
        prompts = tuple(prefix + draw_prompt(rng, self.words) for _ in range(self.streams))
        return Load(prompts, self.new_tokens, rng.randrange(1 << 30))


CELLS: Final = (
    *(
        Cell(name=f"short-{streams}", streams=streams, words=SHORT_WORDS, new_tokens=SHORT_NEW)
        for streams in STREAMS
    ),
    *(
        Cell(name=f"long-{streams}", streams=streams, words=LONG_WORDS, new_tokens=LONG_NEW)
        for streams in STREAMS
    ),
    Cell(
        name="shared-prefix",
        streams=PREFIX_CLIENTS,
        words=PREFIX_OWN_WORDS,
        new_tokens=LONG_NEW,
        prefix_tokens=PREFIX_TOKENS,
        runner_bar=Bar("at least", 1.3),
        node_bar=Bar("at least", 1.3),
    ),
)


def order_of(sides: int, round_number: int) -> tuple[int, ...]:
    """Who goes when: forwards, then backwards, so that a drift of the machine hits all."""
    forwards = tuple(range(sides))
    return forwards if round_number % 2 == 0 else forwards[::-1]


def run_cell(
    cell: Cell,
    sides: Sequence[Side],
    *,
    rounds: int,
    seed: int,
    settle_s: float = SETTLE_S,
    report: Callable[[str], None] = print,
) -> dict[str, list[Measured]]:
    """Measured rounds by side name; entry ``i`` of each list is the same load."""
    results: dict[str, list[Measured]] = {side.name: [] for side in sides}
    for number in range(rounds):
        load = cell.load(random.Random(f"{seed} {cell.name} {number}"))
        for index in order_of(len(sides), number):
            time.sleep(settle_s)
            side = sides[index]
            results[side.name].append(side.run(load))
        line = "  ".join(f"{side.name} {results[side.name][-1].rate:.1f}" for side in sides)
        report(f"{cell.name} round {number + 1} of {rounds}: {line} tokens/s")
    return results

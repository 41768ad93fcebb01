"""Medians, bootstrap intervals and bars. Pure.

The interval is the percentile bootstrap of Efron 1979 ("Bootstrap Methods: Another Look at the
Jackknife") on the median of per-round ratios: rounds are drawn again with replacement, so the
pairing of the two sides inside a round is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

import numpy as np

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 10_000
SEED: Final = 20_250_101


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its confidence interval."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Bar:
    """What has to be reached: at least, or at most, ``value``."""

    direction: Literal["at least", "at most"]
    value: float

    def __str__(self) -> str:
        return f"{self.direction} {self.value:g}"


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Bootstrap interval of the median; deterministic. ``values`` must not be empty."""
    assert values, "there is no median of nothing"
    sample = np.asarray(values, np.float64)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(sample), (RESAMPLES, len(sample)))
    medians = np.median(sample[drawn], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Interval(float(np.median(sample)), float(low), float(high), len(sample))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Round by round, ours over theirs. Raises ValueError for unpaired rounds."""
    return tuple(our / their for our, their in zip(ours, theirs, strict=True))


def differences(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Round by round, ours less theirs. Raises ValueError for unpaired rounds."""
    return tuple(our - their for our, their in zip(ours, theirs, strict=True))


def reached(measured: Interval, bar: Bar) -> bool:
    """True when the interval includes the bar or lies on its good side."""
    if bar.direction == "at least":
        return measured.high >= bar.value
    return measured.low <= bar.value


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(median(values))

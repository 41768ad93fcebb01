"""The arithmetic behind the figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.statistics import Bar, Interval, differences, interval, ratios, reached

finite = st.floats(min_value=0.1, max_value=10)


@given(st.lists(finite, min_size=1, max_size=20))
def test_the_interval_surrounds_the_median_and_stays_within_the_sample(values: list[float]) -> None:
    measured = interval(values)
    assert min(values) <= measured.low <= measured.median <= measured.high <= max(values)
    assert measured.rounds == len(values)


@given(st.lists(finite, min_size=1, max_size=20))
def test_the_same_rounds_give_the_same_interval_in_any_order(values: list[float]) -> None:
    assert interval(values) == interval(values)
    assert interval(values).median == interval(values[::-1]).median


def test_equal_rounds_leave_no_doubt() -> None:
    assert interval([1.5] * 10) == Interval(1.5, 1.5, 1.5, 10)


def test_the_interval_of_a_known_sample() -> None:
    # The chance that the median of 11 draws is the 1st or 2nd of 11 values is under 2.5 %.
    measured = interval([float(value) for value in range(1, 12)])
    assert measured.median == 6
    assert measured.low == 3
    assert measured.high == 9


def test_one_wild_round_does_not_move_the_median() -> None:
    assert interval([1.0] * 9 + [50.0]).median == 1.0


def test_rounds_are_compared_in_pairs() -> None:
    assert ratios([2, 9], [1, 3]) == (2, 3)
    assert differences([2, 9], [1, 3]) == (1, 6)
    with pytest.raises(ValueError, match="longer"):
        ratios([1], [1, 2])


@pytest.mark.parametrize(
    ("low", "high", "bar", "result"),
    [
        (0.95, 1.01, Bar("at least", 1.0), True),
        (1.1, 1.2, Bar("at least", 1.0), True),
        (0.9, 0.99, Bar("at least", 1.0), False),
        (2.0, 3.5, Bar("at most", 3.0), True),
        (1.0, 1.1, Bar("at most", 3.0), True),
        (3.1, 3.5, Bar("at most", 3.0), False),
    ],
)
def test_a_bar_is_reached_when_the_interval_includes_or_exceeds_it(
    low: float, high: float, bar: Bar, result: bool
) -> None:
    assert reached(Interval((low + high) / 2, low, high, 10), bar) is result

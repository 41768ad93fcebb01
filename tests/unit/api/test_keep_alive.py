"""``keep_alive`` values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.request import KeepAlive
from api.errors import ApiError
from api.ollama.keep_alive import FOREVER, parse_duration, parse_keep_alive

UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (0, KeepAlive(0)),
        (0.5, KeepAlive(0.5)),
        (300, KeepAlive(300)),
        (-1, FOREVER),
        (-0.1, FOREVER),
        (10**30, FOREVER),
        (1e300, FOREVER),
        ("0", KeepAlive(0)),
        ("5m", KeepAlive(300)),
        ("1h30m", KeepAlive(5400)),
        ("1.5h", KeepAlive(5400)),
        (".5s", KeepAlive(0.5)),
        ("+10s", KeepAlive(10)),
        ("-1m", FOREVER),
        ("0s", KeepAlive(0)),
    ],
)
def test_numbers_are_seconds_and_text_is_a_duration(value, expected):
    assert parse_keep_alive(value) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "Unsupported type: 'bool'"),
        ([], "Unsupported type: '[]interface {}'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
        ("5", 'time: missing unit in duration "5"'),
        ("1m5", 'time: missing unit in duration "1m5"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("m", 'time: invalid duration "m"'),
        (".s", 'time: invalid duration ".s"'),
        ("1..5s", 'time: invalid duration "1..5s"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
        ("1h 5m", 'time: unknown unit "h " in duration "1h 5m"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
        ('"', 'time: invalid duration "\\""'),
    ],
)
def test_refusals_use_gos_words(value, text):
    with pytest.raises(ApiError) as caught:
        parse_keep_alive(value)
    assert (caught.value.status, str(caught.value)) == (400, text)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS))), min_size=1, max_size=6
    ),
    st.booleans(),
)
def test_a_duration_is_the_sum_of_its_parts(parts, negative):
    text = "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * UNITS[unit] for number, unit in parts) / 1e9
    expected = -total if negative else total
    assert parse_duration(("-" if negative else "") + text) == pytest.approx(expected)


@given(st.text(max_size=40))
def test_any_text_is_a_duration_or_a_refusal(text):
    try:
        outcome = parse_duration(text)
    except ApiError as error:
        outcome = (error.status, error.text[:6])
    assert isinstance(outcome, float) or outcome == (400, "time: ")

"""Times and sizes as clients read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ollama.details import human_size
from api.times import forever_after, rfc3339_local, rfc3339_utc


@given(st.integers(0, 4 * 10**18))
def test_utc_times_keep_every_nanosecond(unix_ns):
    text = rfc3339_utc(unix_ns)
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
    assert int(seconds) * 10**9 + int(fraction) == unix_ns
    assert len(fraction) == 9


def test_local_times_name_their_offset():
    parsed = datetime.fromisoformat(rfc3339_local(1_780_000_000.5))
    assert parsed.tzinfo is not None
    assert parsed.timestamp() == 1_780_000_000.5


def test_forever_is_more_than_two_centuries_ahead():
    years = datetime.fromtimestamp(forever_after(1_790_000_000 * 10**9), UTC).year - 2026
    assert 291 <= years <= 293


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (812, "812B"),
        (1_500, "1.5KB"),
        (45_300_000, "45MB"),
        (3_800_000_000, "3.8GB"),
        (7_000_000_000, "7GB"),
        (2_500_000_000_000, "2.5TB"),
    ],
)
def test_sizes_are_decimal(size, text):
    assert human_size(size) == text

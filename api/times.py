"""Times as Ollama writes them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_FOREVER_NS: Final = (1 << 63) - 1
"""Go's longest duration, about 292 years; an unlimited ``keep_alive`` ends that far ahead."""

_NANOSECONDS: Final = 1_000_000_000


class _Second:
    """The last formatted second: streams ask for the same one many times."""

    __slots__ = ("second", "text")

    def __init__(self) -> None:
        self.second = -1
        self.text = ""


_last = _Second()


def rfc3339_utc(unix_ns: int) -> str:
    """RFC 3339 with nanoseconds, in UTC with ``Z``."""
    second, fraction = divmod(unix_ns, _NANOSECONDS)
    if second != _last.second:
        _last.text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _last.second = second
    return f"{_last.text}.{fraction:09d}Z"


def rfc3339_local(unix_s: float) -> str:
    """RFC 3339 with microseconds and the local offset."""
    return datetime.fromtimestamp(unix_s, UTC).astimezone().isoformat(timespec="microseconds")


def forever_after(now_ns: int) -> float:
    """Unix seconds of an expiry that never comes."""
    return (now_ns + _FOREVER_NS) / _NANOSECONDS

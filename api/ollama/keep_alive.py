"""``keep_alive`` values: numbers of seconds and Go durations. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from agent.inference.request import KeepAlive
from api.errors import bad_request

FOREVER: Final = KeepAlive(None)
_LONGEST_S: Final = ((1 << 63) - 1) / 1e9
_UNIT_S: Final = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART: Final = re.compile(r"([0-9]*\.?[0-9]*)([^0-9.]*)")
_LENGTH_LIMIT: Final = 128


def parse_keep_alive(value: object) -> KeepAlive | None:
    """A request's ``keep_alive``; None when it was not given. Negative means forever.

    Raises ApiError 400 with Go's words.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise bad_request("Unsupported type: 'bool'")
    if isinstance(value, (int, float)):
        return _bounded(float(value) if abs(value) < _LONGEST_S else value)
    if isinstance(value, str):
        return _bounded(parse_duration(value))
    kind = "[]interface {}" if isinstance(value, list) else "map[string]interface {}"
    raise bad_request(f"Unsupported type: '{kind}'")


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as ``1h30m``, ``-1.5s`` or ``0``.

    Raises ApiError 400 with the words of Go's ``time`` package.
    """
    quoted = '"' + text[:_LENGTH_LIMIT].replace("\\", "\\\\").replace('"', '\\"') + '"'
    invalid = bad_request(f"time: invalid duration {quoted}")
    rest = text
    negative = rest.startswith("-")
    if rest[:1] in ("-", "+"):
        rest = rest[1:]
    if rest == "0":
        return 0.0
    if not rest or len(text) > _LENGTH_LIMIT:
        raise invalid
    total = Decimal(0)
    while rest:
        match = _PART.match(rest)
        number = match.group(1) if match is not None else ""
        if match is None or number in ("", "."):
            raise invalid
        unit = match.group(2)
        if not unit:
            if len(rest) > match.end():
                raise invalid
            raise bad_request(f"time: missing unit in duration {quoted}")
        if unit not in _UNIT_S:
            raise bad_request(f'time: unknown unit "{unit}" in duration {quoted}')
        total += Decimal(number) * _UNIT_S[unit]
        rest = rest[match.end() :]
    if total > Decimal(_LONGEST_S):
        raise invalid
    return -float(total) if negative else float(total)


def _bounded(seconds: float) -> KeepAlive:
    if seconds < 0 or seconds >= _LONGEST_S:
        return FOREVER
    return KeepAlive(float(seconds))

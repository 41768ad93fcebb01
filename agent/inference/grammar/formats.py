"""Named string formats as patterns that match nothing but valid values. Pure.

Sources: RFC 3339 (dates and times, without leap seconds), RFC 4122 (UUID), RFC 2673 (IPv4),
RFC 4291 (IPv6 in full), RFC 1123 (host names), RFC 5321 (mailboxes without quoting), RFC 3986
(absolute http and https URIs without percent encoding). ISO 8601 durations as in RFC 3339
appendix A.
"""

from __future__ import annotations

from typing import Final

_YEAR = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP_YEAR = r"(?:(?:0[48]|[2468][048]|[13579][26])00|\d\d(?:0[48]|[2468][048]|[13579][26]))"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_TIME = (
    r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?"
    r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
)
_DAY_TIME = r"T(?:\d{1,4}H(?:\d{1,4}M(?:\d{1,4}S)?)?|\d{1,4}M(?:\d{1,4}S)?|\d{1,4}S)"
_DAYS = r"(?:\d{1,4}Y(?:\d{1,4}M(?:\d{1,4}D)?)?|\d{1,4}M(?:\d{1,4}D)?|\d{1,4}D)"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9]|-[A-Za-z0-9]){0,30}"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"
_PATH = r"A-Za-z0-9._~!$&'()*+,;=:@\-"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"

FORMAT_PATTERNS: Final = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": rf"^P(?:{_DAYS}(?:{_DAY_TIME})?|{_DAY_TIME}|\d{{1,4}}W)$",
    "uuid": r"^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$",
    "ipv4": rf"^(?:{_OCTET}\.){{3}}{_OCTET}$",
    "ipv6": r"^(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}$",
    "hostname": f"^{_HOST}$",
    "uri": (
        rf"^https?://{_HOST}(?::[1-9]\d{{0,4}})?(?:/[{_PATH}]{{0,60}}){{0,10}}"
        rf"(?:\?[{_PATH}/?]{{0,250}})?(?:#[{_PATH}/?]{{0,60}})?$"
    ),
    "email": rf"^{_ATOM}(?:\.{_ATOM}){{0,2}}@{_LABEL}(?:\.{_LABEL}){{1,3}}$",
}
INTEGER_FORMATS: Final = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
NUMBER_FORMATS: Final = frozenset({"float", "double"})
"""They only name a precision; every number has one."""

"""Readers of configuration values: text or TOML in, a checked value out. Pure.

Each reader takes what a user wrote (a string from the environment or a flag, a typed value from
TOML) and returns the value a ``Settings`` field holds, or raises ``BadValue`` with one clause
that says what is allowed.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RawValue = str | int | float | bool | list[str]
Reader = Callable[[RawValue], object]

_TRUE: Final = frozenset({"1", "t", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "f", "false", "no", "off"})
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION_UNITS_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_SIZE: Final = re.compile(r"([0-9]+)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?", re.IGNORECASE)
_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_DURATION_FORM: Final = 'a duration such as "5m", "1h30m" or "90s", or a number of seconds'


class BadValue(ValueError):
    """The value cannot be used; the text says what is allowed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. ``port`` is ``None`` where the text names no port."""

    host: str
    port: int | None


def trim(text: str) -> str:
    """Strip what Ollama strips from an environment value: spaces, then quotes around it."""
    return text.strip().strip("\"'").strip()


def whole_number(minimum: int, maximum: int | None = None) -> Reader:
    """Whole numbers from ``minimum`` to ``maximum``, both included."""
    bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    allowed = f"a whole number {bounds}"

    def read(raw: RawValue) -> int:
        if isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,18}", raw):
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise BadValue(allowed)
        if raw < minimum or (maximum is not None and raw > maximum):
            raise BadValue(allowed)
        return raw

    return read


def boolean(raw: RawValue) -> bool:
    """``true`` or ``false`` and their usual spellings."""
    if isinstance(raw, bool):
        return raw
    text = str(raw).lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise BadValue("true or false (also 1, 0, yes, no, on, off)")


def optional_boolean(raw: RawValue) -> bool | None:
    """A boolean, or ``auto`` for "decide for me"."""
    if isinstance(raw, str) and raw.lower() == "auto":
        return None
    try:
        return boolean(raw)
    except BadValue:
        raise BadValue("true, false or auto") from None


def one_of(*choices: str) -> Reader:
    """One of a few words, in any case."""
    allowed = "one of " + ", ".join(choices)

    def read(raw: RawValue) -> str:
        if not isinstance(raw, str) or raw.lower() not in choices:
            raise BadValue(allowed)
        return raw.lower()

    return read


def flash_attention(raw: RawValue) -> str:
    """``auto``, ``on`` or ``off``; Ollama's boolean spelling is accepted."""
    if isinstance(raw, str) and raw.lower() == "auto":
        return "auto"
    try:
        return "on" if boolean(raw) else "off"
    except BadValue:
        raise BadValue("auto, on or off (also true or false)") from None


def debug_level(raw: RawValue) -> str:
    """Ollama's ``OLLAMA_DEBUG``: 0 is info; 1 and 2 (trace there) are debug."""
    if raw == "2":
        return "debug"
    try:
        return "debug" if boolean(raw) else "info"
    except BadValue:
        raise BadValue("0, 1 or 2 (also true or false)") from None


def duration_s(raw: RawValue) -> float:
    """Seconds, from a number or a Go duration.

    The form is that of Go's ``time.ParseDuration``: an optional sign, then numbers with units.
    """
    if isinstance(raw, (bool, list)):
        raise BadValue(_DURATION_FORM)
    if isinstance(raw, int | float):
        return _finite(float(raw))
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", raw):
        return _finite(float(raw))
    body = raw.lstrip("+-") if raw[:1] in "+-" else raw
    end, total = 0, 0.0
    for part in _DURATION.finditer(body):
        if part.start() != end:
            break
        total += float(part[1]) * _DURATION_UNITS_S[part[2]]
        end = part.end()
    if not body or end != len(body) or len(raw) - len(body) > 1:
        raise BadValue(_DURATION_FORM)
    return _finite(-total if raw.startswith("-") else total)


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise BadValue(_DURATION_FORM)
    return seconds


def keep_alive_s(raw: RawValue) -> float | None:
    """Seconds an idle model stays; anything negative means forever (``None``)."""
    try:
        seconds = duration_s(raw)
    except BadValue:
        raise BadValue(f"{_DURATION_FORM}; negative means forever") from None
    return None if seconds < 0 else seconds


def load_timeout_s(raw: RawValue) -> float:
    """Seconds without progress; zero or negative means no limit (infinity), as in Ollama."""
    try:
        seconds = duration_s(raw)
    except BadValue:
        raise BadValue(f"{_DURATION_FORM}; 0 or negative means no limit") from None
    return math.inf if seconds <= 0 else seconds


def span_s(raw: RawValue) -> float:
    """Seconds, zero or more."""
    allowed = f"{_DURATION_FORM}, not negative"
    try:
        seconds = duration_s(raw)
    except BadValue:
        raise BadValue(allowed) from None
    if seconds < 0:
        raise BadValue(allowed)
    return seconds


def size_bytes(minimum: int) -> Reader:
    """Bytes, as a number or with a unit."""
    allowed = f'bytes, at least {minimum}, as a number or with a unit such as "512MiB" or "2GB"'

    def read(raw: RawValue) -> int:
        found = _SIZE.fullmatch(raw) if isinstance(raw, str) else None
        if found is not None:
            raw = int(found[1]) * _SIZE_UNITS[(found[2] or "").lower()]
        if isinstance(raw, bool) or not isinstance(raw, int) or not minimum <= raw < 2**63:
            raise BadValue(allowed)
        return raw

    return read


def directory(user_home: Path, base: Path) -> Reader:
    """An absolute path; ``~`` is the user's home and relative paths start at ``base``."""

    def read(raw: RawValue) -> Path:
        if not isinstance(raw, str) or not raw or "\0" in raw:
            raise BadValue("the path of a directory")
        if raw == "~" or raw.startswith("~/"):
            return user_home / raw[2:]
        return base / raw

    return read


def node_name(raw: RawValue) -> str:
    """A name for humans and for headers."""
    if not isinstance(raw, str) or not _NODE_NAME.fullmatch(raw):
        raise BadValue(
            "1 to 63 letters, digits, dots, dashes or underscores, starting with a letter or digit"
        )
    return raw


def node_name_from(hostname: str) -> str:
    """A valid node name from the machine's host name."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", hostname).lstrip("._-")[:63]
    return name or "node"


def secret(raw: RawValue) -> str:
    """A token: printable ASCII without spaces, since it travels in a header."""
    if not isinstance(raw, str) or not re.fullmatch(r"[!-~]{8,512}", raw):
        raise BadValue("8 to 512 printable ASCII characters without spaces")
    return raw


def version(raw: RawValue) -> str:
    """A dotted version number."""
    if not isinstance(raw, str) or not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+[-+.0-9A-Za-z]*", raw):
        raise BadValue("a version such as 0.32.15")
    return raw


def origins(raw: RawValue) -> tuple[str, ...]:
    """Allowed CORS origins, comma separated or a list."""
    if isinstance(raw, str):
        raw = raw.split(",")
    if not isinstance(raw, list):
        raise BadValue("origins such as https://app.example, separated by commas, or *")
    return tuple(part for part in (trim(entry) for entry in raw) if part)


def address(raw: RawValue) -> Address:
    """Where to listen, as ``OLLAMA_HOST`` writes it: ``[scheme://]host[:port][/path]``.

    A scheme without a port means that scheme's port; an empty host means every address; IPv6
    may stand bare or in brackets. The path is for clients and dropped.
    """
    allowed = "an address such as 127.0.0.1, 0.0.0.0:8080, [::1]:11434 or http://host:port"
    if not isinstance(raw, str) or not raw:
        raise BadValue(allowed)
    scheme, separator, rest = raw.partition("://")
    if separator and scheme.lower() not in _DEFAULT_PORTS:
        raise BadValue(allowed)
    rest = (rest if separator else raw).partition("/")[0].strip()
    host, port_text = _split_port(rest)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if port_text is not None:
        if not re.fullmatch(r"[0-9]{1,5}", port_text) or int(port_text) > 65535:
            raise BadValue("a port from 0 to 65535 after the colon")
        port: int | None = int(port_text)
    else:
        port = _DEFAULT_PORTS[scheme.lower()] if separator else None
    if not host:
        host = "127.0.0.1" if port_text is None else "0.0.0.0"  # noqa: S104 (needs auth)
    if not _is_host(host):
        raise BadValue(allowed)
    return Address(host, port)


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        return host + bracket, rest[1:] if rest.startswith(":") else (rest or None)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})", text) is not None
    return True


def is_loopback(host: str) -> bool:
    """Whether listening on ``host`` stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"

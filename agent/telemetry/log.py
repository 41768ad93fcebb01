"""Logging: structlog configured once, with the standard library's records routed into it.

One line per event on standard error, as aligned text or JSON. Whatever is bound to structlog's
context variables (the request id) is part of every line. Values under secret-sounding keys and
the admin token itself never appear.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final, Protocol, cast

import structlog

from agent.settings import LogLevel, Settings

HIDDEN: Final = "[hidden]"
_SECRET_KEYS: Final = frozenset(
    {
        "token", "password", "secret", "authorization", "cookie", "api_key", "apikey",
        "credential", "credentials", "private_key", "seed_phrase",
    }
)  # fmt: skip
_SECRET_ENDINGS: Final = tuple("_" + key for key in sorted(_SECRET_KEYS))
_LEVELS: Final[Mapping[LogLevel, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_QUIET: Final = ("asyncio", "hpack", "httpcore", "httpx", "urllib3")
"""Libraries whose own debug and info lines only repeat ours."""

Event = MutableMapping[str, object]


class Output(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


def configure(settings: Settings, output: Output | None = None) -> None:
    """Set up logging for the whole process; calling again replaces it."""
    level = _LEVELS[settings.log_level]
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(),
        _Redaction(settings.admin_token),
        render_json if settings.log_format == "json" else render_text,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Lines(output),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)


class _Lines:
    """Logger factory and logger: writes lines, and survives a reader that went away."""

    def __init__(self, output: Output | None) -> None:
        self._output = output

    def __call__(self, *_: object) -> _Lines:
        return self

    def msg(self, line: str) -> None:
        output = self._output if self._output is not None else sys.stderr
        try:
            output.write(line + "\n")
            output.flush()
        except (OSError, ValueError):
            return  # a closed terminal or pipe must not stop the node

    log = debug = info = warn = warning = msg
    error = critical = exception = fatal = failure = msg


class _ToStructlog(logging.Handler):
    """Hands standard library records to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        level = min(max(record.levelno, logging.DEBUG), logging.CRITICAL) // 10 * 10
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        log = cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())
        # Keyword arguments only, so that a "%" in the text is not taken for a format.
        log.log(level, message, **fields)


class _Redaction:
    """Processor that hides secrets by key and the admin token by value."""

    def __init__(self, admin_token: str | None) -> None:
        self._token = admin_token

    def __call__(self, _logger: object, _method: str, event: Event) -> Event:
        for key, value in event.items():
            name = key.lower().replace("-", "_")
            if name in _SECRET_KEYS or name.endswith(_SECRET_ENDINGS):
                event[key] = HIDDEN
            else:
                event[key] = self._clean(value)
        return event

    def _clean(self, value: object) -> object:
        match value:
            case str():
                return value.replace(self._token, HIDDEN) if self._token else value
            case Mapping():
                pairs = {str(k): v for k, v in cast("Mapping[object, object]", value).items()}
                return self("", "", pairs)
            case list() | tuple():
                return [self._clean(entry) for entry in cast("Sequence[object]", value)]
            case _:
                return value


def render_text(_logger: object, _method: str, event: Event) -> str:
    """``time level event key=value ...``, columns aligned, control characters escaped."""
    time = str(event.pop("timestamp", ""))
    level = str(event.pop("level", ""))
    name = _escaped(str(event.pop("event", "")))
    trace = event.pop("exception", None)
    pairs = " ".join(f"{key}={_value(value)}" for key, value in event.items())
    line = f"{time[:10]} {time[11:23]} {level:<7} {name:<24} {pairs}".rstrip()
    return line if trace is None else f"{line}\n{trace}"


def render_json(_logger: object, _method: str, event: Event) -> str:
    """One JSON object: ``timestamp``, ``level`` and ``event`` first, then the fields."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return json.dumps({**first, **event}, default=str, ensure_ascii=False)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return json.dumps(value, default=str, ensure_ascii=False)
    text = str(value)
    plain = text.isprintable() and text and not any(c in text for c in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return text if text.isprintable() else json.dumps(text, ensure_ascii=False)[1:-1]

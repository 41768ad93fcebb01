"""Values a Go template computes with, and how they print, compare and convert."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.request import JsonValue

PRINT_LIMIT_CHARACTERS: Final = 16 * 1024 * 1024
"""Longest text one value may print as."""
_PRINT_DEPTH_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Record:
    """A value with a fixed set of fields, as a Go struct: asking for another one is an error.

    With ``as_json`` it prints as that JSON, as types with a String method of their own do.
    """

    fields: Mapping[str, Value]
    as_json: JsonValue = None


@dataclass(frozen=True, slots=True)
class JsonMap:
    """A map that prints as JSON and ranges in the order it was written."""

    entries: Mapping[str, Value]
    as_json: JsonValue


@dataclass(frozen=True, slots=True)
class JsonList:
    """A list that prints as JSON."""

    items: tuple[Value, ...]
    as_json: JsonValue


Value = (
    None
    | bool
    | int
    | float
    | str
    | list["Value"]
    | tuple["Value", ...]
    | dict[str, "Value"]
    | Record
    | JsonMap
    | JsonList
)


def from_json(value: JsonValue) -> Value:
    """A JSON value as a template sees it; objects become plain maps."""
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value


def to_json(value: Value) -> JsonValue:
    match value:
        case Record():
            if value.as_json is not None:
                return value.as_json
            return {name: to_json(item) for name, item in value.fields.items()}
        case JsonMap() | JsonList():
            return value.as_json
        case dict():
            return {name: to_json(value[name]) for name in sorted(value)}
        case list() | tuple():
            return [to_json(item) for item in value]
        case _:
            return value


def json_text(value: JsonValue) -> str:
    """Compact JSON with the characters escaped that Go's encoder escapes for HTML's sake."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def truth(value: Value) -> bool:
    """Go's idea of non-empty: a struct always is."""
    match value:
        case Record():
            return True
        case JsonMap():
            return bool(value.entries)
        case JsonList():
            return bool(value.items)
        case _:
            return bool(value)


def is_map(value: Value) -> bool:
    return isinstance(value, (dict, JsonMap))


def items_of(value: Value) -> Sequence[Value] | None:
    """The elements of a list value, or None for anything else."""
    if isinstance(value, JsonList):
        return value.items
    if isinstance(value, (list, tuple)):
        return value
    return None


def entries_of(value: Value) -> Iterator[tuple[Value, Value]]:
    """What ``range`` walks over a list or map; plain maps go in key order."""
    items = items_of(value)
    if items is not None:
        yield from enumerate(items)
    elif isinstance(value, JsonMap):
        yield from value.entries.items()
    elif isinstance(value, dict):
        for key in sorted(value):
            yield key, value[key]


def field(value: Value, name: str, line: int) -> Value:
    """``value.name``; a missing map key is nil, a missing struct field an error."""
    match value:
        case dict():
            return value.get(name)
        case JsonMap():
            return value.entries.get(name)
        case Record():
            if name not in value.fields:
                raise TemplateError(f"can't evaluate field {name}", line)
            return value.fields[name]
        case None:
            raise TemplateError(f"nil pointer evaluating field {name}", line)
        case _:
            raise TemplateError(
                f"can't evaluate field {name} in a value of type {type_name(value)}", line
            )


def type_name(value: Value) -> str:
    match value:
        case None:
            return "nil"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case dict() | JsonMap():
            return "map"
        case Record():
            return "struct"
        case list() | tuple() | JsonList():
            return "slice"


def printed(value: Value) -> str:
    """The text ``{{ value }}`` gives. Raises TemplateLimit when it would be too long."""
    match value:
        case str():
            return value
        case None:
            return "<no value>"
        case _:
            return formatted(value)


def formatted(value: Value) -> str:
    """The text of Go's ``%v``."""
    parts: list[str] = []
    length = 0
    for part in _format(value, 0):
        length += len(part)
        if length > PRINT_LIMIT_CHARACTERS:
            raise TemplateLimit("a printed value is too long")
        parts.append(part)
    return "".join(parts)


def _format(value: Value, depth: int) -> Iterator[str]:
    if depth > _PRINT_DEPTH_LIMIT:
        raise TemplateLimit("a printed value is nested too deep")
    match value:
        case None:
            yield "<nil>"
        case bool():
            yield "true" if value else "false"
        case float():
            yield format_float(value)
        case int() | str():
            yield str(value)
        case JsonMap() | JsonList():
            yield json_text(value.as_json)
        case Record():
            if value.as_json is not None:
                yield json_text(value.as_json)
            else:
                yield "{"
                for position, item in enumerate(value.fields.values()):
                    if position:
                        yield " "
                    yield from _format(item, depth + 1)
                yield "}"
        case dict():
            yield "map["
            for position, key in enumerate(sorted(value)):
                yield f" {key}:" if position else f"{key}:"
                yield from _format(value[key], depth + 1)
            yield "]"
        case list() | tuple():
            yield "["
            for position, item in enumerate(value):
                if position:
                    yield " "
                yield from _format(item, depth + 1)
            yield "]"


def format_float(value: float) -> str:
    """Shortest form, with an exponent below 1e-4 and from 1e21 on."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0 or 1e-4 <= abs(value) < 1e21:
        text = repr(value)
        if "e" in text:
            text = f"{value:.0f}" if abs(value) >= 1 else f"{value:.20f}".rstrip("0")
        return text.removesuffix(".0")
    mantissa, _, exponent = f"{value!r}".partition("e")
    if not exponent:
        mantissa, _, exponent = f"{value:e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+03d}"


def equal(left: Value, right: Value, line: int) -> bool:
    """Go's ``eq`` of two basic values; different kinds are an error, nil equals only nil."""
    if left is None or right is None:
        return left is None and right is None
    if not _same_basic_kind(left, right):
        raise TemplateError(
            f"incompatible types for comparison: {type_name(left)} and {type_name(right)}", line
        )
    return left == right


def less(left: Value, right: Value, line: int) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left < right
    number = (int, float)
    if (
        isinstance(left, number)
        and isinstance(right, number)
        and not isinstance(left, bool)
        and not isinstance(right, bool)
        and isinstance(left, float) == isinstance(right, float)
    ):
        return left < right
    raise TemplateError(
        f"incompatible types for comparison: {type_name(left)} and {type_name(right)}", line
    )


def _same_basic_kind(left: Value, right: Value) -> bool:
    kind = type_name(left)
    return kind == type_name(right) and kind in ("bool", "int", "float64", "string")

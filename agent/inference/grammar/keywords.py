"""JSON Schema keywords: which exist here, and typed access to their values. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from agent.inference.errors import InvalidFormat
from agent.inference.request import JsonValue

Schema = dict[str, JsonValue] | bool
TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS: Final = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$schema",
        "$id",
        "id",
        "$comment",
        "$defs",
        "definitions",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "discriminator",
    }
)
"""They assert nothing about a value, or only hold definitions."""
OBJECT_KEYWORDS: Final = frozenset(
    {"properties", "required", "additionalProperties", "minProperties", "maxProperties"}
)
ARRAY_KEYWORDS: Final = frozenset(
    {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"}
)
STRING_KEYWORDS: Final = frozenset({"minLength", "maxLength", "pattern", "format"})
NUMBER_KEYWORDS: Final = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
_GENERAL: Final = frozenset({"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"})
SUPPORTED: Final = OBJECT_KEYWORDS | ARRAY_KEYWORDS | STRING_KEYWORDS | NUMBER_KEYWORDS | _GENERAL


def refuse(path: str, keyword: str, why: str) -> InvalidFormat:
    """The error for a keyword that cannot be enforced."""
    return InvalidFormat(f'format: {path}: "{keyword}" {why}')


def as_schema(value: JsonValue, path: str) -> Schema:
    """The value as a schema. Raises InvalidFormat when it is neither object nor boolean."""
    if isinstance(value, (dict, bool)):
        return value
    raise InvalidFormat(f"format: {path}: a schema must be an object or a boolean")


def check_keywords(schema: dict[str, JsonValue], path: str) -> None:
    """Refuse the first keyword that is neither supported nor an annotation, by name."""
    for keyword in schema:
        if keyword not in SUPPORTED and keyword not in ANNOTATIONS and keyword[:2] != "x-":
            raise refuse(path, keyword, "is not supported")


def schemas(schema: dict[str, JsonValue], keyword: str, path: str) -> list[Schema]:
    """A list of schemas, empty when the keyword is absent."""
    value = schema.get(keyword, [])
    if not isinstance(value, list) or (keyword in schema and not value):
        raise refuse(path, keyword, "must be a list of schemas that is not empty")
    return [as_schema(part, f"{path}/{keyword}/{i}") for i, part in enumerate(value)]


def properties(schema: dict[str, JsonValue], path: str) -> dict[str, Schema]:
    """The declared properties in order."""
    value = schema.get("properties", {})
    if not isinstance(value, dict):
        raise refuse(path, "properties", "must be an object")
    return {name: as_schema(part, f"{path}/properties/{name}") for name, part in value.items()}


def names(schema: dict[str, JsonValue], keyword: str, path: str) -> list[str]:
    """A list of strings."""
    value = schema.get(keyword, [])
    if not isinstance(value, list):
        raise refuse(path, keyword, "must be a list of strings")
    found: list[str] = []
    for name in value:
        if not isinstance(name, str):
            raise refuse(path, keyword, "must be a list of strings")
        found.append(name)
    return found


def types(schema: dict[str, JsonValue], path: str) -> tuple[str, ...] | None:
    """The names under ``type``; None when it is absent."""
    if "type" not in schema:
        return None
    value = schema["type"]
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, list):
        raise refuse(path, "type", "must be a name or a list of names")
    found: list[str] = []
    for name in wanted:
        if not isinstance(name, str) or name not in TYPES:
            raise refuse(path, "type", f"names the unknown type {json.dumps(name)}")
        found.append(name)
    return tuple(found)


def count(schema: dict[str, JsonValue], keyword: str, path: str) -> int | None:
    """A non-negative whole number; None when the keyword is absent."""
    if keyword not in schema:
        return None
    value = schema[keyword]
    whole = not isinstance(value, bool) and isinstance(value, (int, float)) and value == value // 1
    if not whole or not isinstance(value, (int, float)) or value < 0:
        raise refuse(path, keyword, "must be a whole number that is not negative")
    return int(value)


def number(schema: dict[str, JsonValue], keyword: str, path: str) -> Decimal | None:
    """A number, exactly as its shortest decimal notation; None when the keyword is absent."""
    if keyword not in schema:
        return None
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(path, keyword, "must be a number")
    exact = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
    if not exact.is_finite() or (exact and not -30 <= exact.adjusted() <= 308):
        raise refuse(path, keyword, "is too small or too large")
    return exact


def equal(first: JsonValue, second: JsonValue) -> bool:
    """JSON equality: 1 equals 1.0, and true does not equal 1."""
    match first, second:
        case bool(), bool():
            return first == second
        case bool(), _:
            return False
        case _, bool():
            return False
        case list(), list():
            return len(first) == len(second) and all(map(equal, first, second))
        case dict(), dict():
            return first.keys() == second.keys() and all(
                equal(value, second[name]) for name, value in first.items()
            )
        case _:
            return first == second


def contains(values: Iterable[JsonValue], wanted: JsonValue) -> bool:
    """Whether one of the values equals ``wanted`` as JSON."""
    return any(equal(value, wanted) for value in values)


def type_of(value: JsonValue) -> str:
    """The most specific type name of a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case list():
            return "array"
        case dict():
            return "object"


def has_type(value: JsonValue, allowed: Iterable[str]) -> bool:
    """Whether a value is of one of the types; an integer is a number too."""
    name = type_of(value)
    return name in allowed or (name == "integer" and "number" in allowed)

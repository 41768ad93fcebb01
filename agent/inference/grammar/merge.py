"""One schema that means the same as several together: ``$ref`` and ``allOf`` dissolved. Pure."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from agent.inference.errors import InvalidFormat
from agent.inference.grammar.keywords import (
    ANNOTATIONS,
    Schema,
    as_schema,
    check_keywords,
    contains,
    number,
    properties,
    refuse,
    schemas,
    types,
)
from agent.inference.request import JsonValue

STEP_LIMIT: Final = 20_000
"""Schemas visited, references and combinations counted each time."""
NESTING_LIMIT: Final = 64
"""``$ref`` and ``allOf`` inside each other without a property or item in between."""
BRANCH_LIMIT: Final = 256

_GREATEST: Final = frozenset(
    {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
)
_LEAST: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
_OBJECT: Final = frozenset({"properties", "additionalProperties"})
_ARRAY: Final = frozenset({"prefixItems", "items"})


class Document:
    """A whole schema, for references into it, and the work spent on it so far."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._steps = 0

    def step(self, path: str) -> None:
        """Count one unit of work. Raises InvalidFormat at the limit."""
        self._steps += 1
        if self._steps > STEP_LIMIT:
            raise InvalidFormat(f"format: {path}: the schema expands to too many parts")

    def resolve(self, pointer: JsonValue, path: str) -> Schema:
        """The schema a local reference points to (RFC 6901 in a URI fragment)."""
        if not isinstance(pointer, str):
            raise refuse(path, "$ref", "must be a string")
        if pointer != "#" and not pointer.startswith("#/"):
            raise refuse(
                path,
                "$ref",
                f"{pointer!r} is not a local reference (# or #/...), and no other is followed",
            )
        found: JsonValue = self._root
        for part in unquote(pointer).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif (
                isinstance(found, list)
                and name.isascii()
                and name.isdigit()
                and (len(name) < 9 and int(name) < len(found))
            ):
                found = found[int(name)]
            else:
                raise refuse(path, "$ref", f"{pointer!r} points to nothing")
        return as_schema(found, pointer)

    def flatten(self, schema: Schema, path: str, nesting: int = 0) -> Schema:
        """The schema without annotations, ``$ref``, ``allOf``, ``const`` and draft 7's tuples.

        Raises InvalidFormat for keywords that are not supported, and for references that go in
        circles or nest too deep.
        """
        self.step(path)
        if isinstance(schema, bool):
            return schema
        if nesting > NESTING_LIMIT:
            raise refuse(path, "$ref", "refers to itself, or nests too deep")
        check_keywords(schema, path)
        result: Schema = _own(schema, path)
        if "$ref" in schema:
            target = self.resolve(schema["$ref"], path)
            place = str(schema["$ref"])
            result = self.merge(self.flatten(target, place, nesting + 1), result, path)
        for index, part in enumerate(schemas(schema, "allOf", path)):
            other = self.flatten(part, f"{path}/allOf/{index}", nesting + 1)
            result = self.merge(result, other, path)
        return result

    def merge(self, first: Schema, second: Schema, path: str) -> Schema:
        """A flat schema for the values that satisfy two flat schemas."""
        self.step(path)
        if first is False or second is False:
            return False
        if first is True:
            return second
        if second is True:
            return first
        merged: dict[str, JsonValue] = dict(first)
        for keyword, value in second.items():
            if keyword in _OBJECT or keyword in _ARRAY:
                continue
            if keyword not in merged:
                merged[keyword] = value
                continue
            both = self._combine(keyword, first, second, path)
            if both is False and keyword != "uniqueItems":
                return False
            merged[keyword] = both
        self._merge_object(merged, first, second, path)
        self._merge_array(merged, first, second, path)
        return merged

    def _combine(
        self, keyword: str, first: dict[str, JsonValue], second: dict[str, JsonValue], path: str
    ) -> JsonValue:
        """The value of a keyword that both have; False when no value satisfies both."""
        one, other = first[keyword], second[keyword]
        if keyword in _GREATEST or keyword in _LEAST:
            left, right = number(first, keyword, path), number(second, keyword, path)
            if left is None or right is None:
                return one
            return one if (left >= right) == (keyword in _GREATEST) else other
        match keyword, one, other:
            case "type", _, _:
                return _common_types(types(first, path) or (), types(second, path) or ()) or False
            case "enum", list(), list():
                return [value for value in one if contains(other, value)]
            case "required", list(), list():
                return [*one, *(name for name in other if name not in one)]
            case "uniqueItems", _, _:
                return bool(one) or bool(other)
            case "anyOf", list(), list():
                if len(one) * len(other) > BRANCH_LIMIT:
                    raise refuse(path, "anyOf", f"combines to more than {BRANCH_LIMIT} branches")
                pairs: list[JsonValue] = [{"allOf": [a, b]} for a in one for b in other]
                return pairs
            case _:
                if one == other:
                    return one
                raise refuse(path, keyword, "is given twice with different values")

    def _merge_object(
        self,
        merged: dict[str, JsonValue],
        first: dict[str, JsonValue],
        second: dict[str, JsonValue],
        path: str,
    ) -> None:
        one, other = properties(first, path), properties(second, path)
        if one or other:
            together: dict[str, JsonValue] = {}
            for name in (*one, *(name for name in other if name not in one)):
                parts: list[JsonValue] = [
                    own.get(name, schema.get("additionalProperties"))
                    for own, schema in ((one, first), (other, second))
                ]
                together[name] = _all_of(parts)
            merged["properties"] = together
        extra = [s["additionalProperties"] for s in (first, second) if "additionalProperties" in s]
        if extra:
            merged["additionalProperties"] = _all_of(extra)

    def _merge_array(
        self,
        merged: dict[str, JsonValue],
        first: dict[str, JsonValue],
        second: dict[str, JsonValue],
        path: str,
    ) -> None:
        one = schemas(first, "prefixItems", path)
        other = schemas(second, "prefixItems", path)
        if one or other:
            places: list[JsonValue] = []
            for place in range(max(len(one), len(other))):
                parts: list[JsonValue] = [
                    own[place] if place < len(own) else schema.get("items")
                    for own, schema in ((one, first), (other, second))
                ]
                places.append(_all_of(parts))
            merged["prefixItems"] = places
        items = [s["items"] for s in (first, second) if "items" in s]
        if items:
            merged["items"] = _all_of(items)


def _own(schema: dict[str, JsonValue], path: str) -> dict[str, JsonValue]:
    """The keywords of one schema that assert something, in today's form."""
    own: dict[str, JsonValue] = {
        keyword: value
        for keyword, value in schema.items()
        if keyword not in ANNOTATIONS
        and keyword[:2] != "x-"
        and keyword not in ("$ref", "allOf", "additionalItems", "const")
    }
    if isinstance(own.get("items"), list):
        if "prefixItems" in schema:
            raise refuse(path, "items", "must be a schema next to prefixItems")
        own["prefixItems"] = own.pop("items")
        if own["prefixItems"] == []:
            del own["prefixItems"]
        if "additionalItems" in schema:
            own["items"] = schema["additionalItems"]
    if "type" in own:
        own["type"] = list(types(schema, path) or ())
    if "enum" in own and not isinstance(own["enum"], list):
        raise refuse(path, "enum", "must be a list")
    if "const" in schema:
        const = schema["const"]
        values = own.get("enum")
        inside = not isinstance(values, list) or contains(values, const)
        own["enum"] = [const] if inside else []
    return own


def _common_types(first: tuple[str, ...], second: tuple[str, ...]) -> list[JsonValue]:
    found: list[JsonValue] = [name for name in first if name in second]
    for one, other in ((first, second), (second, first)):
        if "integer" in one and "number" in other and "integer" not in found:
            found.append("integer")
    return found


def _all_of(parts: list[JsonValue]) -> JsonValue:
    """Parts that all hold; None stands for a part that says nothing."""
    if any(part is False for part in parts):
        return False
    left: list[JsonValue] = []
    for part in parts:
        if part is not None and part is not True and part not in left:
            left.append(part)
    match left:
        case []:
            return True
        case [single]:
            return single
        case _:
            return {"allOf": left}

"""Proof that no value satisfies two branches of ``oneOf``. Pure.

``oneOf`` wants exactly one branch to hold, which no grammar can check. It is enforced as a
choice when the branches provably exclude each other: by type, by fixed values, by number
ranges, or for objects by a property. Objects are generated without undeclared keys unless
``additionalProperties`` allows them, so a branch also excludes another one that requires a key
it never writes.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.inference.grammar.keywords import (
    ARRAY_KEYWORDS,
    NUMBER_KEYWORDS,
    OBJECT_KEYWORDS,
    STRING_KEYWORDS,
    TYPES,
    contains,
    has_type,
    names,
    number,
    properties,
    type_of,
    types,
)
from agent.inference.grammar.merge import Document
from agent.inference.request import JsonValue

Flat = dict[str, JsonValue]


def generated_types(schema: Flat, path: str) -> tuple[str, ...]:
    """The types values are generated in: as declared, else as the keywords suggest."""
    declared = types(schema, path)
    if declared is not None:
        return tuple(name for name in declared if name != "integer" or "number" not in declared)
    suggested = [
        name
        for name, keywords in (
            ("object", OBJECT_KEYWORDS),
            ("array", ARRAY_KEYWORDS),
            ("string", STRING_KEYWORDS),
            ("number", NUMBER_KEYWORDS),
        )
        if keywords & schema.keys()
    ]
    return tuple(suggested) if suggested else tuple(t for t in TYPES if t != "integer")


def distinguish(document: Document, branches: list[Flat], path: str) -> tuple[int, int] | None:
    """Two branches (by index) that may both hold; None when all exclude each other."""
    if _tagged(document, branches, path):
        return None
    for i, first in enumerate(branches):
        for j, second in enumerate(branches):
            document.step(path)
            if i != j and not _excludes(document, first, second, path):
                return min(i, j), max(i, j)
    return None


def _tagged(document: Document, branches: list[Flat], path: str) -> bool:
    """The common case in linear time: different strings, or a required property that has them."""
    if _different_strings(branches):
        return True
    declared = [properties(branch, path) for branch in branches]
    wanted = [names(branch, "required", path) for branch in branches]
    for name in wanted[0] if wanted else ():
        tags: list[Flat] = []
        for own, required in zip(declared, wanted, strict=True):
            tag = own.get(name, True)
            flat = document.flatten(tag, path) if name in required else True
            if isinstance(flat, dict):
                tags.append(flat)
        objects = all(_makes_objects(branch, path) for branch in branches)
        if objects and len(tags) == len(branches) and _different_strings(tags):
            return True
    return False


def _makes_objects(branch: Flat, path: str) -> bool:
    return not _leaves_open(branch) and generated_types(branch, path) == ("object",)


def _different_strings(schemas: list[Flat]) -> bool:
    """Whether all fixed values of all schemas are strings, and none is in two schemas."""
    seen: dict[str, int] = {}
    for index, schema in enumerate(schemas):
        values = schema.get("enum")
        if not isinstance(values, list):
            return False
        for value in values:
            if not isinstance(value, str) or seen.setdefault(value, index) != index:
                return False
    return True


def require_tag(document: Document, branches: list[Flat], path: str) -> list[Flat]:
    """The branches with one more required property, if one tells all of them apart.

    A property that every branch declares with different fixed values need not be written; if it
    always is, the branches exclude each other.
    """
    declared = [properties(branch, path) for branch in branches]
    for name in declared[0] if declared else ():
        found = [own.get(name) for own in declared]
        tags = [document.flatten(tag, path) for tag in found if isinstance(tag, dict)]
        fixed = [tag for tag in tags if isinstance(tag, dict) and "enum" in tag]
        if len(fixed) == len(branches) and distinguish(document, fixed, path) is None:
            required: list[Flat] = []
            for branch in branches:
                wanted: list[JsonValue] = [*names(branch, "required", path)]
                if name not in wanted:
                    wanted.append(name)
                required.append({**branch, "required": wanted})
            return required
    return branches


def _excludes(document: Document, first: Flat, second: Flat, path: str, depth: int = 0) -> bool:
    """Whether no value generated for ``first`` can satisfy ``second``."""
    document.step(path)
    values = first.get("enum")
    if isinstance(values, list):
        return all(_fails(value, second, path) for value in values)
    made = _with_integer(TYPES if _leaves_open(first) else generated_types(first, path))
    common = made & _with_integer(types(second, path) or TYPES)
    others = second.get("enum")
    if isinstance(others, list):
        common = {name for name in common if any(has_type(value, (name,)) for value in others)}
    if not common:
        return True
    if common <= {"number", "integer"}:
        return _apart(first, second, path) or _apart(second, first, path)
    if common == {"object"} and depth < 4:
        return _objects_exclude(document, first, second, path, depth)
    return False


def _leaves_open(schema: Flat) -> bool:
    """Whether nested branches may still add a type."""
    return "type" not in schema and not {"anyOf", "oneOf"}.isdisjoint(schema)


def _with_integer(names: Iterable[str]) -> set[str]:
    found = set(names)
    return found | {"integer"} if "number" in found else found


def _fails(value: JsonValue, schema: Flat, path: str) -> bool:
    accepted = types(schema, path)
    if accepted is not None and not has_type(value, accepted):
        return True
    others = schema.get("enum")
    if isinstance(others, list):
        return not contains(others, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _apart({"minimum": value, "maximum": value}, schema, path) or _apart(
            schema, {"minimum": value, "maximum": value}, path
        )
    if isinstance(value, dict):
        return any(name not in value for name in names(schema, "required", path))
    return type_of(value) == "null" and accepted is not None and "null" not in accepted


def _apart(below: Flat, above: Flat, path: str) -> bool:
    """Whether the numbers of ``below`` all lie under those of ``above``."""
    for upper in ("maximum", "exclusiveMaximum"):
        for lower in ("minimum", "exclusiveMinimum"):
            top, bottom = number(below, upper, path), number(above, lower, path)
            if top is not None and bottom is not None:
                touching = upper.startswith("excl") or lower.startswith("excl")
                if top < bottom or (touching and top == bottom):
                    return True
    return False


def _objects_exclude(document: Document, first: Flat, second: Flat, path: str, depth: int) -> bool:
    own, other = properties(first, path), properties(second, path)
    written = names(first, "required", path)
    nested = not {"anyOf", "oneOf"}.isdisjoint(first)
    extra = first.get("additionalProperties", nested or not own)
    for name in names(second, "required", path):
        if extra is False and name not in own and name not in written:
            return True
    for name in written:
        if second.get("additionalProperties") is False and name not in other:
            return True
        if name in own and name in other:
            left = document.flatten(own[name], path)
            right = document.flatten(other[name], path)
            if left is False or right is False:
                return True
            if (
                isinstance(left, dict)
                and isinstance(right, dict)
                and _excludes(document, left, right, path, depth + 1)
            ):
                return True
    return False

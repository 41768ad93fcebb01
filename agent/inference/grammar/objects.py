"""What an object schema demands, read from its keywords. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.inference.grammar.disjoint import Flat
from agent.inference.grammar.keywords import Schema, count, names, properties, refuse

STATE_LIMIT: Final = 20_000


@dataclass(frozen=True, slots=True)
class ObjectShape:
    """``least`` and ``greatest`` bound the number of members; ``counted`` is how many of them
    have to be told apart while writing."""

    path: str
    properties: dict[str, Schema]
    required: frozenset[str]
    additional: Schema
    least: int
    greatest: int | None
    counted: int

    @classmethod
    def read(cls, flat: Flat, path: str) -> ObjectShape:
        """The shape of a flat schema.

        Raises InvalidFormat when ``minProperties`` could be missed by keys that repeat, or the
        counts are too large to follow.
        """
        declared = properties(flat, path)
        wanted = names(flat, "required", path)
        extra = flat.get("additionalProperties", not declared)
        if not isinstance(extra, (dict, bool)):
            raise refuse(path, "additionalProperties", "must be a schema")
        undeclared = flat.get("additionalProperties", True)
        for name in wanted:
            if name not in declared:
                declared[name] = undeclared if isinstance(undeclared, (dict, bool)) else True
        possible = {name: schema for name, schema in declared.items() if schema is not False}
        least = max(count(flat, "minProperties", path) or 0, 0)
        greatest = count(flat, "maxProperties", path)
        required = frozenset(wanted)
        if greatest is not None and extra is False and greatest >= len(possible):
            greatest = None
        if least <= len(required):
            least = 0
        if extra is not False and least > len(declared) + 1:
            raise refuse(
                path,
                "minProperties",
                "cannot be enforced for undeclared properties, whose names might repeat",
            )
        counted = max(least, greatest or 0)
        if counted * (len(declared) + 1) > STATE_LIMIT:
            keyword = "maxProperties" if greatest else "minProperties"
            raise refuse(path, keyword, "is too large to be enforced")
        return cls(path, declared, required, extra, least, greatest, counted)

"""JSON Schema to GBNF: every text the grammar matches is JSON that validates. Pure.

The grammar may be narrower than the schema where that keeps it exact and small:

* properties come in the order of the schema, and undeclared ones only when
  ``additionalProperties`` allows them explicitly or no properties are declared (the same holds
  for array items behind ``prefixItems``);
* a schema without ``type`` yields the types its keywords speak about;
* white space is at most one space, or one line break with an indentation, and only where
  pretty printers put it;
* numbers have a bounded number of digits; with bounds they have no exponent.

It is never wider: keywords that cannot be enforced are refused by name and path.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from agent.inference.errors import InvalidFormat
from agent.inference.grammar.disjoint import Flat, distinguish, generated_types, require_tag
from agent.inference.grammar.formats import FORMAT_PATTERNS, INTEGER_FORMATS, NUMBER_FORMATS
from agent.inference.grammar.gbnf import (
    EMPTY,
    NEVER,
    Characters,
    Expression,
    Grammar,
    Literal,
    Reference,
    Repetition,
    choose,
    concatenate,
    optional,
)
from agent.inference.grammar.keywords import (
    ARRAY_KEYWORDS,
    OBJECT_KEYWORDS,
    Schema,
    count,
    has_type,
    number,
    refuse,
    schemas,
    type_of,
    types,
)
from agent.inference.grammar.merge import Document
from agent.inference.grammar.numbers import (
    SIGNIFICANT_DIGITS,
    any_integer,
    any_number,
    between,
)
from agent.inference.grammar.objects import ObjectShape
from agent.inference.grammar.regex import compile_pattern, parse_pattern
from agent.inference.grammar.strings import QUOTE, any_character, any_of, free_key, quoted
from agent.inference.request import JsonFormat, JsonValue, OutputFormat, SchemaFormat

DEPTH_LIMIT: Final = 200
"""Nested objects and arrays in the schema as JSON."""
NODE_LIMIT: Final = 20_000
"""Values in the schema as JSON."""
KEY_BYTES_LIMIT: Final = 16 * 1024 * 1024
INDENT_LIMIT: Final = 32

_COMMA: Final = Literal(",")


def grammar_for(format: OutputFormat) -> str:  # noqa: A002 - the request's own word
    """GBNF for an output format; start rule ``root``.

    Raises InvalidFormat naming the keyword and its place when a schema cannot be enforced.
    """
    match format:
        case JsonFormat():
            return JSON_GRAMMAR
        case SchemaFormat(schema):
            return json_schema_to_gbnf(schema)


def json_schema_to_gbnf(schema: Mapping[str, JsonValue] | bool) -> str:
    """GBNF whose texts are JSON values that validate against the schema.

    Raises InvalidFormat as ``grammar_for`` does.
    """
    root: Schema = schema if isinstance(schema, bool) else dict(schema)
    _check_size(root)
    converter = _Converter(root)
    start = converter.value(root, "#")
    converter.finish()
    return converter.grammar.render(start)


def _check_size(root: JsonValue) -> None:
    waiting: list[tuple[JsonValue, int]] = [(root, 0)]
    nodes = 0
    while waiting:
        value, depth = waiting.pop()
        nodes += 1
        if nodes > NODE_LIMIT:
            raise InvalidFormat(f"format: the schema has more than {NODE_LIMIT} values")
        if depth > DEPTH_LIMIT:
            raise InvalidFormat(f"format: the schema is nested more than {DEPTH_LIMIT} deep")
        if isinstance(value, dict):
            waiting.extend((child, depth + 1) for child in value.values())
        elif isinstance(value, list):
            waiting.extend((child, depth + 1) for child in value)


class _Json:
    """Rules that every grammar shares."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        blanks = Characters(((0x09, 0x09), (0x20, 0x20)))
        line = concatenate(Literal("\n"), Repetition(blanks, 0, INDENT_LIMIT))
        self.space = grammar.define(optional(choose((Literal(" "), line))))
        self.comma = grammar.define(concatenate(_COMMA, self.space))
        self.colon = grammar.define(concatenate(Literal(":"), self.space))
        self.character = any_character(grammar)
        self.string = grammar.define(concatenate(QUOTE, Repetition(self.character, 0, None), QUOTE))
        self.number = grammar.define(any_number())
        self.value = grammar.reserve()
        member = concatenate(self.string, self.colon, self.value)
        self.object = grammar.define(self.braced(self.separated(member)))
        self.array = grammar.define(self.bracketed(self.separated(self.value)))
        scalars = (self.string, self.number, *map(Literal, ("true", "false", "null")))
        grammar.fill(self.value, choose((self.object, self.array, *scalars)))

    def separated(self, item: Expression) -> Expression:
        """The item once or more, with commas."""
        more = self.grammar.define(concatenate(self.comma, item))
        return concatenate(item, Repetition(more, 0, None))

    def braced(self, members: Expression, *, empty: bool = True) -> Expression:
        """An object with these members; ``empty`` allows it to have none."""
        return self._enclosed("{", members, "}", empty=empty)

    def bracketed(self, items: Expression, *, empty: bool = True) -> Expression:
        """An array with these items; ``empty`` allows it to have none."""
        return self._enclosed("[", items, "]", empty=empty)

    def _enclosed(self, begin: str, inside: Expression, end: str, *, empty: bool) -> Expression:
        content = concatenate(inside, self.space)
        body = optional(content) if empty else content
        return concatenate(Literal(begin), self.space, body, Literal(end))

    def literal(self, value: JsonValue) -> Expression:
        """One fixed value."""
        match value:
            case str():
                return quoted(value)
            case list() if value:
                items = [self.literal(item) for item in value]
                return self.bracketed(self._joined(items), empty=False)
            case dict() if value:
                members = [
                    concatenate(quoted(name), self.colon, self.literal(item))
                    for name, item in value.items()
                ]
                return self.braced(self._joined(members), empty=False)
            case float() if not math.isfinite(value):
                raise InvalidFormat("format: a fixed value is not a finite number")
            case _:
                return Literal(json.dumps(value))

    def _joined(self, parts: list[Expression]) -> Expression:
        joined = parts[0]
        for part in parts[1:]:
            joined = concatenate(joined, self.comma, part)
        return self.grammar.define(joined)


class _Converter:
    """Turns schemas into rules. Equal schemas share a rule, which makes recursion possible."""

    def __init__(self, root: Schema) -> None:
        self.grammar = Grammar()
        self._json = _Json(self.grammar)
        self._document = Document(root)
        self._rules: dict[str, Reference] = {}
        self._waiting: deque[tuple[Reference, Schema, str]] = deque()
        self._key_bytes = 0

    def value(self, schema: Schema, path: str) -> Expression:
        """A reference to the rule for a schema, which ``finish`` fills."""
        if schema is True or schema == {}:
            return self._json.value
        if schema is False:
            return NEVER
        key = json.dumps(schema)
        self._key_bytes += len(key)
        if self._key_bytes > KEY_BYTES_LIMIT:
            raise InvalidFormat(f"format: {path}: the schema expands to too many parts")
        known = self._rules.get(key)
        if known is None:
            known = self._rules[key] = self.grammar.reserve()
            self._waiting.append((known, schema, path))
        return known

    def finish(self) -> None:
        """Fill all rules, in the order they were asked for; no recursion, so no stack limit."""
        while self._waiting:
            rule, schema, path = self._waiting.popleft()
            self.grammar.fill(rule, self._build(schema, path))

    def _build(self, schema: Schema, path: str) -> Expression:
        flat = self._document.flatten(schema, path)
        if isinstance(flat, bool):
            return self._json.value if flat else NEVER
        for keyword in ("anyOf", "oneOf"):
            if keyword in flat:
                return self._branches(flat, keyword, path)
        if "enum" in flat:
            return self._enum(flat, path)
        return choose([self._typed(flat, name, path) for name in generated_types(flat, path)])

    def _branches(self, flat: Flat, keyword: str, path: str) -> Expression:
        base: Schema = {name: value for name, value in flat.items() if name != keyword}
        merged: list[Flat] = []
        for index, branch in enumerate(schemas(flat, keyword, path)):
            place = f"{path}/{keyword}/{index}"
            both = self._document.merge(base or True, self._document.flatten(branch, place), place)
            if both is not False:
                merged.append({} if both is True else both)
        if keyword == "oneOf":
            merged = self._exclusive(merged, path)
        return choose([self.value(branch, f"{path}/{keyword}") for branch in merged])

    def _exclusive(self, branches: list[Flat], path: str) -> list[Flat]:
        overlap = distinguish(self._document, branches, path)
        if overlap is not None:
            branches = require_tag(self._document, branches, path)
            overlap = distinguish(self._document, branches, path)
        if overlap is not None:
            raise refuse(
                path,
                "oneOf",
                f"cannot be enforced: branches {overlap[0]} and {overlap[1]} are not provably "
                f"exclusive; use anyOf, or tell them apart by type or by a fixed property",
            )
        return branches

    def _enum(self, flat: Flat, path: str) -> Expression:
        values = flat["enum"]
        if not isinstance(values, list):
            raise refuse(path, "enum", "must be a list")
        rest = {name: value for name, value in flat.items() if name != "enum"}
        options = [self._json.literal(value) for value in values if self._holds(value, rest, path)]
        texts = [option.text for option in options if isinstance(option, Literal)]
        others = [option for option in options if not isinstance(option, Literal)]
        return choose((any_of(self.grammar, texts), *others))

    def _holds(self, value: JsonValue, rest: Flat, path: str) -> bool:
        """Whether a fixed value satisfies the keywords next to ``enum``."""
        allowed = types(rest, path)
        if allowed is not None and not has_type(value, allowed):
            return False
        if isinstance(value, dict) and OBJECT_KEYWORDS & rest.keys():
            raise refuse(path, "enum", "of objects cannot be combined with object keywords")
        if isinstance(value, list) and ARRAY_KEYWORDS & rest.keys():
            raise refuse(path, "enum", "of arrays cannot be combined with array keywords")
        if isinstance(value, str):
            if {"pattern", "format"} & rest.keys():
                raise refuse(path, "enum", "cannot be combined with pattern or format")
            low, high = self._counts(rest, "Length", path)
            return low <= len(value) and (high is None or len(value) <= high)
        if type_of(value) in ("integer", "number") and isinstance(value, (int, float)):
            exact = Decimal(value) if isinstance(value, int) else Decimal(repr(value))
            if "multipleOf" in rest:
                self._whole(rest, path)
                if exact != exact.to_integral_value():
                    return False
            low_bound, low_open, high_bound, high_open = self._bounds(rest, path)
            return not (
                (low_bound is not None and (exact < low_bound or (low_open and exact == low_bound)))
                or (
                    high_bound is not None
                    and (exact > high_bound or (high_open and exact == high_bound))
                )
            )
        return True

    def _typed(self, flat: Flat, name: str, path: str) -> Expression:
        match name:
            case "null":
                return Literal("null")
            case "boolean":
                return choose((Literal("true"), Literal("false")))
            case "string":
                return self._string(flat, path)
            case "integer" | "number":
                return self._number(flat, name, path)
            case "array":
                return self._array(flat, path)
            case _:
                return self.members(ObjectShape.read(flat, path))

    # Strings

    def _counts(self, flat: Flat, what: str, path: str) -> tuple[int, int | None]:
        return count(flat, f"min{what}", path) or 0, count(flat, f"max{what}", path)

    def _string(self, flat: Flat, path: str) -> Expression:
        low, high = self._counts(flat, "Length", path)
        pattern = self._pattern(flat, path)
        if pattern is not None:
            node = parse_pattern(pattern, path)
            inside = compile_pattern(self.grammar, node, low, high, path)
        elif low == 0 and high is None:
            return self._json.string
        else:
            inside = self.grammar.repeat(self._json.character, low, high)
        return concatenate(QUOTE, inside, QUOTE)

    def _pattern(self, flat: Flat, path: str) -> str | None:
        named = flat.get("format")
        if named is not None and not isinstance(named, str):
            raise refuse(path, "format", "must be a string")
        pattern = flat.get("pattern")
        if pattern is not None and not isinstance(pattern, str):
            raise refuse(path, "pattern", "must be a string")
        if named is None or named in INTEGER_FORMATS or named in NUMBER_FORMATS:
            return pattern
        if pattern is not None:
            raise refuse(path, "format", "cannot be combined with pattern")
        known = FORMAT_PATTERNS.get(named)
        if known is None:
            supported = ", ".join(sorted(FORMAT_PATTERNS))
            raise refuse(path, "format", f"{named!r} is not supported (there are: {supported})")
        return known

    # Numbers

    def _whole(self, flat: Flat, path: str) -> bool:
        """Whether ``multipleOf`` asks for whole numbers, the only multiple that is supported."""
        factor = number(flat, "multipleOf", path)
        if factor is not None and factor != 1:
            raise refuse(path, "multipleOf", "is not supported unless it is 1")
        return factor is not None

    def _bounds(self, flat: Flat, path: str) -> tuple[Decimal | None, bool, Decimal | None, bool]:
        """The lower bound and whether it is excluded, then the same of the upper one."""
        low, high = number(flat, "minimum", path), number(flat, "maximum", path)
        above, below = (
            number(flat, "exclusiveMinimum", path),
            number(flat, "exclusiveMaximum", path),
        )
        low_open = above is not None and (low is None or above >= low)
        high_open = below is not None and (high is None or below <= high)
        return above if low_open else low, low_open, below if high_open else high, high_open

    def _number(self, flat: Flat, name: str, path: str) -> Expression:
        whole = self._whole(flat, path) or name == "integer"
        low, low_open, high, high_open = self._bounds(flat, path)
        named = flat.get("format")
        if isinstance(named, str) and named in INTEGER_FORMATS:
            first, last = map(Decimal, INTEGER_FORMATS[named])
            whole = True
            low, low_open = (first, False) if low is None or low < first else (low, low_open)
            high, high_open = (last, False) if high is None or high > last else (high, high_open)
        elif isinstance(named, str) and named not in NUMBER_FORMATS | FORMAT_PATTERNS.keys():
            raise refuse(path, "format", f"{named!r} is not supported for numbers")
        if low is None and high is None:
            return self.grammar.define(any_integer()) if whole else self._json.number
        places = 0 if whole else self._places(low, high)
        first = None if low is None else _units(low, places, above=low_open)
        last = None if high is None else -_units(high.copy_negate(), places, above=high_open)
        return self.grammar.define(between(self.grammar, first, last, places))

    def _places(self, low: Decimal | None, high: Decimal | None) -> int:
        """Digits after the point such that neighbours of a bound stay distinct as doubles.

        Bounds with more digits are rounded inwards.
        """
        bounds = [bound for bound in (low, high) if bound is not None]
        exact = max(max(0, -_exponent(bound)) for bound in bounds)
        whole = max(len(str(abs(int(bound)))) for bound in bounds)
        return max(0, min(max(exact, 6), SIGNIFICANT_DIGITS - whole))

    # Arrays

    def _array(self, flat: Flat, path: str) -> Expression:
        first = schemas(flat, "prefixItems", path)
        low, high = self._counts(flat, "Items", path)
        places = len(first)
        rest: Schema = _schema_or(flat, "items", not first, path)
        if rest is False:
            high = places if high is None else min(high, places)
        if flat.get("uniqueItems") and (high is None or high > 1):
            raise refuse(path, "uniqueItems", "cannot be enforced for more than one item")
        if high is not None and high < low:
            return NEVER
        if high == 0:
            return self._json.bracketed(NEVER)
        item = self.value(rest, f"{path}/items")
        more = concatenate(self._json.comma, item)
        if not first:
            tail = self.grammar.repeat(more, max(0, low - 1), None if high is None else high - 1)
            return self._json.bracketed(concatenate(item, tail), empty=low == 0)
        places = places if high is None else min(places, high)
        following = self.grammar.repeat(
            more, max(0, low - places), None if high is None else high - places
        )
        for place in range(places - 1, -1, -1):
            own = self.value(first[place], f"{path}/prefixItems/{place}")
            here = concatenate(*([self._json.comma] if place else []), own, following)
            following = here if place < low or place == 0 else optional(self.grammar.define(here))
        return self._json.bracketed(following, empty=low == 0)

    # Objects

    def members(self, shape: ObjectShape) -> Expression:
        """The object a shape describes."""
        return _Members(self, self._json, shape).object()


class _Members:
    """The members of one object in order.

    A state is the next declared property and how many members were written, which is only
    counted as far as ``minProperties`` and ``maxProperties`` need. The comma belongs to the
    state and not to the members, so that optional members do not multiply parallel parses.
    """

    def __init__(self, converter: _Converter, shared: _Json, shape: ObjectShape) -> None:
        self._grammar = converter.grammar
        self._json = shared
        self._shape = shape
        self._pairs = [
            concatenate(
                quoted(name),
                shared.colon,
                converter.value(schema, f"{shape.path}/properties/{name}"),
            )
            for name, schema in shape.properties.items()
        ]
        self._required = [name in shape.required for name in shape.properties]
        self._extra: Expression = NEVER
        if shape.additional is not False:
            key = self._grammar.define(free_key(self._grammar, shape.properties))
            value = converter.value(shape.additional, f"{shape.path}/additionalProperties")
            self._extra = self._grammar.define(concatenate(key, shared.colon, value))

    def object(self) -> Expression:
        """From the opening to the closing brace."""
        shape = self._shape
        states = self._states()
        start = states[0, 0]
        if start == NEVER:
            nothing = not shape.required and shape.least == 0
            return self._json.braced(NEVER) if nothing else NEVER
        empty = not shape.required and shape.least == 0
        return self._json.braced(start, empty=empty)

    def _states(self) -> dict[tuple[int, int], Expression]:
        """For each state the members that may follow, at least one of them."""
        shape = self._shape
        size = len(self._pairs)
        counts = range(shape.counted, -1, -1)
        states: dict[tuple[int, int], Expression] = {}
        for written in counts:
            states[size, written] = self._undeclared(written)
        for place in range(size - 1, -1, -1):
            for written in counts:
                options: list[Expression] = []
                if shape.greatest is None or written < shape.greatest:
                    after = self._continued(states, place + 1, min(written + 1, shape.counted))
                    options.append(concatenate(self._pairs[place], after))
                if not self._required[place]:
                    options.append(states[place + 1, written])
                following = choose(option for option in options if option != NEVER)
                states[place, written] = (
                    NEVER if following == NEVER else self._grammar.define(following)
                )
        return states

    def _continued(
        self, states: dict[tuple[int, int], Expression], place: int, written: int
    ) -> Expression:
        """Nothing, or a comma and more members."""
        shape = self._shape
        done = not any(self._required[place:]) and written >= shape.least
        if place == len(self._pairs):
            left = None if shape.greatest is None else shape.greatest - written
            again = self._repeated(0, left)
            if done:
                return again
            # A repeated undeclared key would count once, so one of them counts at most.
            return self._repeated(1, left) if written + 1 >= shape.least else NEVER
        more = concatenate(self._json.comma, states[place, written])
        if more == NEVER:
            return EMPTY if done else NEVER
        more = self._grammar.define(more)
        return optional(more) if done else more

    def _undeclared(self, written: int) -> Expression:
        shape = self._shape
        left = None if shape.greatest is None else shape.greatest - written
        if self._extra == NEVER or left == 0 or written + 1 < shape.least:
            return NEVER
        rest = self._repeated(0, None if left is None else left - 1)
        return self._grammar.define(concatenate(self._extra, rest))

    def _repeated(self, low: int, high: int | None) -> Expression:
        if self._extra == NEVER:
            return NEVER if low else EMPTY
        return self._grammar.repeat(concatenate(self._json.comma, self._extra), low, high)


def _schema_or(flat: Flat, keyword: str, default: bool, path: str) -> Schema:
    value = flat.get(keyword, default)
    if isinstance(value, (dict, bool)):
        return value
    raise refuse(path, keyword, "must be a schema")


def _exponent(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0


def _units(value: Decimal, places: int, *, above: bool) -> int:
    """The least multiple of ``10 ** -places`` not below the value (or above it), in such units.

    In integers, because decimal arithmetic rounds to its context's precision.
    """
    numerator, denominator = value.as_integer_ratio()
    scaled = numerator * 10**places
    return scaled // denominator + 1 if above else -(-scaled // denominator)


def _json_grammar() -> str:
    grammar = Grammar()
    shared = _Json(grammar)
    return grammar.render(choose((shared.object, shared.array)))


JSON_GRAMMAR: Final = _json_grammar()
"""JSON mode: an object or an array, with anything inside."""

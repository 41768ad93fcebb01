"""Random schemas: the grammar is taken by llama.cpp, its texts validate, and instances made for
the schema are accepted."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from agent.inference.errors import InvalidFormat
from agent.inference.grammar import json_schema_to_gbnf
from tests.unit.grammar.sampler import Vocabulary

SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
quick = settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=SUPPRESSED)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    loaded = Vocabulary(tmp_path_factory.mktemp("vocabulary") / "bytes.gguf")
    yield loaded
    loaded.close()


characters = st.characters(exclude_categories=["Cs"])
names = st.one_of(st.sampled_from(["a", "ab", "b", "é"]), st.text(characters, max_size=3))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
    st.text(characters, max_size=4),
)


@st.composite
def pairs(draw: st.DrawFn, depth: int = 2) -> tuple[dict[str, Any], Any]:
    """A schema and an instance that is valid under it."""
    kinds = ["integer", "number", "string", "enum", "boolean", "null"]
    kind = draw(st.sampled_from(kinds + ["array", "object", "any", "all"] * (depth > 0)))
    match kind:
        case "integer":
            value = draw(st.integers(-(10**6), 10**6))
            schema: dict[str, Any] = {"type": "integer"}
            if draw(st.booleans()):
                schema["minimum"] = value - draw(st.integers(0, 1000))
            if draw(st.booleans()):
                schema["exclusiveMaximum"] = value + draw(st.integers(1, 1000))
            return schema, value
        case "number":
            value = draw(st.integers(-(10**7), 10**7)) / 1000
            schema = {"type": "number"}
            if draw(st.booleans()):
                schema["exclusiveMinimum"] = value - draw(st.integers(1, 100))
            if draw(st.booleans()):
                schema["maximum"] = value + draw(st.integers(0, 100))
            return schema, value
        case "string":
            text = draw(st.text(characters, max_size=6))
            schema = {"type": "string"}
            if draw(st.booleans()):
                schema["minLength"] = draw(st.integers(0, len(text)))
            if draw(st.booleans()):
                schema["maxLength"] = len(text) + draw(st.integers(0, 300))
            return schema, text
        case "enum":
            values = draw(st.lists(scalars, min_size=1, max_size=4))
            return {"enum": values}, draw(st.sampled_from(values))
        case "boolean":
            return {"type": "boolean"}, draw(st.booleans())
        case "null":
            return {"type": ["null", "boolean"]}, None
        case "array":
            schema, value = draw(pairs(depth - 1))
            size = draw(st.integers(0, 3))
            first = draw(st.lists(pairs(depth - 1), max_size=2))
            result: dict[str, Any] = {"type": "array", "items": schema}
            if first:
                result["prefixItems"] = [own for own, _ in first]
            array = [item for _, item in first] + [value] * size
            if draw(st.booleans()):
                result["minItems"] = draw(st.integers(0, len(array)))
            if draw(st.booleans()):
                result["maxItems"] = len(array) + draw(st.integers(0, 200))
            return result, array
        case "object":
            members = draw(st.dictionaries(names, pairs(depth - 1), max_size=4))
            chosen = {name for name in members if draw(st.booleans())}
            required = [name for name in sorted(chosen) if draw(st.booleans())]
            result = {
                "type": "object",
                "properties": {name: schema for name, (schema, _) in members.items()},
                "required": required,
            }
            instance = {name: own for name, (_, own) in members.items() if name in chosen}
            extra = draw(st.one_of(st.none(), st.just(False), st.just(True), pairs(0)))
            if extra is not None:
                result["additionalProperties"] = extra[0] if isinstance(extra, tuple) else extra
            if extra is None or extra is False:
                low = draw(st.integers(0, len(instance)))
                result["minProperties"] = low
                result["maxProperties"] = len(instance) + draw(st.integers(0, 2))
            return result, instance
        case "any":
            branches = draw(st.lists(pairs(depth - 1), min_size=1, max_size=3))
            _, value = draw(st.sampled_from(branches))
            return {"anyOf": [schema for schema, _ in branches]}, value
        case _:
            schema, value = draw(pairs(depth - 1))
            return {"allOf": [{"$ref": "#/$defs/x"}, True], "$defs": {}, "x-schema": schema}, value


def rooted(schema: Any) -> Any:
    """Definitions made inside move to the root, each under its own name."""
    definitions: dict[str, Any] = {}

    def move(part: Any) -> Any:
        if isinstance(part, list):
            return [move(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "x-schema" in part:
            name = f"d{len(definitions)}"
            definitions[name] = None
            definitions[name] = move(part["x-schema"])
            return {"allOf": [{"$ref": f"#/$defs/{name}"}, True]}
        return {key: move(value) for key, value in part.items()}

    moved = move(schema)
    return {**moved, "$defs": definitions} if definitions else moved


@quick
@given(pairs(), st.integers(0, 1000))
def test_texts_validate_and_instances_are_accepted(
    vocabulary: Vocabulary, pair: tuple[Any, Any], seed: int
) -> None:
    schema, instance = rooted(pair[0]), pair[1]
    grammar = json_schema_to_gbnf(schema)
    check = jsonschema.Draft202012Validator(schema)
    for attempt in range(2):
        text = vocabulary.walk(grammar, random.Random(seed + attempt), limit=150)
        if text is not None:
            check.validate(json.loads(text))
    check.validate(instance)
    text = json.dumps(instance, ensure_ascii=False)
    if all(character not in text for character in ("e+", "e-")):
        assert vocabulary.accepts(grammar, text)


@quick
@given(pairs(1), pairs(1), st.integers(0, 1000))
def test_both_parts_of_all_of_hold(
    vocabulary: Vocabulary, first: tuple[Any, Any], second: tuple[Any, Any], seed: int
) -> None:
    schema = {"allOf": [rooted(first[0]), rooted(second[0])]}
    assume("$ref" not in json.dumps(schema))
    try:
        grammar = json_schema_to_gbnf(schema)
    except InvalidFormat:
        return
    vocabulary.check(grammar)
    text = vocabulary.walk(grammar, random.Random(seed), limit=150)
    if text is not None:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@quick
@given(st.lists(pairs(1), min_size=2, max_size=3), st.integers(0, 1000))
def test_exactly_one_branch_of_one_of_holds(
    vocabulary: Vocabulary, branches: list[tuple[Any, Any]], seed: int
) -> None:
    schema = {"oneOf": [rooted(branch) for branch, _ in branches]}
    assume("$ref" not in json.dumps(schema))
    try:
        grammar = json_schema_to_gbnf(schema)
    except InvalidFormat:
        return
    text = vocabulary.walk(grammar, random.Random(seed), limit=150)
    if text is not None:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


decimals = st.integers(-(10**6), 10**6).flatmap(
    lambda n: st.integers(0, 6).map(lambda places: float(Decimal(n).scaleb(-places)))
)


@quick
@given(decimals, decimals, st.booleans(), st.lists(decimals, max_size=6), st.integers(0, 99))
def test_number_bounds_are_exact(
    vocabulary: Vocabulary, a: float, b: float, open_ends: bool, others: list[float], seed: int
) -> None:
    low, high = min(a, b), max(a, b)
    assume(low < high or not open_ends)
    schema: Any = {"type": "number", "minimum": low, "maximum": high}
    if open_ends:
        schema = {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
    grammar = json_schema_to_gbnf(schema)
    check = jsonschema.Draft202012Validator(schema)
    for value in (low, high, (low + high) / 2, *others):
        text = f"{Decimal(repr(value)):.6f}".rstrip("0").rstrip(".")
        text = "0" if text == "-0" else text
        assert vocabulary.accepts(grammar, text) == check.is_valid(json.loads(text)), text
    text = vocabulary.walk(grammar, random.Random(seed))
    assert text is not None
    check.validate(json.loads(text))


@quick
@given(st.integers(), st.integers(), st.lists(st.integers(), max_size=6))
def test_integer_bounds_are_exact(
    vocabulary: Vocabulary, a: int, b: int, others: list[int]
) -> None:
    low, high = min(a, b), max(a, b)
    grammar = json_schema_to_gbnf({"type": "integer", "minimum": low, "maximum": high})
    for value in (low, high, low - 1, high + 1, (low + high) // 2, *others):
        assert vocabulary.accepts(grammar, str(value)) == (low <= value <= high), value


@quick
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 500))
def test_item_counts_are_exact(vocabulary: Vocabulary, a: int, b: int, size: int) -> None:
    low, high = min(a, b), max(a, b)
    schema: Any = {"type": "array", "items": {"const": 0}, "minItems": low, "maxItems": high}
    grammar = json_schema_to_gbnf(schema)
    for tried in (low - 1, low, high, high + 1, size):
        if tried >= 0:
            text = json.dumps([0] * tried, separators=(",", ":"))
            assert vocabulary.accepts(grammar, text) == (low <= tried <= high)


patterns = st.recursive(
    st.sampled_from(
        ["a", "b", "e", '"', r"\\", r"\n", r"\d", r"\w", r"\s", r"\S", r"\W", r"\D", ".", "[a-c]",
         "[^a-c]", r"[\-\]x]", r"[^\d]"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,}", "{0,3}", "+?"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)  # fmt: skip


@quick
@given(patterns, st.sampled_from(["^{}$", "{}", "^{}", "{}$", "^(?:{})$"]), st.data())
def test_patterns_mean_what_they_mean_elsewhere(
    vocabulary: Vocabulary, pattern: str, form: str, data: st.DataObject
) -> None:
    pattern = form.format(pattern)
    try:
        grammar = json_schema_to_gbnf({"type": "string", "pattern": pattern})
    except InvalidFormat as refusal:
        assume("can be empty" in str(refusal))
        return
    text = vocabulary.walk(grammar, random.Random(data.draw(st.integers(0, 99))), limit=150)
    if text is not None:
        assert re.search(pattern, json.loads(text)), text
    ascii_only = st.characters(max_codepoint=126)
    string = data.draw(st.from_regex(re.compile(pattern, re.ASCII), alphabet=ascii_only))
    # Python's $ also matches before a last line break and its dot takes a carriage return;
    # which control characters count as space differs.
    if not string.endswith("\n") and not set(string) & set("\r\x1c\x1d\x1e\x1f"):
        assert vocabulary.accepts(grammar, json.dumps(string)), string


KEYWORDS = (
    "type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "properties", "required", "items",
    "prefixItems", "additionalProperties", "minItems", "maxLength", "pattern", "format",
    "minimum", "multipleOf",
)  # fmt: skip
json_values = st.recursive(
    st.one_of(scalars, st.sampled_from(["string", "#/a", "object"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(KEYWORDS),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=200, deadline=None, suppress_health_check=SUPPRESSED)
@given(
    st.dictionaries(
        st.sampled_from(KEYWORDS),
        json_values,
    )
)
def test_nonsense_is_refused_or_taken_but_never_fails_otherwise(
    vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    try:
        grammar = json_schema_to_gbnf(schema)
    except InvalidFormat:
        return
    vocabulary.check(grammar)

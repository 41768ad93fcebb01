"""What cannot be enforced is refused by name and place, and nothing reaches llama.cpp that it
could not take."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agent.inference.errors import InvalidFormat
from agent.inference.grammar import json_schema_to_gbnf
from tests.unit.grammar.sampler import GrammarRefused, Vocabulary

UNSUPPORTED: Any = {
    "not": {"type": "null"},
    "if": True,
    "then": True,
    "else": True,
    "patternProperties": {"^a": True},
    "propertyNames": {"pattern": "a"},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": True},
    "dependencies": {"a": ["b"]},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "contains": True,
    "minContains": 1,
    "maxContains": 1,
    "$dynamicRef": "#a",
    "$anchor": "a",
    "nullable": True,
    "madeUp": 1,
}


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_an_unsupported_keyword_is_named_with_its_place(keyword: str) -> None:
    inner: Any = {"type": "object", keyword: UNSUPPORTED[keyword]}
    with pytest.raises(InvalidFormat) as refusal:
        json_schema_to_gbnf({"type": "array", "items": {"properties": {"p": inner}}})
    assert f'"{keyword}"' in str(refusal.value)
    assert "#/items/properties/p" in str(refusal.value)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"multipleOf": 0.5}, '"multipleOf"'),
        ({"type": "integer", "multipleOf": 3}, '"multipleOf"'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"type": "string", "format": "regex"}, "'regex'"),
        ({"type": "number", "format": "money"}, "'money'"),
        ({"type": "string", "format": "date", "pattern": "a"}, '"format"'),
        ({"type": "string", "format": 3}, '"format"'),
        ({"type": "strin"}, '"strin"'),
        ({"type": 3}, '"type"'),
        ({"type": []}, "no finite"),
        ({"enum": 3}, '"enum"'),
        ({"enum": []}, "no finite"),
        ({"enum": ["a"], "pattern": "b"}, '"enum"'),
        ({"enum": [{"a": 1}], "required": ["a"]}, '"enum"'),
        ({"enum": [[1]], "maxItems": 1}, '"enum"'),
        ({"minLength": -1}, '"minLength"'),
        ({"minLength": 1.5}, '"minLength"'),
        ({"minLength": True}, '"minLength"'),
        ({"minLength": float("inf")}, '"minLength"'),
        ({"type": "string", "maxLength": 2**60}, "larger than"),
        ({"minimum": "1"}, '"minimum"'),
        ({"minimum": 0, "exclusiveMinimum": True}, '"exclusiveMinimum"'),
        ({"minimum": float("nan")}, '"minimum"'),
        ({"minimum": 10**400}, '"minimum"'),
        ({"properties": []}, '"properties"'),
        ({"properties": {"a": 3}}, "#/properties/a"),
        ({"required": "a"}, '"required"'),
        ({"required": [1]}, '"required"'),
        ({"additionalProperties": 1}, '"additionalProperties"'),
        ({"items": 1}, '"items"'),
        ({"prefixItems": [1]}, "#/prefixItems/0"),
        ({"prefixItems": []}, '"prefixItems"'),
        ({"anyOf": []}, '"anyOf"'),
        ({"anyOf": [1]}, "#/anyOf/0"),
        ({"oneOf": {}}, '"oneOf"'),
        ({"$ref": 1}, '"$ref"'),
        ({"$ref": "http://example.com/a"}, '"$ref"'),
        ({"$ref": "#/nowhere"}, '"$ref"'),
        ({"$ref": "#/$defs/99999999999999999999", "$defs": []}, '"$ref"'),
        ({"type": "object", "minProperties": 3}, '"minProperties"'),
        ({"properties": {"a": True}, "minProperties": 9, "additionalProperties": True}, '"minProp'),
        ({"type": "object", "maxProperties": 10**7}, '"maxProperties"'),
        ({"oneOf": [{"type": "string"}, {"minLength": 2, "type": "string"}]}, '"oneOf"'),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, '"oneOf"'),
        ({"oneOf": [{"properties": {"a": True}}, {"properties": {"b": True}}]}, '"oneOf"'),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, '"pattern"'),
        ({"type": "string", "pattern": "^a*b*$", "maxLength": 3}, '"minLength" and "maxLength"'),
        ({"type": "string", "pattern": 1}, '"pattern"'),
        (False, "no finite"),
        ({"type": "array", "items": False, "minItems": 1}, "no finite"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "no finite"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no finite"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no finite"),
        ({"$ref": "#"}, '"$ref"'),
        ({"anyOf": [{"$ref": "#"}]}, ""),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "refers to itself"),
        ({"allOf": [{"$ref": "#"}]}, '"$ref"'),
        ({"const": float("nan")}, "finite"),
    ],
)
def test_what_cannot_be_enforced_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(InvalidFormat) as refusal:
        json_schema_to_gbnf(schema)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=a)b", "lookahead"),
        ("(?!a)b", "lookahead"),
        ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "lookbehind"),
        (r"(a)\1", "backreference"),
        (r"(?<n>a)\k<n>", "backreference"),
        (r"\bword", "word boundary"),
        (r"\p{L}", "Unicode property"),
        ("(?i)a", "flags"),
        ("(?>a)", "atomic"),
        ("a++", "possessive"),
        ("a**", "quantifier after"),
        ("*a", "without anything"),
        ("(a", "unmatched ("),
        ("a)", "unmatched )"),
        ("[a", "unmatched ["),
        ("a]", "unescaped ]"),
        ("a{", "unescaped {"),
        ("[z-a]", "swapped"),
        ("a{3,1}", "swapped"),
        (r"[\d-z]", "between classes"),
        (r"[\D]", "in a set"),
        ("(a?)*", "can be empty"),
        ("a^b", "anchor"),
        ("(^a)", "anchor"),
        ("a$b", "anchor"),
        ("\\", "trailing"),
        (r"\q", r"\q"),
        (r"\xZZ", "hexadecimal"),
        (r"\ud800", "surrogate"),
        (r"\01", "octal"),
        ("a{99999999999999999999}", "too large"),
        ("a" * 5000, "longer than"),
        ("(" * 60 + ")" * 60, "nested"),
        ("^(?:(?:a|aa){1,100}b?){1,100}$", "ambiguous"),
        ("^(.*,){1,300}$", "ambiguous"),
    ],
)
def test_what_is_not_regular_is_refused_by_name(pattern: str, words: str) -> None:
    with pytest.raises(InvalidFormat) as refusal:
        json_schema_to_gbnf({"type": "string", "pattern": pattern})
    assert words in str(refusal.value)


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(levels: int) -> Any:
    parts: dict[str, Any] = {"d0": {"properties": {"a": {"type": "null"}}}}
    for level in range(1, levels):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        parts[f"d{level}"] = {"allOf": [below, below]}
    return {"$defs": parts, "$ref": f"#/$defs/d{levels - 1}"}


def branching(levels: int) -> Any:
    parts: dict[str, Any] = {"d0": {"type": "null"}}
    for level in range(1, levels):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        parts[f"d{level}"] = {"anyOf": [{"maxLength": level, **below}, {"minLength": 1, **below}]}
    return {"$defs": parts, "$ref": f"#/$defs/d{levels - 1}"}


@pytest.mark.parametrize(
    "schema",
    [
        nested(20_000),
        nested(201),
        doubling(40),
        branching(60),
        {"enum": list(range(30_000))},
        {"enum": ["x" * 60_000, "y" * 60_000]},
        {"properties": {f"p{i}": {"type": "null"} for i in range(9_000)}},
        {"properties": {"a" * 900 + str(i): True for i in range(900)}, "maxProperties": 20},
    ],
)
def test_oversized_schemas_are_refused_quickly(schema: Any) -> None:
    begin = time.perf_counter()
    with pytest.raises(InvalidFormat):
        json_schema_to_gbnf(schema)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    "schema",
    [
        nested(90),
        {"properties": {f"p{i}": {"type": "null"} for i in range(900)}},
        {"type": "string", "minLength": 2**40, "maxLength": 2**53},
        {"type": "array", "items": {"type": "integer"}, "minItems": 5000, "maxItems": 100_000},
        {"type": "array", "prefixItems": [{"type": "null"}] * 900},
        {"anyOf": [{"const": f"value {i}"} for i in range(2_000)]},
        {
            "type": "string",
            "pattern": f"[{''.join(chr(0x4E00 + 2 * i) for i in range(1000))}]{{1,60}}",
        },
        {"type": "string", "pattern": "^(?:a{1,2000}|(?:bc?){1,5000})$"},
        {"type": "string", "pattern": "^(?:(?:(?:a|b){60}|c){60}|d){60}$"},
        {"type": "integer", "minimum": -(10**300) - 7, "maximum": 10**300 + 3},
    ],
)
def test_large_schemas_within_the_limits_are_taken(schema: Any, vocabulary: Vocabulary) -> None:
    begin = time.perf_counter()
    vocabulary.check(json_schema_to_gbnf(schema))
    assert time.perf_counter() - begin < 5


def test_the_sampler_of_these_tests_notices_a_bad_grammar(vocabulary: Vocabulary) -> None:
    with pytest.raises(GrammarRefused):
        vocabulary.check("root ::= root")


def test_a_count_beyond_the_engines_own_limit_is_still_a_limit(vocabulary: Vocabulary) -> None:
    grammar = json_schema_to_gbnf({"type": "string", "maxLength": 2500})
    assert vocabulary.accepts(grammar, '"' + "x" * 2500 + '"')
    assert not vocabulary.accepts(grammar, '"' + "x" * 2501 + '"')

"""The table of schemas against llama.cpp's own sampler and the jsonschema package."""

from __future__ import annotations

import json
import random
from datetime import date, datetime
from typing import Any

import jsonschema
import pytest

from agent.inference.grammar import JSON_GRAMMAR, grammar_for, json_schema_to_gbnf
from agent.inference.request import JsonFormat, SchemaFormat
from tests.unit.grammar.cases import CASES, Case
from tests.unit.grammar.sampler import Vocabulary

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def validator(schema: Any) -> Any:
    draft7 = isinstance(schema, dict) and isinstance(schema.get("items"), list)
    kind = jsonschema.Draft7Validator if draft7 else jsonschema.Draft202012Validator
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@each_case
def test_random_texts_validate(case: Case, vocabulary: Vocabulary) -> None:
    grammar = json_schema_to_gbnf(case.schema)
    check = validator(case.schema)
    ended = 0
    for seed in range(8):
        text = vocabulary.walk(grammar, random.Random(seed))
        if text is not None:
            ended += 1
            check.validate(json.loads(text))
    assert ended or case.name in ("a long minimum", "many items")


@each_case
def test_valid_instances_are_accepted(case: Case, vocabulary: Vocabulary) -> None:
    grammar = json_schema_to_gbnf(case.schema)
    for instance in case.valid:
        validator(case.schema).validate(instance)
        for indent in (None, 2, "\t"):
            text = json.dumps(instance, ensure_ascii=False, indent=indent)
            assert vocabulary.accepts(grammar, text), text
        text = json.dumps(instance, ensure_ascii=False, separators=(",", ":"))
        assert vocabulary.accepts(grammar, text), text


@each_case
def test_invalid_instances_are_not_accepted(case: Case, vocabulary: Vocabulary) -> None:
    grammar = json_schema_to_gbnf(case.schema)
    for instance in case.invalid:
        text = json.dumps(instance, ensure_ascii=False)
        assert not vocabulary.accepts(grammar, text), text


@pytest.mark.parametrize(
    "text",
    [
        '"\n"', '"\x00"', '"\\x"', '"\\ud800"', '"\\udc00"', '"\\ud800\\u0041"', '"a', "01", "1.",
        ".5", "+1", "1e", "NaN", "[1,]", "[1 ,2]", "{,}", '{"a":}', "{a:1}", "[1]]", " 1", "1 ",
        "[  1]", "[\n\n1]", "tru", "1e999",
    ],
)  # fmt: skip
def test_broken_json_is_never_accepted(text: str, vocabulary: Vocabulary) -> None:
    assert not vocabulary.accepts(json_schema_to_gbnf(True), text)


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\u00e9\\/"', "-0", "1E+05", "[\n\t1\n]"])
def test_unusual_json_is_accepted(text: str, vocabulary: Vocabulary) -> None:
    assert vocabulary.accepts(json_schema_to_gbnf(True), text)


def test_an_escape_counts_as_one_character(vocabulary: Vocabulary) -> None:
    grammar = json_schema_to_gbnf({"type": "string", "minLength": 1, "maxLength": 1})
    for text in ('"\\n"', '"\\u00e9"', '"\\ud83d\\ude00"', '"😀"'):
        assert vocabulary.accepts(grammar, text)
    assert not vocabulary.accepts(grammar, '"\\u00e9\\n"')


def test_json_mode_gives_objects_and_arrays_only(vocabulary: Vocabulary) -> None:
    assert grammar_for(JsonFormat()) == JSON_GRAMMAR
    assert vocabulary.accepts(JSON_GRAMMAR, '{"a": [1, {"b": null}]}')
    assert vocabulary.accepts(JSON_GRAMMAR, "[]")
    for scalar in ("1", '"a"', "null", "true"):
        assert not vocabulary.accepts(JSON_GRAMMAR, scalar)
    for seed in range(20):
        text = vocabulary.walk(JSON_GRAMMAR, random.Random(seed))
        assert text is None or isinstance(json.loads(text), dict | list)


def test_a_schema_format_is_converted() -> None:
    assert grammar_for(SchemaFormat({"type": "null"})) == json_schema_to_gbnf({"type": "null"})


def test_a_key_is_not_smuggled_in_by_an_escape(vocabulary: Vocabulary) -> None:
    grammar = json_schema_to_gbnf(
        {"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}}
    )
    assert vocabulary.accepts(grammar, '{"b":1}')
    assert not vocabulary.accepts(grammar, '{"a":1}')
    assert not vocabulary.accepts(grammar, '{"\\u0061":1}')


def test_generated_dates_exist(vocabulary: Vocabulary) -> None:
    dates = json_schema_to_gbnf({"type": "string", "format": "date"})
    moments = json_schema_to_gbnf({"type": "string", "format": "date-time"})
    for seed in range(60):
        text = vocabulary.walk(dates, random.Random(seed))
        assert text is not None
        date.fromisoformat(json.loads(text))
        text = vocabulary.walk(moments, random.Random(seed))
        assert text is not None
        datetime.fromisoformat(json.loads(text).partition(".")[0])


def test_a_large_enum_costs_few_parses(vocabulary: Vocabulary) -> None:
    values: Any = [f"value {number}" for number in range(1500)] + ["value", "", "v", 'va"']
    grammar = json_schema_to_gbnf({"enum": values})
    for value in values[::50] + values[-4:]:
        assert vocabulary.accepts(grammar, json.dumps(value))
    for value in ("val", "value ", "value 1500", "value 00"):
        assert not vocabulary.accepts(grammar, json.dumps(value))
    assert max(line.count("|") for line in grammar.splitlines()) < 40

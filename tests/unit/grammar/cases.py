"""Schemas with instances that their grammars must take and must not take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    name: str
    schema: Any
    valid: tuple[Any, ...] = ()
    invalid: tuple[Any, ...] = ()


def _object(properties: Any, *required: str, **more: Any) -> Any:
    return {"type": "object", "properties": properties, "required": list(required), **more}


TREE = {
    "$defs": {
        "node": _object(
            {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "value",
        )
    },
    "$ref": "#/$defs/node",
}
LIST = {
    "definitions": {
        "list": {
            "anyOf": [
                {"type": "null"},
                _object(
                    {"head": {"type": "boolean"}, "tail": {"$ref": "#/definitions/list"}},
                    "head",
                    "tail",
                ),
            ]
        }
    },
    "$ref": "#/definitions/list",
}

CASES = (
    Case("anything", True, (None, 1.5, -2e10, 1e-7, "x", [1, [2]], {"a": {"b": []}}, 0.1 + 0.2)),
    Case("an empty schema", {}, (None, {"": 0})),
    Case(
        "annotations",
        {"title": "t", "default": 3, "examples": [1], "$comment": "c", "x-order": 1},
        (1,),
    ),
    Case("null", {"type": "null"}, (None,), (0, "")),
    Case("boolean", {"type": "boolean"}, (True, False), (0, None)),
    Case("integer", {"type": "integer"}, (0, -1, 2**63 - 1), (1.5, "1")),
    Case("number", {"type": "number"}, (0, -1.25, 6.02e23, 1e-300, 5e-05), ("1", None)),
    Case("string", {"type": "string"}, ("", 'q"\\/\b\f\n\r\t', "é😀\u2028\x7f", "\x00"), (1,)),
    Case("a list of types", {"type": ["string", "null", "integer"]}, ("a", None, 4), (1.5, True)),
    Case("integer and number", {"type": ["integer", "number"]}, (1, 1.5)),
    Case(
        "nested objects",
        _object({"a": _object({"b": _object({"c": {"type": "integer"}}, "c")}, "b")}, "a"),
        ({"a": {"b": {"c": 1}}},),
        ({"a": {"b": {}}}, {"a": 1}),
    ),
    Case(
        "optional properties",
        _object(
            {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer"}}, "b"
        ),
        ({"b": 1}, {"a": 1, "b": 2}, {"b": 1, "c": 2}, {"a": 1, "b": 2, "c": 3}),
        ({}, {"a": 1}, {"a": 1, "c": 3}, {"b": 1, "d": 2}),
    ),
    Case(
        "all properties optional",
        _object({"a": {"type": "null"}, "b": {"type": "null"}}),
        ({}, {"a": None}, {"b": None}, {"a": None, "b": None}),
        ({"c": 1},),
    ),
    Case("any object", {"type": "object"}, ({}, {"a": 1}, {"a": [1], "é": {}}), ([],)),
    Case("no properties", {"type": "object", "additionalProperties": False}, ({},), ({"a": 1},)),
    Case(
        "a map",
        {"type": "object", "additionalProperties": {"type": "integer"}},
        ({}, {"a": 1, 'b\n"': 2}),
        ({"a": "b"},),
    ),
    Case(
        "properties and a map",
        _object(
            {"ab": {"type": "string"}, "a": {"type": "null"}},
            "ab",
            additionalProperties={"type": "integer"},
        ),
        ({"ab": "x"}, {"ab": "x", "a": None, "abc": 1, "": 2}, {"ab": "x", "b": 3}),
        ({"ab": 1}, {"ab": "x", "c": "y"}, {"a": None}),
    ),
    Case(
        "open properties",
        _object({"n": {"type": "integer"}}, "n", additionalProperties=True),
        ({"n": 1}, {"n": 1, "m": "x", "nn": []}),
        ({"n": "x"},),
    ),
    Case(
        "a required name without property",
        {"type": "object", "required": ["k"]},
        ({"k": 1}, {"k": [], "z": 2}),
        ({}, {"z": 1}),
    ),
    Case(
        "at least two members",
        _object(
            {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}},
            minProperties=2,
            additionalProperties=False,
        ),
        ({"a": None, "c": None}, {"b": None, "c": None}, {"a": None, "b": None, "c": None}),
        ({}, {"a": None}),
    ),
    Case(
        "at most two members",
        _object(
            {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}, maxProperties=2
        ),
        ({}, {"b": None}, {"a": None, "c": None}),
        ({"a": None, "b": None, "c": None},),
    ),
    Case(
        "a bounded map that is not empty",
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 3,
            "additionalProperties": {"type": "integer"},
        },
        ({"a": 1}, {"a": 1, "b": 2, "c": 3}),
        ({}, {"a": 1, "b": 2, "c": 3, "d": 4}),
    ),
    Case(
        "property names to escape",
        _object({'"\\\n é': {"type": "null"}}, '"\\\n é'),
        ({'"\\\n é': None},),
        ({},),
    ),
    Case(
        "enum of everything",
        {"enum": ["a", 1, 1.5, None, True, [1, "x"], {"k": [True], "l": 2}, 'é"\\', [], {}]},
        ("a", 1, 1.5, None, True, [1, "x"], {"k": [True], "l": 2}, 'é"\\', [], {}),
        ("b", 2, False),
    ),
    Case("const", {"const": {"a": 1}}, ({"a": 1},), ({}, {"a": 2})),
    Case(
        "enum with a type",
        {"type": "string", "enum": ["a", 1, "bcd"], "maxLength": 2},
        ("a",),
        (1, "bcd"),
    ),
    Case(
        "enum with bounds",
        {"enum": [1, 2, 3, 4.5, "s"], "minimum": 2, "exclusiveMaximum": 4.5},
        (2, 3, "s"),
        (1, 4.5),
    ),
    Case("enum and const", {"enum": [1, 2], "const": 2}, (2,), (1,)),
    Case(
        "a recursive tree",
        TREE,
        ({"value": 1}, {"value": 1, "children": [{"value": 2, "children": []}]}),
        ({"children": []},),
    ),
    Case(
        "a recursive list",
        LIST,
        (None, {"head": True, "tail": {"head": False, "tail": None}}),
        ({"head": True},),
    ),
    Case(
        "recursion through the root",
        _object({"x": {"$ref": "#"}}),
        ({}, {"x": {"x": {}}}),
        ({"x": 1},),
    ),
    Case(
        "a pointer with escapes",
        {
            "$ref": "#/x-parts/a~1b/m~0n/0/%C3%A9",
            "x-parts": {"a/b": {"m~n": [{"é": {"type": "null"}}]}},
        },
        (None,),
        (1,),
    ),
    Case(
        "a reference with neighbours",
        {"$defs": {"s": {"type": "string", "minLength": 1}}, "$ref": "#/$defs/s", "maxLength": 2},
        ("a", "ab"),
        ("", "abc"),
    ),
    Case(
        "anyOf",
        {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]},
        ("x", 7),
        (3, None),
    ),
    Case(
        "anyOf with a base",
        _object(
            {"a": {"type": "integer"}, "b": {"type": "integer"}},
            anyOf=[{"required": ["a"]}, {"required": ["b"]}],
        ),
        ({"a": 1}, {"b": 1}, {"a": 1, "b": 2}),
        ({},),
    ),
    Case(
        "oneOf by type",
        {
            "oneOf": [
                {"type": "string"},
                {"type": "null"},
                {"type": "array", "items": {"type": "null"}},
            ]
        },
        ("", None, [None]),
        (1,),
    ),
    Case(
        "oneOf by a fixed property",
        {
            "oneOf": [
                _object({"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "kind"),
                _object({"kind": {"enum": ["dog", "wolf"]}, "name": {"type": "string"}}, "kind"),
            ]
        },
        ({"kind": "cat", "lives": 9}, {"kind": "wolf"}, {"kind": "dog", "name": "Rex"}),
        ({"kind": "cow"}, {"lives": 9}),
    ),
    Case(
        "oneOf by an optional tag",
        {
            "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
            "discriminator": {"propertyName": "t"},
            "$defs": {
                "a": _object({"t": {"const": "a", "default": "a"}, "x": {"type": "null"}}),
                "b": _object({"t": {"const": "b", "default": "b"}, "x": {"type": "null"}}),
            },
        },
        ({"t": "a"}, {"t": "b", "x": None}),
        ({}, {"x": None}, {"t": "c"}),
    ),
    Case(
        "pattern: classes in negated sets",
        {"type": "string", "pattern": r"^[^\d\s][^\w]$"},
        ("a-", "é!"),
        ("1-", " -", "ab", "\u0663-", "aé"),
    ),
    Case(
        "oneOf with a hundred tags",
        {
            "oneOf": [
                _object({"k": {"const": f"k{i}"}, "v": {"type": "integer"}}, "k")
                for i in range(100)
            ]
        },
        ({"k": "k0"}, {"k": "k99", "v": 1}),
        ({"k": "k100"}, {"v": 1}),
    ),
    Case(
        "oneOf by range",
        {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3}]},
        (3, 4),
    ),
    Case(
        "oneOf by required keys",
        {"oneOf": [_object({"a": {"type": "null"}}, "a"), _object({"b": {"type": "null"}}, "b")]},
        ({"a": None}, {"b": None}),
        ({"a": None, "b": None},),
    ),
    Case(
        "allOf",
        {
            "allOf": [
                _object({"a": {"type": "integer"}}, "a"),
                _object({"b": {"type": "string"}, "a": {"minimum": 3}}, "b"),
            ]
        },
        ({"a": 3, "b": "x"},),
        ({"a": 2, "b": "x"}, {"a": 3}),
    ),
    Case(
        "allOf with a closed part",
        {
            "allOf": [
                _object({"a": True}, additionalProperties=False),
                _object({"a": {"type": "null"}, "b": True}),
            ]
        },
        ({}, {"a": None}),
        ({"a": None, "b": 1},),
    ),
    Case(
        "allOf of types and enums",
        {"allOf": [{"type": ["integer", "string"]}, {"type": "number"}, {"enum": [1, 2.5, "a"]}]},
        (1,),
        (2.5, "a"),
    ),
    Case(
        "allOf of anyOf",
        {
            "allOf": [
                {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                {"anyOf": [{"minimum": 3}, {"maximum": -3}]},
            ]
        },
        (3, -4, None),
        (0,),
    ),
    Case(
        "an integer range",
        {"type": "integer", "minimum": -17, "maximum": 1204},
        (-17, -9, 0, 7, 99, 1000, 1204),
        (-18, 1205, 5000),
    ),
    Case(
        "a positive integer",
        {"type": "integer", "exclusiveMinimum": 0},
        (1, 9, 10, 10**12),
        (0, -1),
    ),
    Case("a negative integer", {"type": "integer", "maximum": -5}, (-5, -10, -123456), (-4, 0, 3)),
    Case(
        "an integer between fractions",
        {"type": "integer", "minimum": 0.5, "maximum": 2.5},
        (1, 2),
        (0, 3),
    ),
    Case(
        "a large integer bound",
        {"type": "integer", "maximum": 10**25, "minimum": 10**24},
        (10**24, 10**25),
        (10**24 - 1, 10**25 + 1),
    ),
    Case("multiples of one", {"type": "number", "multipleOf": 1}, (1, -3), (1.5,)),
    Case(
        "32 bits",
        {"type": "integer", "format": "int32"},
        (2**31 - 1, -(2**31)),
        (2**31, -(2**31) - 1),
    ),
    Case(
        "a probability",
        {"type": "number", "minimum": 0, "maximum": 1},
        (0, 1, 0.5, 0.125, 1.0),
        (1.01, -0.1, 2),
    ),
    Case(
        "an open interval",
        {"type": "number", "exclusiveMinimum": -1.25, "exclusiveMaximum": 2.5},
        (-1.24, 0, 2.4999, -0.5),
        (-1.25, 2.5, 3),
    ),
    Case(
        "a tiny interval",
        {"type": "number", "minimum": 0.015, "maximum": 0.02},
        (0.015, 0.0175, 0.02),
        (0.014, 0.021, 0),
    ),
    Case("a number above", {"type": "number", "minimum": 99.5}, (99.5, 100, 12345.678), (99.4, 0)),
    Case("a number below", {"type": "number", "exclusiveMaximum": 0}, (-0.1, -5, -1234), (0, 0.5)),
    Case(
        "lengths",
        {"type": "string", "minLength": 2, "maxLength": 3},
        ("ab", "é😀", "\n\t\u2028"),
        ("a", "abcd"),
    ),
    Case(
        "a long minimum",
        {"type": "string", "minLength": 200, "maxLength": 500},
        ("x" * 200, "y" * 333, "z" * 500),
        ("x" * 199, "x" * 501),
    ),
    Case("an enormous maximum", {"type": "string", "maxLength": 2**31 - 1}, ("", "x" * 300)),
    Case(
        "pattern: classes",
        {"type": "string", "pattern": r"^[A-Z][a-z]{2,4}-\d+$"},
        ("Abc-1", "Abcde-2024"),
        ("abc-1", "Ab-1", "Abcdef-1", "Abc-"),
    ),
    Case(
        "pattern: groups",
        {"type": "string", "pattern": r"^(foo|ba(r|z))+(?:!|\?)?$"},
        ("foo", "barbaz!", "foobar?"),
        ("fo", "", "foo!!"),
    ),
    Case(
        "pattern: not anchored",
        {"type": "string", "pattern": "ab"},
        ("ab", "xxabyy", "aab"),
        ("a", "ba"),
    ),
    Case(
        "pattern: anchored branches",
        {"type": "string", "pattern": "^a|b$"},
        ("a", "axx", "xxb"),
        ("ba",),
    ),
    Case(
        "pattern: specials",
        {"type": "string", "pattern": r'^"\\\n[\x41\u00e9\-\]^]$'},
        ('"\\\nA', '"\\\né', '"\\\n-', '"\\\n]', '"\\\n^'),
        ('"\\\nB',),
    ),
    Case(
        "pattern: shorthands",
        {"type": "string", "pattern": r"^\w\s\S\D.[^a-z]$"},
        ("_ éx😀A",),
        ("- aaaA", "a aaaa"),
    ),
    Case(
        "pattern: lazy and open counts",
        {"type": "string", "pattern": r"^a{2,}?b*?c{3}$"},
        ("aaccc", "aaabccc"),
        ("accc", "aacc"),
    ),
    Case(
        "pattern and lengths",
        {"type": "string", "pattern": "^[a-z0-9_]+$", "minLength": 3, "maxLength": 5},
        ("abc", "a_0zz"),
        ("ab", "abcdef", "AB3"),
    ),
    Case(
        "pattern with a prefix and lengths",
        {"type": "string", "pattern": "^id-[0-9]*$", "maxLength": 6},
        ("id-", "id-123"),
        ("id-1234",),
    ),
    Case(
        "date",
        {"type": "string", "format": "date"},
        ("2024-02-29", "1999-12-31", "2000-02-29"),
        ("2023-02-29", "1900-02-29", "2024-13-01", "2024-04-31", "0000-01-01"),
    ),
    Case(
        "time",
        {"type": "string", "format": "time"},
        ("23:59:59Z", "08:30:06.283185+01:00"),
        ("24:00:00Z", "12:00:00", "12:60:00Z"),
    ),
    Case(
        "date-time",
        {"type": "string", "format": "date-time"},
        ("1963-06-19T08:30:06.283185Z", "2024-02-29T00:00:00-08:00"),
        ("1963-06-19", "1963-06-19 08:30:06Z"),
    ),
    Case(
        "duration",
        {"type": "string", "format": "duration"},
        ("P3Y6M4DT12H30M5S", "P1W", "PT36H", "P1D"),
        ("P", "PT", "P1S", "P1Y2D"),
    ),
    Case(
        "uuid",
        {"type": "string", "format": "uuid"},
        ("2eb8aa08-aa98-11ea-b4aa-73b441d16380",),
        ("2eb8aa08aa9811eab4aa73b441d16380",),
    ),
    Case(
        "ipv4",
        {"type": "string", "format": "ipv4"},
        ("0.0.0.0", "255.249.199.9"),
        ("256.0.0.1", "1.2.3", "01.2.3.4"),
    ),
    Case(
        "email",
        {"type": "string", "format": "email"},
        ("joe.bloggs+tag@example.com",),
        ("joe", "@example.com", "a@b"),
    ),
    Case(
        "hostname",
        {"type": "string", "format": "hostname"},
        ("www.example.com", "a-b.c"),
        ("-a", "a..b", ""),
    ),
    Case(
        "items",
        {"type": "array", "items": {"type": "integer"}},
        ([], [1], [1, 2, 3]),
        (["a"], [1, None]),
    ),
    Case("any array", {"type": "array"}, ([], [1, "a", {}])),
    Case(
        "item counts",
        {"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 3},
        ([None] * 2, [None] * 3),
        ([], [None], [None] * 4),
    ),
    Case(
        "many items",
        {"type": "array", "items": {"type": "null"}, "minItems": 150, "maxItems": 300},
        ([None] * 150, [None] * 300),
        ([None] * 149, [None] * 301),
    ),
    Case("no items", {"type": "array", "maxItems": 0}, ([],), ([1],)),
    Case(
        "a closed tuple",
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
        ([], [1], [1, "a"]),
        (["a"], [1, "a", 2]),
    ),
    Case(
        "a tuple with more",
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": {"type": "null"},
            "minItems": 3,
            "maxItems": 4,
        },
        ([1, "a", None], [1, "a", None, None]),
        ([1, "a"], [1, "a", None, None, None]),
    ),
    Case(
        "draft 7 tuples",
        {
            "type": "array",
            "items": [{"type": "integer"}],
            "additionalItems": {"type": "string"},
            "minItems": 1,
        },
        ([1], [1, "a", "b"]),
        ([], [1, 2]),
    ),
    Case(
        "uniqueness of one item",
        {"type": "array", "uniqueItems": True, "maxItems": 1, "items": {"type": "null"}},
        ([], [None]),
    ),
    Case(
        "types from keywords",
        {
            "properties": {
                "a": {"minLength": 1},
                "b": {"minimum": 3},
                "c": {"items": {"type": "null"}},
            }
        },
        ({"a": "x", "b": 3.5, "c": [None]},),
        ({"a": ""}, {"b": 2}),
    ),
    Case(
        "an impossible option",
        _object({"a": False, "b": {"type": "null"}}),
        ({}, {"b": None}),
        ({"a": 1},),
    ),
    Case(
        "an endless option",
        _object(
            {"a": {"$ref": "#/$defs/e"}, "b": {"type": "null"}},
            **{"$defs": {"e": _object({"e": {"$ref": "#/$defs/e"}}, "e")}},
        ),
        ({}, {"b": None}),
    ),
    Case(
        "uri",
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
        ("https://example.com", "http://a.b:80/c/d?e=f#g"),
        ("example.com", "https://", "https://a b"),
    ),
    Case(
        "ipv6",
        {"type": "string", "format": "ipv6"},
        ("2001:db8:0:0:0:0:0:1",),
        ("1:2", "g:0:0:0:0:0:0:1"),
    ),
    Case(
        "a model as Pydantic describes it",
        {
            "$defs": {
                "Address": _object(
                    {
                        "street": {"title": "Street", "type": "string"},
                        "zip": {"pattern": "^[0-9]{5}$", "type": "string"},
                    },
                    "street",
                    "zip",
                    title="Address",
                ),
                "Role": {"enum": ["admin", "user"], "title": "Role", "type": "string"},
            },
            "description": "A person.",
            "title": "Person",
            **_object(
                {
                    "name": {"title": "Name", "type": "string", "minLength": 1},
                    "age": {
                        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
                        "default": None,
                    },
                    "role": {"$ref": "#/$defs/Role", "default": "user"},
                    "addresses": {
                        "items": {"$ref": "#/$defs/Address"},
                        "type": "array",
                        "maxItems": 4,
                    },
                    "scores": {"additionalProperties": {"type": "number"}, "type": "object"},
                    "born": {"format": "date", "type": "string"},
                    "pair": {
                        "type": "array",
                        "prefixItems": [{"type": "integer"}, {"type": "string"}],
                        "minItems": 2,
                        "maxItems": 2,
                    },
                },
                "name",
            ),
        },
        (
            {"name": "Ann"},
            {
                "name": "Ann",
                "age": 3,
                "role": "admin",
                "addresses": [{"street": "x", "zip": "12345"}],
                "scores": {"a": 1.5},
                "born": "2000-01-01",
                "pair": [1, "b"],
            },
        ),
        (
            {"name": ""},
            {"name": "A", "age": -1},
            {"name": "A", "role": "root"},
            {"name": "A", "pair": [1]},
        ),
    ),
    Case(
        "a strict schema with tools",
        _object(
            {
                "steps": {
                    "type": "array",
                    "items": _object(
                        {"explanation": {"type": "string"}, "output": {"type": ["string", "null"]}},
                        "explanation",
                        "output",
                        additionalProperties=False,
                    ),
                },
                "final": {"type": "boolean"},
            },
            "steps",
            "final",
            additionalProperties=False,
        ),
        (
            {"steps": [], "final": True},
            {"steps": [{"explanation": "e", "output": None}], "final": False},
        ),
        (
            {"steps": []},
            {"final": True, "steps": []},
            {"steps": [{"explanation": "e"}], "final": True},
        ),
    ),
)

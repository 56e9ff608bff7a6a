# SPDX-License-Identifier: Apache-2.0
"""Shapes: the schema for an API server, and the same check here."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.errors import Problems
from mailproxy_config.schema import (
    Anything,
    Flag,
    Integer,
    IntOrText,
    Labels,
    ListOf,
    Record,
    Rule,
    Shape,
    Text,
    kind_of,
)

_EVEN = Rule(expression="self % 2 == 0", message="must be even", holds=lambda value: value % 2 == 0)
_ONE_OF = Rule(
    expression="has(self.a) != has(self.b)",
    message="set one of a and b",
    holds=lambda value: ("a" in value) != ("b" in value),
    field_path=".a",
)
_CEL_ONLY = Rule(expression="true", message="never told here", holds=None, reason="FieldValueRequired")
_RECORD = Record(
    fields={"a": Flag(), "b": Integer(maximum=9)}, required=("b",), descriptions={"a": "A flag."}
)


def problems_of(shape: Shape, value: Any) -> list[str]:
    problems = Problems()
    shape.check(value, "x", problems)
    return list(map(str, problems))


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (Flag(), True),
        (Integer(minimum=1, maximum=3), 3),
        (Text(longest=3), ""),
        (Text(longest=9, words=("a", "b")), "b"),
        (Text(longest=9, pattern="^a+$", hint="some a"), "aaa"),
        (IntOrText(), 5),
        (IntOrText(pattern="^auto$", longest=4), "auto"),
        (IntOrText(rules=(_EVEN,)), 4),
        (ListOf(items=Flag(), most=2), [True]),
        (ListOf(items=_RECORD, most=2, keys=("b",)), [{"b": 1}, {"b": 2}]),
        (_RECORD, {"a": True, "b": 1}),
        (Labels(values=Text(longest=3)), {"k": "v"}),
        (Anything(), {"what": ["ever"]}),
    ],
)
def test_what_has_the_shape(shape: Shape, value: object) -> None:
    assert problems_of(shape, value) == []


@pytest.mark.parametrize(
    ("shape", "value", "reasons"),
    [
        (Flag(), "yes", ["x: must be true or false, not text; write true, without quotes"]),
        (Flag(), "OFF", ["x: must be true or false, not text; write false, without quotes"]),
        (Flag(), "maybe", ["x: must be true or false, not text"]),
        (Integer(), True, ["x: must be a whole number, not a boolean"]),
        (Integer(), 1.5, ["x: must be a whole number, not a number"]),
        (Integer(minimum=1, maximum=65535), 99999, ["x: 99999 is out of range 1 to 65535"]),
        (Text(longest=3), None, ["x: must be text, not nothing"]),
        (Text(longest=3), False, ["x: must be text, not a boolean; put it in quotes"]),
        (Text(longest=3), "abcd", ["x: is longer than 3 characters"]),
        (Text(longest=3, shortest=1), "", ["x: must not be empty"]),
        (Text(longest=3), "\ud800", ["x: is not valid Unicode text"]),
        (Text(longest=9, words=("On", "Off")), True, ["x: must be text, not a boolean (one of On, Off)"]),
        (Text(longest=9, words=("plain",)), "plian", [
            "x: 'plian' is not one of plain; did you mean plain?",
        ]),
        (Text(longest=9, pattern="^a$", hint="an a"), "a\n", ["x: 'a\\n' is not valid: must be an a"]),
        (Text(longest=9, pattern="^a$"), "b", ["x: 'b' is not valid: must be text that matches ^a$"]),
        (Text(longest=9, pattern="^a$", hint="an a", secret=True), "pw", ["x: must be an a"]),
        (IntOrText(), True, ["x: must be a number or text, not a boolean"]),
        (IntOrText(), -1, ["x: -1 is out of range 0 to 2147483647"]),
        (IntOrText(longest=2), "abc", ["x: is longer than 2 characters"]),
        (IntOrText(pattern="^auto$", hint="auto"), "all", ["x: 'all' is not valid: must be auto"]),
        (IntOrText(rules=(_EVEN,)), 3, ["x: must be even"]),
        (ListOf(items=Flag(), most=2), "ab", ["x: must be a list, not text; put it into [ ]"]),
        (ListOf(items=Flag(), most=1), [True, 1], ["x: has 2 items, which is out of range 0 to 1"]),
        (ListOf(items=Flag(), most=2), [1, 2], [
            "x[0]: must be true or false, not a number", "x[1]: must be true or false, not a number",
        ]),
        (ListOf(items=_RECORD, most=2, keys=("b",)), [{"b": 1}] * 2, ["x[1].b: 1 is also the one of x[0]"]),
        (_RECORD, [], ["x: must be an object with fields, not a list"]),
        (_RECORD, {"a": 1, "c": 2}, [
            "x.a: must be true or false, not a number", "x.c: unknown field", "x.b: is required",
        ]),
        (Record(fields={"maxErrors": Flag()}), {"maxErors": True}, [
            "x.maxErors: unknown field; did you mean maxErrors?",
        ]),
        (Record(fields={"a": Flag(), "b": Flag()}, rules=(_ONE_OF, _CEL_ONLY)), {}, [
            "x.a: set one of a and b",
        ]),
        (Labels(values=Text(longest=1), most=1), {"k": "vv", "l": ""}, [
            "x: has 2 fields, which is more than 1", "x['k']: is longer than 1 characters",
        ]),
        (Labels(values=Flag()), [], ["x: must be an object with fields, not a list"]),
        (Anything(), "x", ["x: must be an object with fields, not text"]),
        (Integer(), 10**60, ["x: " + "1" + "0" * 40 + " is out of range 0 to 2147483647"]),
    ],
)  # fmt: skip
def test_what_does_not(shape: Shape, value: object, reasons: list[str]) -> None:
    assert problems_of(shape, value) == reasons


@pytest.mark.parametrize(
    ("shape", "schema"),
    [
        (Flag(), {"type": "boolean"}),
        (Flag(default=False), {"type": "boolean", "default": False}),
        (
            Integer(minimum=1, maximum=2, default=2),
            {"type": "integer", "format": "int32", "minimum": 1, "maximum": 2, "default": 2},
        ),
        (Text(longest=3, shortest=1, pattern="^a"), {
            "type": "string", "maxLength": 3, "minLength": 1, "pattern": "^a",
        }),
        (Text(longest=3, words=("a",), default="a"), {"type": "string", "enum": ["a"], "default": "a"}),
        (IntOrText(maximum=9, shortest=1, pattern="^a$", longest=4).with_default("a"), {
            "x-kubernetes-int-or-string": True, "minimum": 0, "maximum": 9, "maxLength": 4, "minLength": 1,
            "pattern": "^a$", "default": "a",
        }),
        (ListOf(items=Flag(), most=3, fewest=1), {
            "type": "array", "maxItems": 3, "minItems": 1, "x-kubernetes-list-type": "atomic",
            "items": {"type": "boolean"},
        }),
        (Labels(values=Flag(), most=4), {
            "type": "object", "maxProperties": 4, "additionalProperties": {"type": "boolean"},
        }),
        (Anything(), {"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        (Record(
            fields={"a": Flag()}, required=("a",), rules=(_ONE_OF,), default={}, descriptions={"a": "A."}
        ), {
            "type": "object",
            "properties": {"a": {"description": "A.", "type": "boolean"}},
            "required": ["a"],
            "x-kubernetes-validations": [{
                "rule": "has(self.a) != has(self.b)", "message": "set one of a and b",
                "reason": "FieldValueInvalid", "fieldPath": ".a",
            }],
            "default": {},
        }),
    ],
)  # fmt: skip
def test_the_schema(shape: Shape, schema: dict[str, Any]) -> None:
    assert shape.schema() == schema


def test_a_list_map_names_its_keys() -> None:
    schema = ListOf(items=_RECORD, most=2, keys=("b",)).schema()
    assert (schema["x-kubernetes-list-type"], schema["x-kubernetes-list-map-keys"]) == ("map", ["b"])


def test_a_kind_without_a_name_of_its_own() -> None:
    assert kind_of(object()) == "object"

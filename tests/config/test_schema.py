# SPDX-License-Identifier: Apache-2.0
"""Schemas: for the API server, and the same validation in Python."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.errors import Problems
from mailproxy_config.schema import (
    AnyObject,
    Array,
    Boolean,
    Integer,
    IntOrString,
    MapOf,
    Object,
    Rule,
    Schema,
    String,
    type_of,
)

_EVEN = Rule(expression="self % 2 == 0", message="must be even", predicate=lambda value: value % 2 == 0)
_ONE_OF = Rule(
    expression="has(self.a) != has(self.b)",
    message="set one of a and b",
    predicate=lambda value: ("a" in value) != ("b" in value),
    field_path=".a",
)
_CEL_ONLY = Rule(expression="true", message="never told here", predicate=None, reason="FieldValueRequired")
_RECORD = Object(
    fields={"a": Boolean(), "b": Integer(maximum=9)}, required=("b",), descriptions={"a": "A flag."}
)


def problems_of(schema: Schema, value: Any) -> list[str]:
    problems = Problems()
    schema.check(value, "x", problems)
    return list(map(str, problems))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (Boolean(), True),
        (Integer(minimum=1, maximum=3), 3),
        (String(max_length=3), ""),
        (String(max_length=9, enum=("a", "b")), "b"),
        (String(max_length=9, pattern="^a+$", hint="some a"), "aaa"),
        (IntOrString(), 5),
        (IntOrString(pattern="^auto$", max_length=4), "auto"),
        (IntOrString(rules=(_EVEN,)), 4),
        (Array(items=Boolean(), max_items=2), [True]),
        (Array(items=_RECORD, max_items=2, keys=("b",)), [{"b": 1}, {"b": 2}]),
        (_RECORD, {"a": True, "b": 1}),
        (MapOf(values=String(max_length=3)), {"k": "v"}),
        (AnyObject(), {"what": ["ever"]}),
    ],
)
def test_valid_value_is_accepted(schema: Schema, value: object) -> None:
    assert problems_of(schema, value) == []


@pytest.mark.parametrize(
    ("schema", "value", "reasons"),
    [
        (Boolean(), "yes", ["x: must be true or false, not text; write true, without quotes"]),
        (Boolean(), "OFF", ["x: must be true or false, not text; write false, without quotes"]),
        (Boolean(), "maybe", ["x: must be true or false, not text"]),
        (Integer(), True, ["x: must be a whole number, not a boolean"]),
        (Integer(), 1.5, ["x: must be a whole number, not a number"]),
        (Integer(minimum=1, maximum=65535), 99999, ["x: 99999 is out of range 1 to 65535"]),
        (String(max_length=3), None, ["x: must be text, not nothing"]),
        (String(max_length=3), False, ["x: must be text, not a boolean; put it in quotes"]),
        (String(max_length=3), "abcd", ["x: is longer than 3 characters"]),
        (String(max_length=3, min_length=1), "", ["x: must not be empty"]),
        (String(max_length=3), "\ud800", ["x: is not valid Unicode text"]),
        (String(max_length=9, enum=("On", "Off")), True, ["x: must be text, not a boolean (one of On, Off)"]),
        (String(max_length=9, enum=("plain",)), "plian", [
            "x: 'plian' is not one of plain; did you mean plain?",
        ]),
        (String(max_length=9, pattern="^a$", hint="an a"), "a\n", ["x: 'a\\n' is not valid: must be an a"]),
        (String(max_length=9, pattern="^a$"), "b", ["x: 'b' is not valid: must be text that matches ^a$"]),
        (String(max_length=9, pattern="^a$", hint="an a", secret=True), "pw", ["x: must be an a"]),
        (IntOrString(), True, ["x: must be a number or text, not a boolean"]),
        (IntOrString(), -1, ["x: -1 is out of range 0 to 2147483647"]),
        (IntOrString(max_length=2), "abc", ["x: is longer than 2 characters"]),
        (IntOrString(pattern="^auto$", hint="auto"), "all", ["x: 'all' is not valid: must be auto"]),
        (IntOrString(rules=(_EVEN,)), 3, ["x: must be even"]),
        (Array(items=Boolean(), max_items=2), "ab", ["x: must be a list, not text; put it into [ ]"]),
        (Array(items=Boolean(), max_items=1), [True, 1], ["x: has 2 items, which is out of range 0 to 1"]),
        (Array(items=Boolean(), max_items=2), [1, 2], [
            "x[0]: must be true or false, not a number", "x[1]: must be true or false, not a number",
        ]),
        (Array(items=_RECORD, max_items=2, keys=("b",)), [{"b": 1}] * 2, ["x[1].b: 1 is also in x[0]"]),
        (_RECORD, [], ["x: must be an object with fields, not a list"]),
        (_RECORD, {"a": 1, "c": 2}, [
            "x.a: must be true or false, not a number", "x.c: unknown field", "x.b: is required",
        ]),
        (Object(fields={"maxErrors": Boolean()}), {"maxErors": True}, [
            "x.maxErors: unknown field; did you mean maxErrors?",
        ]),
        (Object(fields={"a": Boolean(), "b": Boolean()}, rules=(_ONE_OF, _CEL_ONLY)), {}, [
            "x.a: set one of a and b",
        ]),
        (MapOf(values=String(max_length=1), max_fields=1), {"k": "vv", "l": ""}, [
            "x: has 2 fields, which is more than 1", "x['k']: is longer than 1 characters",
        ]),
        (MapOf(values=Boolean()), [], ["x: must be an object with fields, not a list"]),
        (AnyObject(), "x", ["x: must be an object with fields, not text"]),
        (Integer(), 10**60, ["x: " + "1" + "0" * 40 + " is out of range 0 to 2147483647"]),
    ],
)  # fmt: skip
def test_invalid_value_is_rejected(schema: Schema, value: object, reasons: list[str]) -> None:
    assert problems_of(schema, value) == reasons


@pytest.mark.parametrize(
    ("schema", "openapi"),
    [
        (Boolean(), {"type": "boolean"}),
        (Boolean(default=False), {"type": "boolean", "default": False}),
        (
            Integer(minimum=1, maximum=2, default=2),
            {"type": "integer", "format": "int32", "minimum": 1, "maximum": 2, "default": 2},
        ),
        (String(max_length=3, min_length=1, pattern="^a"), {
            "type": "string", "maxLength": 3, "minLength": 1, "pattern": "^a",
        }),
        (String(max_length=3, enum=("a",), default="a"), {"type": "string", "enum": ["a"], "default": "a"}),
        (IntOrString(maximum=9, min_length=1, pattern="^a$", max_length=4).with_default("a"), {
            "x-kubernetes-int-or-string": True, "minimum": 0, "maximum": 9, "maxLength": 4, "minLength": 1,
            "pattern": "^a$", "default": "a",
        }),
        (Array(items=Boolean(), max_items=3, min_items=1), {
            "type": "array", "maxItems": 3, "minItems": 1, "x-kubernetes-list-type": "atomic",
            "items": {"type": "boolean"},
        }),
        (MapOf(values=Boolean(), max_fields=4), {
            "type": "object", "maxProperties": 4, "additionalProperties": {"type": "boolean"},
        }),
        (AnyObject(), {"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        (Object(
            fields={"a": Boolean()}, required=("a",), rules=(_ONE_OF,), default={}, descriptions={"a": "A."}
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
def test_openapi_schema(schema: Schema, openapi: dict[str, Any]) -> None:
    assert schema.openapi() == openapi


def test_list_map_has_its_keys_in_the_schema() -> None:
    schema = Array(items=_RECORD, max_items=2, keys=("b",)).openapi()
    assert (schema["x-kubernetes-list-type"], schema["x-kubernetes-list-map-keys"]) == ("map", ["b"])


def test_type_name_of_other_values() -> None:
    assert type_of(object()) == "object"

# SPDX-License-Identifier: Apache-2.0
"""The plain types of directive values."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config import value_types
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.model import AuthMethod
from mailproxy_config.value_types import (
    BUFFER,
    INVALID_ITEM,
    MSEC_TIME,
    Directive,
    ErrorPath,
    ValueType,
    enum_set,
    lower_camel_case,
)

_COLOURS = value_types.choice({"off": "None", "on": "Red"}, str.lower, also=("Green",))
_LETTERS = value_types.enum_set(("A", "b"), str)


def read(kind: ValueType, value: Any) -> tuple[object, list[Problem]]:
    path = ErrorPath("x", Problems())
    return path.try_read(lambda: kind.read(value, path)), path.problems.found


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (value_types.FLAG, True, True),
        (value_types.NUMBER, 5, 5),
        (value_types.MSEC_TIME, "1s500ms", 1.5),
        (value_types.SEC_TIME, "5m", 300.0),
        (value_types.BUFFER, "4k", 4096),
        (value_types.CAPABILITIES, ["SIZE 1", "DSN"], ("SIZE 1", "DSN")),
        (_COLOURS, "Red", "red"),
        (_LETTERS, ["b", "A"], frozenset({"A", "b"})),
        (value_types.text(max_length=5), "abc", "abc"),
    ],
)
def test_value_is_read(kind: ValueType, raw: object, value: object) -> None:
    assert read(kind, raw) == (value, [])


@pytest.mark.parametrize(
    ("kind", "raw", "problem"),
    [
        (value_types.BUFFER, "127", Problem("x", "127 is too small: a buffer has at least 128 bytes")),
        (value_types.MSEC_TIME, "9999999999", Problem("x", "9999999999 is more than 2147483647 seconds")),
        (value_types.CAPABILITIES, ["DSN", "é"], Problem("x[1]", "a capability must be ASCII")),
    ],
)
def test_value_that_matches_the_schema_can_be_invalid(kind: ValueType, raw: object, problem: Problem) -> None:
    assert read(kind, raw)[1] == [problem]


def test_invalid_items_keep_their_index() -> None:
    assert read(value_types.CAPABILITIES, [INVALID_ITEM, "A"]) == (("A",), [])
    assert read(value_types.CAPABILITIES, [INVALID_ITEM, "é"])[1] == [
        Problem("x[1]", "a capability must be ASCII")
    ]


@pytest.mark.parametrize(
    ("kind", "words", "raw"),
    [
        (value_types.FLAG, ["ON"], True),
        (value_types.FLAG, ["off"], False),
        (value_types.NUMBER, ["007"], 7),
        (value_types.MSEC_TIME, ["1h 30m"], "1h 30m"),
        (_COLOURS, ["ON"], "Red"),
        (_LETTERS, ["B", "a", "b"], ["b", "A"]),
        (value_types.CAPABILITIES, ["A", "A"], ["A", "A"]),
    ],
)
def test_nginx_arguments_are_parsed(kind: ValueType, words: list[str], raw: object) -> None:
    assert kind.nginx(words) == raw


@pytest.mark.parametrize(
    ("kind", "words", "reason"),
    [
        (value_types.FLAG, ["yes"], 'invalid value "yes", it must be "on" or "off"'),
        (value_types.NUMBER, ["-1"], 'invalid number "-1"'),
        (value_types.NUMBER, ["9" * 19], 'invalid number "9999999999999999999"'),
        (_COLOURS, ["blue"], 'invalid value "blue", it must be one of off, on'),
        (_LETTERS, ["A", "c"], 'invalid value "c", the valid words are A, b'),
    ],
)
def test_invalid_nginx_arguments_are_rejected(kind: ValueType, words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        kind.nginx(words)
    assert str(raised.value) == reason


def test_error_path_of_fields_and_items() -> None:
    path = ErrorPath("spec", Problems())
    assert path.field("mail").item(3).text == "spec.mail[3]"


@pytest.mark.parametrize(
    ("name", "field"),
    [("timeout", "timeout"), ("auth_http_timeout", "authHttpTimeout"), ("imap_auth", "imapAuth")],
)
def test_field_name_is_lower_camel_case(name: str, field: str) -> None:
    assert lower_camel_case(name) == field
    assert Directive(name=name, module="m", type=MSEC_TIME, meaning="A.").field == field


def test_field_name_can_be_set() -> None:
    assert Directive(name="a_b", field="c", module="m", type=MSEC_TIME, meaning="A.").field == "c"


def test_builtin_default_is_a_model_value() -> None:
    words = enum_set(("plain",), AuthMethod)
    assert Directive(name="a", module="m", type=words, default=["plain"], meaning="A.").builtin() == {"plain"}
    assert Directive(name="a", module="m", type=words, meaning="A.").builtin() is None


def test_invalid_default_in_table_raises() -> None:
    with pytest.raises(ValueError, match="too small"):
        Directive(name="a", module="m", type=BUFFER, default="1", meaning="A.").builtin()

# SPDX-License-Identifier: Apache-2.0
"""The plain types of directive values."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config import values
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.values import BROKEN, Place, ValueType

_COLOURS = values.choice({"off": "None", "on": "Red"}, str.lower, also=("Green",))
_LETTERS = values.several(("A", "b"), str)


def read(kind: ValueType, value: Any) -> tuple[object, list[Problem]]:
    place = Place("x", Problems())
    return place.attempt(lambda: kind.read(value, place)), place.problems.found


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (values.FLAG, True, True),
        (values.NUMBER, 5, 5),
        (values.MSEC_TIME, "1s500ms", 1.5),
        (values.SEC_TIME, "5m", 300.0),
        (values.BUFFER, "4k", 4096),
        (values.CAPABILITIES, ["SIZE 1", "DSN"], ("SIZE 1", "DSN")),
        (_COLOURS, "Red", "red"),
        (_LETTERS, ["b", "A"], frozenset({"A", "b"})),
        (values.text(longest=5), "abc", "abc"),
    ],
)
def test_a_value_is_read(kind: ValueType, raw: object, value: object) -> None:
    assert read(kind, raw) == (value, [])


@pytest.mark.parametrize(
    ("kind", "raw", "problem"),
    [
        (values.BUFFER, "127", Problem("x", "127 is too small: a buffer has at least 128 bytes")),
        (values.MSEC_TIME, "9999999999", Problem("x", "9999999999 is more than 2147483647 seconds")),
        (values.CAPABILITIES, ["DSN", "é"], Problem("x[1]", "a capability must be ASCII")),
    ],
)
def test_a_value_of_the_right_shape_may_still_be_wrong(
    kind: ValueType, raw: object, problem: Problem
) -> None:
    assert read(kind, raw)[1] == [problem]


def test_broken_items_keep_their_places() -> None:
    assert read(values.CAPABILITIES, [BROKEN, "A"]) == (("A",), [])
    assert read(values.CAPABILITIES, [BROKEN, "é"])[1] == [Problem("x[1]", "a capability must be ASCII")]


@pytest.mark.parametrize(
    ("kind", "words", "raw"),
    [
        (values.FLAG, ["ON"], True),
        (values.FLAG, ["off"], False),
        (values.NUMBER, ["007"], 7),
        (values.MSEC_TIME, ["1h 30m"], "1h 30m"),
        (_COLOURS, ["ON"], "Red"),
        (_LETTERS, ["B", "a", "b"], ["b", "A"]),
        (values.CAPABILITIES, ["A", "A"], ["A", "A"]),
    ],
)
def test_what_nginx_says(kind: ValueType, words: list[str], raw: object) -> None:
    assert kind.nginx(words) == raw


@pytest.mark.parametrize(
    ("kind", "words", "reason"),
    [
        (values.FLAG, ["yes"], 'invalid value "yes", it must be "on" or "off"'),
        (values.NUMBER, ["-1"], 'invalid number "-1"'),
        (values.NUMBER, ["9" * 19], 'invalid number "9999999999999999999"'),
        (_COLOURS, ["blue"], 'invalid value "blue", it must be one of off, on'),
        (_LETTERS, ["A", "c"], 'invalid value "c", the words are A, b'),
    ],
)
def test_what_nginx_would_refuse(kind: ValueType, words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        kind.nginx(words)
    assert str(raised.value) == reason


def test_a_place_knows_the_paths_below_it() -> None:
    place = Place("spec", Problems())
    assert place.field("mail").item(3).path == "spec.mail[3]"

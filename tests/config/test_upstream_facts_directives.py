# SPDX-License-Identifier: Apache-2.0
"""The value of ``proxy_forward``."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.errors import Problems
from mailproxy_config.manifest import read_manifest
from mailproxy_config.model import ServerConfig
from mailproxy_config.upstream_facts_directives import (
    MAX_FORWARDED,
    MAX_FORWARDED_NAME,
    MAX_FORWARDED_VALUE,
    UPSTREAM_FACTS_DIRECTIVES,
)
from support.config_bodies import body, server


def problems_of(*facts: Any) -> list[str]:
    problems = Problems()
    read_manifest(body(server(proxyForward=list(facts))), problems)
    return [str(problem).removeprefix("spec.servers[0].proxyForward") for problem in problems.found]


def fact(name: Any = "site", value: Any = "east") -> dict[str, Any]:
    return {"name": name, "value": value}


def test_facts_are_accepted() -> None:
    longest = fact("n" * MAX_FORWARDED_NAME, "v" * MAX_FORWARDED_VALUE)
    assert problems_of(longest, fact("A-1_b", 'a "b" \\ = ~'), fact("x", ""), fact("y", "$protocol")) == []


def test_list_of_facts_is_limited() -> None:
    assert problems_of(*(fact(f"n{number}") for number in range(MAX_FORWARDED))) == []
    [problem] = problems_of(*(fact(f"n{number}") for number in range(MAX_FORWARDED + 1)))
    assert "17" in problem
    assert problems_of(fact("n" * (MAX_FORWARDED_NAME + 1))) == ["[0].name: is longer than 20 characters"]
    longer = "v" * (MAX_FORWARDED_VALUE + 1)
    assert problems_of(fact(value=longer)) == ["[0].value: is longer than 1024 characters"]


@pytest.mark.parametrize("name", ["a b", "a=b", "a\tb", "a\r\nb", "é", 'a"b', "x.y"])
def test_name_with_other_characters_is_refused(name: str) -> None:
    [problem] = problems_of(fact(name))
    assert problem.endswith("must be letters, digits, - and _")


@pytest.mark.parametrize("value", ["a\tb", "a\r\nb", "\x00", "\x01", "\x7f", "Zürich"])
def test_value_with_other_characters_is_refused(value: str) -> None:
    [problem] = problems_of(fact(value=value))
    assert problem.endswith("must be printable ASCII characters")


def test_name_twice_is_refused() -> None:
    assert problems_of(fact("site"), fact("SITE")) == [': has "site" twice']


def test_unknown_variable_is_refused() -> None:
    [problem] = problems_of(fact(), fact("user", "${remote_user}"))
    assert problem.startswith('[1].value: "$remote_user" is no variable; there are $protocol, ')


def test_directives_are_off_by_default() -> None:
    assert [row.builtin() for row in UPSTREAM_FACTS_DIRECTIVES] == [False, (), False, False]
    assert {row.name for row in UPSTREAM_FACTS_DIRECTIVES} <= set(ServerConfig.__dataclass_fields__)

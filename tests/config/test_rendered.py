# SPDX-License-Identifier: Apache-2.0
"""Reading a rendered configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_config.compile import compile_proxy
from mailproxy_config.decode import parse_json
from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.rendered import dump, parse_rendered
from support.config_bodies import body, server


def document() -> dict[str, Any]:
    mail = {"authHttp": "a", "sslConfCommand": [{"name": "Options", "value": "x"}]}
    config = compile_proxy(parse_manifest(body(server("a"), server("b", 110), mail=mail)))
    found = parse_json(dump(config).decode())
    assert isinstance(found, dict)
    return found


def problems_of(value: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_rendered(value)
    return list(map(str, raised.value.problems))


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set a value at a path of the document."""

    def change(found: Any) -> None:
        *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
        for step in way:
            found = found[step]
        found[last] = value

    return change


_SERVER = "config.servers.0"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("extra", 1, "extra: unknown field"),
        ("format", "x", "format: must be mailproxy.dev/proxy-configuration"),
        ("formatVersion", 2, "formatVersion: 2 is not 1, the one this program reads"),
        ("formatVersion", True, "formatVersion: True is not 1, the one this program reads"),
        ("generation", -1, "generation: must be a whole number"),
        ("generation", True, "generation: must be a whole number"),
        ("config", [], "config: must be an object, not a list"),
        ("config.workers", "auto", "config.workers: must be a whole number, not text"),
        ("config.extra", 1, "config.extra: unknown field"),
        ("config.error_log", "loud",
         "config.error_log: must be one of debug, info, notice, warn, error, crit, alert, emerg"),
        ("config.servers", {}, "config.servers: must be a list, not an object"),
        (f"{_SERVER}.xclient", 0, "config.servers[0].xclient: must be a boolean, not a number"),
        (f"{_SERVER}.max_errors", True,
         "config.servers[0].max_errors: must be a whole number, not a boolean"),
        (f"{_SERVER}.timeout", "60s", "config.servers[0].timeout: must be a number, not text"),
        (f"{_SERVER}.timeout", False, "config.servers[0].timeout: must be a number, not a boolean"),
        (f"{_SERVER}.timeout", float("inf"), "config.servers[0].timeout: is out of range"),
        (f"{_SERVER}.timeout", 10**400, "config.servers[0].timeout: is out of range"),
        (f"{_SERVER}.server_name", "\ud800", "config.servers[0].server_name: is not valid Unicode text"),
        (f"{_SERVER}.imap_auth", "plain", "config.servers[0].imap_auth: must be a list, not text"),
        (f"{_SERVER}.imap_auth", ["apple"],
         "config.servers[0].imap_auth[0]: must be one of plain, login, cram-md5, apop, external, none, "
         "xoauth2, oauthbearer"),
        (f"{_SERVER}.imap_capabilities", ["A", 1],
         "config.servers[0].imap_capabilities[1]: must be text, not a number"),
        (f"{_SERVER}.ssl_conf_command", [["a"]], "config.servers[0].ssl_conf_command[0]: must have 2 items"),
        (f"{_SERVER}.auth_http", None, "config.servers[0].auth_http: is required"),
        (f"{_SERVER}.resolver", 5, "config.servers[0].resolver: must be an object, not a number"),
        (f"{_SERVER}.listen.0", {"port": 1}, "config.servers[0].listen[0].address: is required"),
    ],
)  # fmt: skip
def test_invalid_rendered_configuration_is_rejected(path: str, value: object, problem: str) -> None:
    found = document()
    _set(path, value)(found)
    assert problem in problems_of(found)


def test_every_field_is_required() -> None:
    found = document()
    del found["config"]["drain"], found["config"]["servers"][1]["timeout"]
    assert problems_of(found) == ["config.servers[1].timeout: is required", "config.drain: is required"]


def test_document_must_be_an_object() -> None:
    assert problems_of([]) == ["must be an object, not a list"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "f.json: not valid JSON: Expecting property name enclosed in double quotes in line 1"),
        ('{"a": 1, "a": 2}', "f.json: not valid JSON: 'a' is duplicate in one object"),
        ('{"a": NaN}', "f.json: not valid JSON: NaN is not a number"),
        ('{"a": ' + "9" * 5000 + "}", "f.json: not valid JSON: Exceeds the limit"),
        ('{"a": ' * 20_000 + "1" + "}" * 20_000, "f.json: is nested too deeply"),
        ('{"a": ' * 100_000, "f.json: is too large: it has more than 50000 values"),
        ('{"a": ' * 100 + "1" + "}" * 100, "f.json: is nested too deeply"),
    ],
    ids=lambda value: value[:20],
)
def test_invalid_json_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_json(text, "f.json")
    assert str(raised.value).startswith(reason)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, each in inner:
        found += _paths(each, (*path, step))
    return found


_ALL = _paths(document())


@given(st.sampled_from(_ALL), _JSON)
def test_arbitrary_value_raises_only_config_errors(path: tuple[Any, ...], value: object) -> None:
    found: Any = document()
    _set(".".join(map(str, path)), value)(found)
    again = json.loads(json.dumps(found))
    try:
        config, _ = parse_rendered(again)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = ()
        assert config.servers
    assert all("\n" not in str(problem) for problem in problems)

# SPDX-License-Identifier: Apache-2.0
"""Statements of an ``nginx.conf`` are converted to values of a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.directives import DIRECTIVES, by_name
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.nginx.syntax import ConfigFiles, Statement
from mailproxy_config.nginx.values import (
    Block,
    convert_value,
    inherit_shared_caches,
    merge_repeated_caches,
    pair_certificates,
)

_ROWS = by_name(DIRECTIVES)
_TLS = {"listen": [{"port": 993, "ssl": True}]}


def value_of(
    name: str, *arguments: str, block: tuple[Statement, ...] | None = None
) -> tuple[object, list[Problem]]:
    files = ConfigFiles("/etc/nginx", Problems())
    statement = Statement(name, arguments, block, "f:1")
    return convert_value(_ROWS[name], statement, files), files.problems.found


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("timeout 5s", "5s"),
        ("ssl_crl crl.pem", {"file": "/etc/nginx/crl.pem"}),
        ("ssl_crl /a/../b", {"file": "/b"}),
        ("ssl_session_ticket_key k", [{"file": "/etc/nginx/k"}]),
        ("ssl_certificate c", [{"certificateFile": "/etc/nginx/c"}]),
        ("ssl_certificate_key k", [{"keyFile": "/etc/nginx/k"}]),
        ("ssl_conf_command VerifyCAFile ca", [{"name": "VerifyCAFile", "value": "/etc/nginx/ca"}]),
        ("ssl_conf_command dhparameters /d", [{"name": "dhparameters", "value": "/d"}]),
        ("ssl_conf_command Options X", [{"name": "Options", "value": "X"}]),
    ],
)
def test_statement_is_converted(line: str, value: object) -> None:
    assert value_of(*line.split()) == (value, [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("timeout", 'invalid number of arguments in "timeout" directive'),
        ("timeout 1 2", 'invalid number of arguments in "timeout" directive'),
        ("auth_http_header a", 'invalid number of arguments in "auth_http_header" directive'),
        ("xclient maybe", '"xclient" directive: invalid value "maybe", it must be "on" or "off"'),
        (
            "ssl_certificate_key engine:pkcs11:x",
            '"ssl_certificate_key" directive: engine: cannot be carried over; put it into a file',
        ),
    ],
)
def test_invalid_statement_is_reported(line: str, reason: str) -> None:
    assert value_of(*line.split()) == (None, [Problem("f:1", reason)])


def test_directive_with_block_is_reported() -> None:
    problem = Problem("f:1", 'directive "timeout" is not terminated by ";"')
    assert value_of("timeout", "5s", block=()) == (None, [problem])


def _block(*, chains: Any = "", keys: Any = "", **fields: Any) -> Block:
    certificates = {"sslCertificate": [{"certificateFile": name} for name in chains]} if chains else {}
    return Block("x", "f:9", fields={**certificates, **fields}, keys=list(keys))


def _pairs(names: str) -> list[dict[str, str]]:
    return [
        {"certificateFile": one, "keyFile": two} for one, two in zip(names[::2], names[1::2], strict=True)
    ]


@pytest.mark.parametrize(
    ("mail", "server", "of_mail", "of_server"),
    [
        (_block(chains="ab", keys="kl"), _block(), "akbl", None),
        (_block(chains="a", keys="kl"), _block(), "ak", None),  # a key too many
        (_block(chains="a", keys="k"), _block(chains="b", keys="l"), "ak", "bl"),
        (_block(chains="a"), _block(keys="k"), None, "ak"),
        (_block(keys="k"), _block(chains="a"), None, "ak"),
        (_block(chains="a"), _block(), None, None),  # TLS is not used
        (_block(chains="a", starttls="Enabled"), _block(starttls="Disabled"), None, None),
    ],
)
def test_certificates_and_keys_are_paired(
    mail: Block, server: Block, of_mail: str | None, of_server: str | None
) -> None:
    problems = Problems()
    pair_certificates(mail, [server], problems)
    assert problems.found == []
    assert mail.fields.get("sslCertificate") == (_pairs(of_mail) if of_mail else None)
    assert server.fields.get("sslCertificate") == (_pairs(of_server) if of_server else None)


@pytest.mark.parametrize(
    ("mail", "server", "missing"),
    [
        (_block(chains="a"), _block(**_TLS), "a"),
        (_block(chains="ab", keys="k", starttls="Only"), _block(), "b"),
        (_block(), _block(chains="a", starttls="Enabled"), "a"),
    ],
)
def test_certificate_without_key_is_reported(mail: Block, server: Block, missing: str) -> None:
    problems = Problems()
    pair_certificates(mail, [server], problems)
    reason = f'no "ssl_certificate_key" is defined for certificate "{missing}"'
    assert problems.found == [Problem("f:9", reason)]


@pytest.mark.parametrize(
    ("own", "effective"),
    [
        (["builtin"], ["builtin", "shared:a:1m"]),
        (["Disabled"], ["Disabled"]),
        (["shared:b:1m"], ["shared:b:1m"]),
        (None, None),
    ],
)
def test_shared_cache_is_inherited_separately(own: list[str] | None, effective: list[str] | None) -> None:
    mail = _block(sslSessionCache=["builtin:5", "shared:a:1m"])
    server = _block(**({} if own is None else {"sslSessionCache": own}))
    inherit_shared_caches(mail, [server])
    assert server.fields.get("sslSessionCache") == effective


@pytest.mark.parametrize(
    ("before", "value", "both"),
    [
        ([], ["builtin", "shared:a:1m"], ["builtin", "shared:a:1m"]),
        (["builtin:5"], ["shared:a:1m"], ["builtin:5", "shared:a:1m"]),
        (["shared:a:1m"], ["builtin"], ["builtin", "shared:a:1m"]),
        (["shared:a:1m"], ["shared:b:1m"], ["shared:b:1m"]),
        (["Disabled"], ["shared:a:1m"], ["Disabled"]),
        (["builtin", "shared:a:1m"], ["None"], ["None"]),
        (["None"], ["builtin"], ["builtin"]),
    ],
)
def test_repeated_session_caches_are_merged(before: list[str], value: list[str], both: list[str]) -> None:
    assert merge_repeated_caches(before, value) == both

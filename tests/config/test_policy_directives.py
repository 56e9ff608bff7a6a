# SPDX-License-Identifier: Apache-2.0
"""``auth_policy_server``: its fields in a manifest and its parameters in an ``nginx.conf``."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.compile import collect_references, compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.load import load
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import ServerConfig
from mailproxy_config.policy_server import AuthPolicyServer, HashMech
from mailproxy_config.secret_refs import Mounts, Reference, ReferenceKind
from support.config_bodies import body, server

NONCE: Final = {"secretKeyRef": {"name": "policy", "key": "nonce"}}
KEY: Final = {"secretKeyRef": {"name": "policy", "key": "api-key"}}
URL: Final = "http://policy.example:8084/"


def manifest(**fields: Any) -> Any:
    value = {"url": URL, "nonceFrom": NONCE} | fields
    return body(server(authPolicyServer={name: each for name, each in value.items() if each is not None}))


def compiled(**fields: Any) -> ServerConfig:
    return compile_proxy(parse_manifest(manifest(**fields)), mounts=Mounts("/refs")).servers[0]


def from_nginx(line: str) -> AuthPolicyServer:
    text = f"mail {{ auth_http a; auth_policy_server {line}; server {{ listen 143; }} }}"
    value = load(text.encode(), source="/etc/nginx.conf").config.servers[0].auth_policy_server
    assert value is not None
    return value


def test_defaults_are_those_of_dovecot() -> None:
    assert compiled().auth_policy_server == AuthPolicyServer(
        url=URL,
        nonce_file="/refs/secrets/policy/nonce",
        hash_mech=HashMech.SHA256,
        hash_truncate=12,
        timeout=2.0,
        check_before=True,
        check_after=True,
        report=True,
        reject_on_fail=False,
    )


def test_secrets_are_mounted_and_read_from_files() -> None:
    header = {"name": "X-API-Key", "valueFrom": KEY}
    found = compiled(header=header)
    assert found.upstream_login_files == (
        ("auth_policy_server", "/refs/secrets/policy/nonce"),
        ("auth_policy_server", "/refs/secrets/policy/api-key"),
    )
    references = collect_references(parse_manifest(manifest(header=header)))
    assert references == (Reference(ReferenceKind.SECRET, "policy", ("api-key", "nonce")),)


def test_parameters_of_an_nginx_conf() -> None:
    line = "https://p/?x=y nonce_file=n header_name=Authorization header_file=/k report=off timeout=500ms"
    assert from_nginx(line) == AuthPolicyServer(
        url="https://p/?x=y",
        nonce_file="/etc/n",
        header_name="Authorization",
        header_file="/k",
        report=False,
        timeout=0.5,
    )


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"nonceFrom": None}, "nonceFrom", "is required"),
        ({"url": "ftp://policy"}, "url", "http://host[:port]/path"),
        ({"url": "http://"}, "url", "http://host[:port]/path"),
        ({"url": "http://a:b@policy/"}, "url", "user and password are not accepted"),
        ({"url": "http://policy:port/"}, "url", "ort"),
        ({"timeout": "16s"}, "timeout", "at most 15s"),
        ({"timeout": 0}, "timeout", "more than 0"),
        ({"hashTruncate": 257}, "hashTruncate", "256"),
        ({"hashMech": "Md5"}, "hashMech", "Sha256"),
        ({"header": {"name": "X"}}, "header.valueFrom", "is required"),
        ({"header": {"name": "X Y", "valueFrom": KEY}}, "header.name", "name of a header"),
    ],
)
def test_mistakes_in_a_manifest_are_reported_with_their_field(
    fields: dict[str, Any], path: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(**fields)
    (problem,) = caught.value.problems
    assert problem.path == f"spec.servers[0].authPolicyServer.{path}"
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("http://p/", "number of arguments"),
        ("http://p/ report=off", "nonce_file is required"),
        ("http://p/ nonce_file=n header_name=X", "required together"),
        ("http://p/ nonce_file=n report=yes", '"on" or "off"'),
        ("http://p/ nonce_file=n hash_truncate=x", "invalid number"),
        ("http://p/ nonce_file=n nonce=x", "invalid parameter"),
    ],
)
def test_mistakes_in_an_nginx_conf_are_reported(line: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_nginx(line)
    assert any(reason in problem.reason for problem in caught.value.problems), caught.value.problems

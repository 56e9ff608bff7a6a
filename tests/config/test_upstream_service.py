# SPDX-License-Identifier: Apache-2.0
"""``proxySslService``: a field of resources, which the configuration of the proxy does not have."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.compile import compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.nginx.convert import parse_nginx
from mailproxy_config.rendered import config_hash
from mailproxy_config.upstream_service import ServiceRef, refers_to_service, upstream_services
from support.operator_bodies import body, server

AUTH: Final = {"authHttp": "http://auth/"}


def with_mail(**mail: Any) -> dict[str, Any]:
    return body(mail={**AUTH, **mail})


def test_server_wins_over_mail() -> None:
    servers = [
        server("imap", "imap", 143),
        server("pop3", "pop3", 110, proxySslService={"name": "cyrus", "port": "pop3"}),
    ]
    made = body(mail={**AUTH, "proxySslService": {"name": "dovecot"}}, servers=servers)
    manifest = parse_manifest(made)
    assert upstream_services(manifest.raw["spec"]) == {
        "imap": ServiceRef("dovecot"),
        "pop3": ServiceRef("cyrus", "pop3"),
    }


def test_configuration_is_the_same_with_and_without() -> None:
    plain, named = parse_manifest(with_mail()), parse_manifest(with_mail(proxySslService={"name": "dovecot"}))
    assert config_hash(compile_proxy(plain)) == config_hash(compile_proxy(named))
    assert upstream_services(plain.raw["spec"]) == {}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("dovecot", "spec.mail.proxySslService: must be an object with fields, not text"),
        ({}, "spec.mail.proxySslService.name: is required"),
        ({"name": "Dovecot"}, "spec.mail.proxySslService.name: must be the name of a Service"),
        ({"name": "a" * 64}, "spec.mail.proxySslService.name:"),
        ({"name": "dovecot", "port": 143}, "spec.mail.proxySslService.port: must be text"),
        ({"name": "dovecot", "port": ""}, "spec.mail.proxySslService.port:"),
        ({"name": "dovecot", "namespace": "x"}, "spec.mail.proxySslService.namespace: unknown field"),
    ],
)
def test_invalid_value_is_an_error(value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(with_mail(proxySslService=value))
    assert str(caught.value.problems[0]).startswith(problem.rpartition(": must be the name")[0] or problem)


def test_nginx_conf_does_not_have_it() -> None:
    text = "mail { auth_http a:1; proxy_ssl_service dovecot; server { listen 143; } }"
    with pytest.raises(ConfigError, match="proxy_ssl_service"):
        parse_nginx(text, source="nginx.conf")


@pytest.mark.parametrize(
    ("spec", "refers"),
    [
        ({"mail": {"proxySslService": {}}}, True),
        ({"servers": [{}, {"proxySslService": None}]}, True),
        ({"mail": {"proxySsl": "Enabled"}, "servers": [{}]}, False),
        ({"mail": 7, "servers": {"proxySslService": 1}}, False),
        ({"servers": ["proxySslService", None]}, False),
        (None, False),
    ],
)
def test_any_spec_is_searched(spec: object, refers: bool) -> None:
    assert refers_to_service(spec) is refers

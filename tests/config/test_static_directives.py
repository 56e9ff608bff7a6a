# SPDX-License-Identifier: Apache-2.0
"""``auth_mode static`` and ``auth_user_file``: what is needed, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.compile import collect_references, compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.load import load
from mailproxy_config.manifest import MailProxyManifest, parse_manifest
from mailproxy_config.model import AuthMode
from mailproxy_config.rendered import dump
from mailproxy_config.secret_refs import Reference, ReferenceKind
from support.config_bodies import SECRET_KEY, Body, body, server

ROUTES = [{"domains": ["*"], "upstream": "dovecot"}]
GROUP: Body = {"name": "dovecot", "servers": [{"address": "192.0.2.1"}]}
USERS: Body = {"secretKeyRef": {"name": "users", "key": "htpasswd"}}


def manifest(*servers: Body, upstreams: list[Body] | None = None, **mail: Any) -> MailProxyManifest:
    level = {"authMode": "Static", "authUserFile": USERS, "routes": ROUTES, **mail}
    level = {name: value for name, value in level.items() if value is not None}
    return parse_manifest(body(*servers, mail=level, upstreams=upstreams or [GROUP]))


def problems(*servers: Body, **mail: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        manifest(*servers, **mail)
    return [str(problem) for problem in error.value.problems]


def test_users_are_a_key_of_a_secret_and_no_service_is_needed() -> None:
    found = manifest()
    [config] = compile_proxy(found).servers
    assert (config.auth_mode, config.auth_http) == (AuthMode.STATIC, None)
    assert config.used_user_file == "/etc/mailproxy-refs/secrets/users/htpasswd"
    assert Reference(ReferenceKind.SECRET, "users", ("htpasswd",)) in collect_references(found)


def test_nginx_directives_and_rendered_configuration() -> None:
    text = (
        b"mail { auth_mode static; auth_user_file /etc/users; route domain=* upstream=a;\n"
        b"upstream a { server 192.0.2.1; } server { listen 143; } }"
    )
    loaded = load(text, source="/etc/nginx.conf").config
    assert loaded.servers[0].used_user_file == "/etc/users"
    assert load(dump(loaded)).config == loaded


@pytest.mark.parametrize(
    ("directive", "field", "reason"),
    [
        ("authUserFile", "authUserFile", "is required for authMode Static: set it here or in spec.mail"),
        ("routes", "routes", "is required for authMode Static: set it here or in spec.mail"),
    ],
)
def test_users_and_routes_are_required(directive: str, field: str, reason: str) -> None:
    assert problems(**{directive: None}) == [f"spec.servers[0].{field}: {reason}"]


def test_hashes_in_a_config_map_are_refused() -> None:
    [found] = problems(authUserFile={"configMapKeyRef": {"name": "users", "key": "htpasswd"}})
    assert found.startswith("spec.mail.authUserFile: must be the key of a Secret: ")


@pytest.mark.parametrize(
    ("port", "field", "method"),
    [
        (143, "imapAuth", "cram-md5"),
        (143, "imapAuth", "external"),
        (143, "imapAuth", "xoauth2"),
        (110, "pop3Auth", "apop"),
        (587, "smtpAuth", "oauthbearer"),
        (587, "smtpAuth", "none"),
    ],
)
def test_method_without_a_password_is_refused(port: int, field: str, method: str) -> None:
    [found] = problems(server(port=port), **{field: ["plain", method]})
    assert found.startswith(f"spec.mail.{field}: {method} is not possible with authMode Static: ")


def test_master_user_is_allowed() -> None:
    """The proxy has verified the password, unlike with authMode Upstream."""
    manifest(proxyMasterUser={"user": "proxy", "passwordFrom": SECRET_KEY})


def test_users_of_another_mode_are_noticed_and_not_mounted() -> None:
    found = manifest(authMode="Upstream")
    assert [str(each) for each in found.notices] == [
        "spec.mail.authUserFile: has no effect with authMode Upstream"
    ]
    assert not any(each.name == "users" for each in collect_references(found))

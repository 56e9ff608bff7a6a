# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from support.config_bodies import SECRET_KEY, Body, body, server

ALL = [{"domains": ["*"], "upstream": "dovecot"}]
GROUP: Body = {"name": "dovecot", "servers": [{"address": "192.0.2.1"}]}


def problems(*servers: Body, upstreams: list[Body] | None = None, **mail: Any) -> list[str]:
    level = {"authMode": "Upstream", "routes": ALL, **mail}
    groups = [GROUP] if upstreams is None else upstreams
    try:
        parse_manifest(body(*servers, mail=level, upstreams=groups))
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def notices(upstreams: list[Body], **mail: Any) -> list[str]:
    level = {"authMode": "Upstream", "routes": ALL, **mail}
    return [str(each) for each in parse_manifest(body(mail=level, upstreams=upstreams)).notices]


def test_routed_server_needs_no_authentication_service() -> None:
    assert problems() == []


def test_mode_upstream_needs_routes() -> None:
    wanted = ["spec.servers[0].routes: is required for authMode Upstream: set it here or in spec.mail"]
    assert problems(routes=[]) == [wanted[0].replace("spec.servers[0]", "spec.mail")]
    level: Body = {"authMode": "Upstream"}
    with pytest.raises(ConfigError) as error:
        parse_manifest(body(mail=level))
    assert [str(problem) for problem in error.value.problems] == wanted


def test_route_leads_to_group_that_exists() -> None:
    reason = "spec.mail.routes[0].upstream: 'dovecot' is not in spec.upstreams"
    assert problems(upstreams=[{**GROUP, "name": "old"}]) == [f"{reason} (old)"]
    assert problems(upstreams=[]) == [f"{reason} (there are none)"]
    own = server(routes=[{"users": ["a"], "upstream": "x"}])
    assert problems(own) == ["spec.servers[0].routes[0].upstream: 'x' is not in spec.upstreams (dovecot)"]
    table = [{"table": {"file": "/t"}}]
    [found] = problems(routes=table, upstreams=[])
    assert found.startswith("spec.mail.routes[0].table: has nowhere to lead to")


@pytest.mark.parametrize(
    ("port", "field", "method"),
    [
        (143, "imapAuth", "cram-md5"),
        (143, "imapAuth", "external"),
        (110, "pop3Auth", "apop"),
        (587, "smtpAuth", "none"),
    ],
)
def test_method_that_cannot_be_replayed_is_refused(port: int, field: str, method: str) -> None:
    [found] = problems(server(port=port), **{field: ["plain", method]})
    assert found.startswith(f"spec.mail.{field}: {method} is not possible with authMode Upstream: ")
    assert problems(server(port=port), **{field: ["plain"]}) == []


def test_method_of_another_protocol_is_ignored() -> None:
    assert problems(server(port=143), smtpAuth=["none"]) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("proxyMasterUser", {"user": "proxy", "passwordFrom": SECRET_KEY}),
        (
            "proxyAuthToken",
            {"tokenUrl": "https://id.example/t", "clientId": "a", "clientSecretFrom": SECRET_KEY},
        ),
        ("proxyAuth", ["External", "Plain"]),
    ],
)
def test_login_that_needs_no_password_of_the_client_is_refused(field: str, value: Any) -> None:
    reason = "is not possible with authMode Upstream: every password would be accepted"
    [found] = problems(**{field: value})
    assert found.startswith(f"spec.mail.{field}: ")
    assert reason in found
    [found] = problems(upstreams=[GROUP | {field: value}])
    assert found.startswith(f"spec.upstreams[0].{field}: ")
    assert reason in found
    unused = GROUP | {"name": "unused", field: value}
    assert problems(upstreams=[GROUP, unused]) == []
    assert len(problems(upstreams=[GROUP, unused], routes=[{"table": {"file": "/t"}}, *ALL])) == 1


def test_routes_without_effect_are_noticed() -> None:
    found = notices([GROUP], authMode="Http", authHttp="auth.example")
    assert found == ["spec.mail.routes: has no effect with authMode Http"]


def test_refusals_without_a_minimal_time_are_noticed_where_the_upstream_decides() -> None:
    [found] = notices([GROUP], authFailureDelay="0s")
    assert found.startswith("spec.mail.authFailureDelay: with authMode Upstream, the time of a refusal shows")
    assert notices([GROUP], authFailureDelay="1s") == notices([GROUP]) == []
    assert notices([GROUP], authFailureDelay="0s", authMode="Http", authHttp="auth.example", routes=[]) == []


def test_backup_without_further_tries_is_noticed() -> None:
    group = GROUP | {"servers": [{"address": "a"}, {"address": "b", "backup": True}]}
    [found] = notices([group])
    assert found.startswith("spec.upstreams[0].servers: backups get no logins")
    assert notices([group | {"proxyNextUpstream": ["Connect"]}]) == []
    assert notices([group], proxyNextUpstream=["Connect"]) == []

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from mailproxy_config.compile import collect_references, compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import ProxySsl
from mailproxy_config.rendered import dump, parse_rendered
from mailproxy_config.secret_refs import Mounts
from mailproxy_config.upstream_blocks import MAX_GROUPS, format_group
from mailproxy_config.upstream_groups import GroupFallback, GroupMembers, GroupServer, UpstreamGroup
from support.config_bodies import UPSTREAMS, body

MAIL = {"authMode": "Upstream", "routes": [{"table": {"file": "/t"}}]}


def groups(*upstreams: Any) -> tuple[UpstreamGroup, ...]:
    manifest = parse_manifest(body(mail=MAIL, upstreams=list(upstreams)))
    return compile_proxy(manifest).servers[0].upstream_groups


def problems(upstream: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        groups(upstream)
    return [str(problem) for problem in error.value.problems]


def test_addresses_are_read() -> None:
    [dovecot, old] = groups(*UPSTREAMS)
    assert dovecot.servers == (
        GroupServer(address="Dovecot-0.dovecot:143", host="dovecot-0.dovecot", port=143, weight=3),
        GroupServer(address="[2001:DB8::1]:143", host="2001:db8::1", port=143),
        GroupServer(address="unix:/run/imap.sock", host="unix:/run/imap.sock", backup=True),
    )
    assert old.servers == (GroupServer(address="old.legacy.svc:1143", host="old.legacy.svc", port=1143),)


def test_service_without_namespace_is_in_that_of_the_resource() -> None:
    [group] = groups({"name": "a", "service": {"name": "dovecot"}})
    assert group.servers == (GroupServer(address="dovecot.mail.svc", host="dovecot.mail.svc"),)


def test_settings_replace_directives_of_the_server() -> None:
    manifest = parse_manifest(body(mail=MAIL | {"proxyNextUpstreamTries": 5}, upstreams=UPSTREAMS))
    [server] = compile_proxy(manifest).servers
    [(name, config)] = server.group_configs.items()
    assert (name, config.proxy_ssl, config.proxy_next_upstream_tries) == ("dovecot", ProxySsl.STARTTLS, 5)
    assert config.proxy_ssl_trusted_certificate == "/etc/mailproxy-refs/configmaps/ca/ca.crt"
    assert server.proxy_ssl is ProxySsl.DISABLED
    assert {each.name for each in collect_references(manifest)} == {"ca", "client"}


@pytest.mark.parametrize(
    ("upstream", "problem"),
    [
        ({"name": "a"}, ": must have servers or service, and not both"),
        ({"name": "a", "servers": []}, ".servers: has 0 items, which is out of range 1 to 32"),
        (
            {"name": "a", "service": {"name": "b"}, "servers": [{"address": "c"}]},
            ": must have servers or service, and not both",
        ),
        ({"name": "a b", "servers": [{"address": "c"}]}, ".name: 'a b' is not valid"),
        (
            {"name": "a", "servers": [{"address": "2001:db8::1"}]},
            ".servers[0].address: an IPv6 address must be in",
        ),
        ({"name": "a", "servers": [{"address": "b:0"}]}, ".servers[0].address: 0 is out of range 1 to 65535"),
        ({"name": "a", "servers": [{"address": "unix:x"}]}, ".servers[0].address: "),
        (
            {"name": "a", "servers": [{"address": "b:1"}, {"address": "B:1"}]},
            ".servers[1].address: B:1 is there twice; give it a weight instead",
        ),
        (
            {"name": "a", "servers": [{"address": "b", "backup": True}]},
            ".servers: are all backups: at least one must not be",
        ),
        (
            {"name": "a", "servers": [{"address": "b"}], "memberGrace": "1m", "fallback": "Next"},
            ".memberGrace: needs service: only a Service has members",
        ),
        (
            {"name": "a", "service": {"name": "b"}, "memberGrace": "25h"},
            ".memberGrace: is longer than 24 hours",
        ),
        ({"name": "a", "service": {"name": "b"}, "memberGrace": "x"}, ".memberGrace: "),
        ({"name": "a", "service": {"name": "b", "port": "IMAP"}}, ".service.port: 'IMAP' is not valid"),
        ({"name": "a", "service": {"name": "b", "port": "143"}}, ".service.port: '143' is not valid"),
        ({"name": "a", "service": {"name": "b", "port": "1-4"}}, ".service.port: '1-4' is not valid"),
        ({"name": "a", "service": {"name": "b"}, "fallback": "User"}, ".fallback: "),
        ({"name": "a", "servers": [{"address": "b"}], "timeout": "5s"}, ".timeout: unknown field"),
        ({"name": "a", "servers": [{"address": "b"}], "proxySsl": "on"}, ".proxySsl: 'on' is not one of"),
    ],
)
def test_invalid_group_is_reported(upstream: Any, problem: str) -> None:
    found = problems(upstream)
    assert any(each.startswith(f"spec.upstreams[0]{problem}") for each in found), found


def test_name_of_another_group_is_reported() -> None:
    with pytest.raises(ConfigError) as error:
        groups(UPSTREAMS[1], UPSTREAMS[1])
    assert [str(each) for each in error.value.problems] == [
        "spec.upstreams[1].name: 'old' is also in spec.upstreams[0]"
    ]


def test_too_many_groups_are_reported() -> None:
    many = [{"name": f"g{number}", "servers": [{"address": "a"}]} for number in range(MAX_GROUPS + 1)]
    with pytest.raises(ConfigError) as error:
        groups(*many)
    assert [str(each) for each in error.value.problems] == [
        "spec.upstreams: has 65 items, which is out of range 0 to 64"
    ]


def test_authentication_service_may_name_every_group() -> None:
    manifest = parse_manifest(body(upstreams=UPSTREAMS))
    [server] = compile_proxy(manifest).servers
    assert [group.name for group in server.upstream_groups] == ["dovecot", "old"]
    assert {each.name for each in collect_references(manifest)} == {"ca", "client"}


def test_service_has_members_by_number_or_name_of_port() -> None:
    service = {"name": "dovecot", "namespace": "mail", "port": "imap"}
    upstream = {"name": "a", "service": service, "hash": "User", "fallback": "Next", "memberGrace": "0s"}
    manifest = parse_manifest(
        body(upstreams=[upstream, {"name": "b", "service": {"name": "old", "port": 1143}}])
    )
    assert [(each.fallback, each.member_grace) for each in manifest.upstreams] == [
        ("Next", 0.0),
        ("None", 60.0),
    ]
    [server] = compile_proxy(manifest, mounts=Mounts(members="/m/members.json")).servers
    named, numbered = server.upstream_groups
    assert named.servers == (GroupServer(address="dovecot.mail.svc", host="dovecot.mail.svc"),)
    assert named.members == GroupMembers(
        service="mail/dovecot", port="imap", fallback=GroupFallback.NEXT, file="/m/members.json"
    )
    assert numbered.members is not None
    assert (numbered.members.port_key(143), numbered.servers[0].port) == ("1143", 1143)
    assert format_group(manifest.upstreams[0]) == upstream


def test_compiled_service_is_read_again_and_contradictions_are_refused() -> None:
    upstream = {
        "name": "a",
        "service": {"name": "dovecot", "namespace": "mail", "port": 1143},
        "hash": "User",
    }
    config = compile_proxy(parse_manifest(body(upstreams=[upstream])), mounts=Mounts(members="/m"))
    document = json.loads(dump(config))
    assert parse_rendered(document)[0] == config
    document["config"]["servers"][0]["upstream_groups"][0]["servers"][0]["host"] = "other.mail.svc"
    with pytest.raises(ConfigError, match="contradictory"):
        parse_rendered(document)

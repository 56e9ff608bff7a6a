# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.compile import collect_references, compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.route_directives import MAX_NAMES, MAX_ROUTES
from mailproxy_config.secret_refs import Reference, ReferenceKind
from mailproxy_config.upstream_groups import Route
from support.config_bodies import UPSTREAMS, body, server

LAST = {"domains": ["*"], "upstream": "old"}


def parse(routes: list[Any]) -> Any:
    return parse_manifest(body(mail={"authMode": "Upstream", "routes": routes}, upstreams=UPSTREAMS))


def problems(routes: list[Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(routes)
    return [str(problem) for problem in error.value.problems]


def test_domains_are_in_lower_case_and_tables_are_mounted() -> None:
    table = {"configMapKeyRef": {"name": "moves", "key": "users"}}
    manifest = parse([{"users": ["A@B.example"], "upstream": "old"}, {"table": table}, LAST])
    [found] = compile_proxy(manifest).servers
    assert found.route == (
        Route(users=("A@B.example",), upstream="old"),
        Route(table="/etc/mailproxy-refs/configmaps/moves/users"),
        Route(domains=("*",), upstream="old"),
    )
    assert Reference(ReferenceKind.CONFIG_MAP, "moves", ("users",)) in collect_references(manifest)


def test_server_has_only_the_groups_that_its_routes_use() -> None:
    level = {"authMode": "Upstream", "routes": [LAST]}
    table = server("pop3", 110, routes=[{"table": {"file": "/t"}}])
    manifest = parse_manifest(body(server(), table, mail=level, upstreams=UPSTREAMS))
    names = [[group.name for group in each.upstream_groups] for each in compile_proxy(manifest).servers]
    assert names == [["old"], ["dovecot", "old"]]


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ({"upstream": "old"}, ": must have table alone, or upstream with users, domains or both"),
        ({"users": ["a"]}, ": must have table alone, or upstream with users, domains or both"),
        (
            {"table": {"file": "/t"}, "upstream": "old"},
            ": must have table alone, or upstream with users, domains or both",
        ),
        (
            {"domains": ["a.*.example"], "upstream": "old"},
            '.domains[0]: may have a "*" as its first label only',
        ),
        ({"domains": ["bücher.example"], "upstream": "old"}, ".domains[0]: must be A-labels"),
        ({"domains": ["example.org."], "upstream": "old"}, ".domains[0]: must be A-labels"),
        ({"domains": ["exa mple"], "upstream": "old"}, ".domains[0]: invalid host"),
        ({"users": ["a@b@c"], "upstream": "old"}, ".users[0]: has more than one @"),
        ({"users": ["ü" * 128], "upstream": "old"}, ".users[0]: has more than 255 bytes"),
        ({"users": ["a\r\nb"], "upstream": "old"}, ".users[0]: 'a\\r\\nb' is not valid"),
    ],
)
def test_invalid_route_is_reported(route: Any, problem: str) -> None:
    found = problems([route, LAST])
    assert any(each.startswith(f"spec.mail.routes[0]{problem}") for each in found), found


def test_route_behind_asterisk_is_reported() -> None:
    [found] = problems([LAST, {"users": ["a"], "upstream": "old"}])
    assert found == (
        'spec.mail.routes[1]: is never reached: spec.mail.routes[0] has "*", which matches every login; '
        "move it to the end"
    )


def test_name_of_earlier_route_is_reported() -> None:
    first = {"users": ["a@Example.org"], "domains": ["example.net"], "upstream": "old"}
    found = problems([first, {"users": ["a@example.ORG"], "domains": ["Example.net"], "upstream": "dovecot"}])
    users, domains = (f"routes[0].{field}[0], which decides" for field in ("users", "domains"))
    assert found == [
        f"spec.mail.routes[1].users[0]: a@example.ORG is already in spec.mail.{users}",
        f"spec.mail.routes[1].domains[0]: example.net is already in spec.mail.{domains}",
    ]


def test_too_many_routes_or_names_are_reported() -> None:
    many = [{"users": [f"user{number}"], "upstream": "old"} for number in range(MAX_ROUTES + 1)]
    assert problems(many) == ["spec.mail.routes: has 65 items, which is out of range 0 to 64"]
    names = [f"d{number}.example" for number in range(MAX_NAMES + 1)]
    [found] = problems([{"domains": names, "upstream": "old"}])
    assert found == "spec.mail.routes[0].domains: has 257 items, which is out of range 1 to 256"

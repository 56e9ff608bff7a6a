# SPDX-License-Identifier: Apache-2.0
"""docs/routes.md: its resources, its nginx.conf and its table are valid, and lead where the page states."""

from __future__ import annotations

import re
from typing import Final

import pytest

from mailproxy.routing.group_choice import GroupChoice
from mailproxy.routing.route_table import RouteTable
from mailproxy.routing.router import RouteMatch, Router
from mailproxy.routing.table_compiler import compile_table
from mailproxy.routing.table_files import TableFile
from mailproxy_config.load import Loaded, load
from mailproxy_config.upstream_groups import default_port
from support.guides.blocks import Page
from support.servers.proxy import ROOT

PAGE: Final = Page("routes.md")
SETUPS: Final = [block.text for block in PAGE.blocks if block.language == "yaml"]
[TABLE] = [block.text for block in PAGE.blocks if block.text.startswith("# moved on Monday")]
CLIENTS: Final = [
    {"bob@example.org": "dovecot", "bob": "dovecot"},
    {
        "postmaster@example.org": "admin",
        "bob@a.example.org": "org",
        "x@example.net": "net",
        "x@b.example": None,
    },
    {"bob@example.org": "dovecot"},
    {"bob@example.org": "new", "x@example.net": "new", "eve@example.org": "old"},
    {"bob@example.org": "hosted", "bob@example.net": "dovecot"},
    {"bob@example.org": "dovecot"},
]
"""Login names, and the group of each, by set-up."""


def router_of(loaded: Loaded) -> Router:
    server = loaded.config.servers[0]
    names = {group.name for group in server.upstream_groups}
    paths = [route.table for route in server.route if route.table is not None]
    compiled = compile_table(TABLE.encode(), names) if paths else bytearray()
    files = {path: TableFile(compiled, b"", frozenset(names)) for path in paths}
    return Router(server.route, {path: RouteTable(file.fileno()) for path, file in files.items()})


@pytest.mark.parametrize(("text", "clients"), list(zip(SETUPS, CLIENTS, strict=True)))
def test_set_up_is_one_valid_resource_that_routes_logins(text: str, clients: dict[str, str | None]) -> None:
    loaded = load(text.encode())
    assert loaded.notices == ()
    router = router_of(loaded)
    found = {name: router.find(name.encode()) for name in clients}
    assert {name: match and match.upstream for name, match in found.items()} == clients


def test_logins_of_the_table_have_the_names_of_the_page() -> None:
    router = router_of(load(SETUPS[3].encode()))
    assert router.find(b"ann@example.org") == RouteMatch("new", b"ann.smith@example.org")


def test_nginx_configuration_routes_the_same_way() -> None:
    [text] = [block.text for block in PAGE.blocks if block.language == "nginx"]
    loaded = load(text.encode(), source="/etc/nginx.conf")
    assert loaded.notices == ()
    [server] = loaded.config.servers
    dovecot = next(group for group in server.upstream_groups if group.name == "dovecot")
    choice = GroupChoice(dovecot, default_port("imap", server.proxy_ssl), 3)
    assert choice.servers(b"bob@example.org")[-1].host == "standby.example.org"


def test_ports_of_the_page_are_the_default_ports() -> None:
    for port, protocol in ((143, "imap"), (110, "pop3"), (587, "smtp")):
        mode = load(SETUPS[0].encode()).config.servers[0].proxy_ssl
        assert default_port(protocol, mode) == port
    assert re.search(
        r"port of the protocol is 143, 110 or 587; with `proxySsl: Enabled` it is 993, 995 or 465", PAGE.text
    )


def test_example_is_valid_with_its_table() -> None:
    text = (ROOT / "deploy/examples/routes.yaml").read_text()
    [server] = load(text.encode()).config.servers
    lines = text.partition("users: |\n")[2].partition("---")[0]
    assert compile_table(lines.encode(), {group.name for group in server.upstream_groups})

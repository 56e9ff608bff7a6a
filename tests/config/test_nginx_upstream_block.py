# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_config.load import load
from mailproxy_config.nginx.convert import parse_nginx
from mailproxy_config.upstream_groups import GroupHash, GroupServer, Route

ROUTE = "auth_mode upstream; route domain=* upstream=a;"
SERVER = "server { listen 143; }"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_nginx("mail {\n" + text + "\n}", source="/etc/nginx.conf")
    return [str(problem) for problem in error.value.problems]


def test_upstream_block_and_routes_are_read() -> None:
    text = """mail {
        auth_mode upstream;
        upstream a {
            server dovecot-0.dovecot:143 weight=2;
            server 192.0.2.1 backup;
            hash $remote_user consistent;
            proxy_next_upstream connect;
        }
        upstream b { server unix:/run/imap.sock; }
        route user=bob domain=Example.org domain=*.example.org upstream=a;
        route table=moves;
        route domain=* upstream=b;
        server { listen 143; }
    }"""
    [server] = load(text.encode(), source="/etc/nginx.conf").config.servers
    assert server.route == (
        Route(users=("bob",), domains=("example.org", "*.example.org"), upstream="a"),
        Route(table="/etc/moves"),
        Route(domains=("*",), upstream="b"),
    )
    [a, b] = server.upstream_groups
    assert a.hash is GroupHash.USER
    assert a.servers == (
        GroupServer(address="dovecot-0.dovecot:143", host="dovecot-0.dovecot", port=143, weight=2),
        GroupServer(address="192.0.2.1", host="192.0.2.1", backup=True),
    )
    assert b.servers == (GroupServer(address="unix:/run/imap.sock", host="unix:/run/imap.sock"),)


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("upstream a;", '2: directive "upstream" has no opening "{"'),
        ("upstream { server b; }", '2: invalid number of arguments in "upstream" directive'),
        ("upstream a { }", '2: "upstream": there is no "server"'),
        ("upstream a { server b max_fails=3; }", '2: "server" directive: invalid parameter: max_fails=3'),
        ("upstream a { server b weight=x; }", '2: "server" directive: invalid number "x"'),
        ("upstream a { server b backup backup; }", '2: "server" directive: duplicate parameter: backup'),
        ("upstream a { server; }", '2: "server" directive: invalid number of arguments'),
        (
            "upstream a { server b;\nhash $remote_addr; }",
            '3: "hash" directive: the only key is the login name',
        ),
        (
            "upstream a { server b;\nhash $remote_user consistent;\nhash $remote_user consistent; }",
            '4: "hash" directive is duplicate',
        ),
        ("upstream a { server b;\ntimeout 5s; }", '3: "timeout" directive is not allowed here'),
        ("upstream a { server b:0; }", '2: "server": address 0 is out of range 1 to 65535'),
        (
            "upstream a { server b; proxy_ssl_certificate c; }",
            '2: "upstream": no "proxy_ssl_certificate_key" is defined',
        ),
    ],
)
def test_error_names_line_and_directive(block: str, problem: str) -> None:
    found = problems(f"{block}\n{ROUTE} {SERVER}")
    assert any(each.startswith(f"/etc/nginx.conf:{problem}") for each in found), found


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ("upstream=a domains=x", "invalid parameter: domains=x"),
        ("upstream=a upstream=a domain=x", "duplicate parameter: upstream"),
        ("domain=x upstream=b", "'b' is not in spec.upstreams (a)"),
        ("domain=x", "must have table alone, or upstream with users, domains or both"),
    ],
)
def test_error_of_route_names_line(route: str, problem: str) -> None:
    found = problems(f"upstream a {{ server b; }}\nauth_mode upstream;\nroute {route};\n{SERVER}")
    assert len(found) == 1
    assert found[0].startswith('/etc/nginx.conf:4: "route"')
    assert problem in found[0]


def test_upstream_in_server_is_refused() -> None:
    [found] = problems("auth_http a; server { listen 143; upstream a { server b; } }")
    assert '"upstream" directive is not allowed here: it is allowed in mail {}' in found

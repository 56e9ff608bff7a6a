# SPDX-License-Identifier: Apache-2.0
"""Servers behind one listener: what is allowed, and the errors for the rest, in all three kinds of files."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.compile import compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.load import load
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.rendered import dump
from support.config_bodies import Body, body, server

TLS = {"sslCertificate": [{"secretName": "mail-tls"}], "authHttp": "auth.example:9000"}
SSL = {"port": 993, "ssl": True}


def imaps(name: str, **fields: Any) -> Body:
    return server(name, **{"listen": [SSL], "protocol": "imap", **fields})


def problems_of(*servers: Body, **mail: Any) -> list[str]:
    try:
        parse_manifest(body(*servers, mail={**TLS, **mail}))
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_servers_with_different_names_share_an_ssl_listener() -> None:
    first, second = (
        imaps("a", serverNames=["a.example"]),
        imaps("b", serverNames=["B.example.", "*.b.example"]),
    )
    config = compile_proxy(parse_manifest(body(first, second, mail=TLS)))
    assert [server.server_names for server in config.servers] == [
        ("a.example",),
        ("b.example", "*.b.example"),
    ]
    assert load(dump(config)).config == config


def test_server_name_is_used_without_server_names() -> None:
    assert problems_of(imaps("a", serverName="a.example"), imaps("b", serverName="b.example")) == []


def test_default_server_needs_no_name() -> None:
    assert problems_of(imaps("a"), imaps("b", serverNames=["b.example"])) == []


DUPLICATE = (
    "spec.servers[1].listen[0]: duplicate *:993 address and port pair, also in spec.servers[0].listen[0]"
)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({}, {}, ": to choose between them by SNI, set serverNames"),
        (
            {"serverNames": ["a.example"]},
            {"serverNames": ["A.example"]},
            ": both have the name a.example; to choose between them by SNI, set serverNames",
        ),
        ({}, {"serverNames": ["b.example"], "listen": [{"port": 993}]}, ""),
        ({"listen": [{"port": 993}]}, {"serverNames": ["b.example"]}, ""),
        (
            {},
            {"serverNames": ["b.example"], "protocol": "pop3"},
            ": servers of different protocols cannot share it",
        ),
        (
            {},
            {"serverNames": ["b.example"], "listen": [{**SSL, "proxyProtocol": True}]},
            ": the parameters differ",
        ),
        (
            {"listen": [{**SSL, "alpnServers": {"imap": "a"}}]},
            {"serverNames": ["b.example"]},
            ": a listener with alpnServers belongs to one server",
        ),
    ],
)
def test_servers_that_cannot_be_told_apart_are_rejected(first: Body, second: Body, reason: str) -> None:
    assert problems_of(imaps("a", **first), imaps("b", **second)) == [DUPLICATE + reason]


def test_mail_level_name_does_not_separate_servers() -> None:
    found = problems_of(imaps("a"), imaps("b"), serverName="mail.example")
    assert found == [
        f"{DUPLICATE}: both have the name mail.example; to choose between them by SNI, set serverNames"
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sslEcdhCurve", "X25519"),
        ("sslSessionCache", ["builtin"]),
        ("sslSessionTimeout", "1m"),
        ("sslSessionTickets", False),
        ("sslSessionTicketKey", [{"file": "/k"}]),
        ("sslConfCommand", [{"name": "Options", "value": "x"}]),
    ],
)
def test_setting_of_the_listener_must_be_the_same(field: str, value: Any) -> None:
    (problem,) = problems_of(imaps("a"), imaps("b", serverNames=["b.example"], **{field: value}))
    assert "must be as in spec.servers[0]: it applies before one of them is chosen" in problem
    assert problems_of(imaps("a"), imaps("b", serverNames=["b.example"]), **{field: value}) == []


def test_one_server_twice_at_one_address_is_rejected() -> None:
    assert problems_of(imaps("a", serverNames=["a.example"], listen=[SSL, SSL])) == [
        "spec.servers[0].listen[1]: duplicate *:993 address and port pair, also in spec.servers[0].listen[0]"
    ]


# --- ALPN ---------------------------------------------------------------------------

POP3S = server("pop3s", listen=[{"port": 995, "ssl": True}])


def on_443(**parameters: Any) -> Body:
    https = {"port": 443, "ssl": True, "alpnServers": {"imap": "imaps", "pop3": "pop3s"}, **parameters}
    return imaps("imaps", listen=[SSL, https])


def test_listener_refers_to_servers_by_protocol() -> None:
    config = compile_proxy(parse_manifest(body(on_443(alpnDefault="pop3s"), POP3S, mail=TLS)))
    listen = config.servers[0].listen[1]
    assert listen.alpn_servers == (("imap", "imaps"), ("pop3", "pop3s"))
    assert listen.alpn_default == "pop3s"
    assert load(dump(config)).config == config


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"alpnServers": {"smtp": "nobody"}}, "alpnServers.smtp: there is no server 'nobody'"),
        ({"alpnServers": {"smtp": "pop3s"}}, "alpnServers.smtp: server 'pop3s' has the protocol pop3"),
        ({"alpnDefault": "nobody"}, "alpnDefault: there is no server 'nobody'"),
        ({"ssl": False}, "alpnServers: needs ssl: true"),
        ({"alpnServers": {"h2": "imaps"}}, "alpnServers.h2: unknown field"),
        ({"alpnServers": {}, "alpnDefault": "imaps"}, "alpnDefault: needs alpnServers"),
        ({"alpnServers": {"smtp": "plain"}}, "server 'plain' has no ssl listener or starttls, and so no TLS"),
    ],
)
def test_invalid_alpn_servers_are_rejected(parameters: Body, problem: str) -> None:
    found = problems_of(on_443(**parameters), POP3S, server("plain", 25))
    assert len(found) == 1
    assert found[0].startswith("spec.servers[0].listen[1]")
    assert problem in found[0]


NGINX = """
mail {{
    auth_http localhost:9000;
    ssl_certificate c.pem;
    ssl_certificate_key k.pem;
    server {{ listen 993 ssl; {first} }}
    server {{
        listen 993 ssl;
        {second}
    }}
}}
"""


def test_nginx_servers_with_names_share_an_ssl_listener() -> None:
    text = NGINX.format(first="server_name a.example;", second="server_names b.example *.b.example;")
    config = load(text.encode(), source="n.conf").config
    assert config.servers[0].server_names == ()
    assert config.servers[1].server_names == ("b.example", "*.b.example")


def test_nginx_servers_without_names_are_duplicates_with_their_line() -> None:
    with pytest.raises(ConfigError) as raised:
        load(NGINX.format(first="", second="").encode(), source="n.conf")
    (problem,) = raised.value.problems
    assert problem.path == "n.conf:8"
    assert "duplicate *:993 address and port pair" in problem.reason


def test_nginx_listener_with_alpn_servers() -> None:
    text = """mail { auth_http a; ssl_certificate c; ssl_certificate_key k;
    server { listen 993 ssl; listen 443 ssl alpn_servers=imap:imap,pop3:pop3 alpn_default=imap; }
    server { listen 995 ssl; } }"""
    listen = load(text.encode(), source="n.conf").config.servers[0].listen[1]
    assert (listen.alpn_servers, listen.alpn_default) == ((("imap", "imap"), ("pop3", "pop3")), "imap")

# SPDX-License-Identifier: Apache-2.0
"""Logins about which a real Dovecot and Postfix decide (``authMode: Upstream``): there is no service."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers import proxy as proxies
from support.servers.certificates import Certificates
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import Ports, eventually
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop

DOMAIN: Final = "example.org"
"""The only domain with a route; Dovecot does not compare it."""
ELSEWHERE: Final = "127.0.0.2"
"""Dovecot trusts a connection from its own address without TLS, too, but not one from another."""
PASSWORD: Final = "wonder land%21"
REFUSED: Final = {
    "imap": b"a NO [AUTHENTICATIONFAILED] Authentication failed.",
    "pop3": b"-ERR [AUTH] Authentication failed.",
    "smtp": b"535 5.7.8 Authentication failed.",
}
UNAVAILABLE: Final = {
    "imap": b"a NO [SERVERBUG] Account is temporarily unavailable.",
    "pop3": b"-ERR [SYS/TEMP] Account is temporarily unavailable.",
    "smtp": b"454 4.7.0 Temporary authentication failure",
}
SUCCESS: Final = {"imap": b"a OK ", "pop3": b"+OK ", "smtp": b"235 "}
UPSTREAMS: Final = ("imap", "pop3", "submission", "postfix")


@dataclass
class World:
    """A proxy in front of Dovecot and Postfix, with one listener for each protocol and way of TLS."""

    proxy: Proxy
    ports: dict[str, int]


@pytest.fixture(scope="module")
def secured(
    needs: Needs, new_folder: Callable[[str], Path], ports: Ports, tls: Certificates
) -> Iterator[Dovecot]:
    """Dovecot that requires TLS."""
    lines = f"""
ssl = required
ssl_cert = <{tls.proxy.certificate}
ssl_key = <{tls.proxy.key}
disable_plaintext_auth = yes
login_trusted_networks =
listen = 127.0.0.1, {ELSEWHERE}
"""
    found = {"alice": PASSWORD}
    running = dovecots.start(
        needs("dovecot"), new_folder("dovecot-tls"), ports, found, ports.take(), extra=lines
    )
    yield running
    running.running.stop()


@pytest.fixture(scope="module")
def world(
    dovecot: Dovecot,
    secured: Dovecot,
    postfix: Postfix,
    ports: Ports,
    tls: Certificates,
    new_folder: Callable[[str], Path],
) -> Iterator[World]:
    found: dict[str, int] = {}
    servers: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    starttls = {
        "proxySsl": "Starttls",
        "proxySslName": "localhost",
        "proxySslTrustedCertificate": {"file": tls.authority},
    }
    for name in ("imap", "pop3", "submission"):
        groups.append({"name": name, "servers": [{"address": f"127.0.0.1:{dovecot.ports[name]}"}]})
        server = {"servers": [{"address": f"{ELSEWHERE}:{secured.ports[name]}"}]}
        groups.append({"name": f"{name}-clear", **server})
        groups.append({"name": f"{name}-starttls", **server, **starttls})
    groups.append({"name": "postfix", "servers": [{"address": f"127.0.0.1:{postfix.ports['smtp']}"}]})
    for group in groups:
        name = group["name"]
        found[name] = ports.take()
        servers.append(
            {
                "name": name,
                "protocol": protocol_of(name),
                "listen": [{"address": "127.0.0.1", "port": found[name]}],
                "routes": [{"domains": [DOMAIN], "upstream": name}],
            }
        )
    mail = {
        "authMode": "Upstream",
        "proxySmtpGuard": False,
        "timeout": "20s",
        "maxErrors": 20,
        "pop3ClientBuffer": "8k",
        "authFailureDelay": "200ms",
    }
    proxy = proxies.start(new_folder("verdict"), manifest(servers, mail, upstreams=groups))
    yield World(proxy, found)
    proxy.stop()


def protocol_of(name: str) -> str:
    found = name.partition("-")[0]
    return {"submission": "smtp", "postfix": "smtp"}.get(found, found)


def connect(world: World, name: str) -> RawClient:
    client = RawClient(world.ports[name])
    client.read_line()
    if protocol_of(name) == "smtp":
        reply = client.exchange(b"EHLO client.example")
        while reply[3:4] == b"-":
            reply = client.read_line()
    return client


def log_in(client: RawClient, protocol: str, user: str, password: str) -> bytes:
    """Return the reply."""
    return client.exchange(login(protocol, user, password))


def login(protocol: str, user: str, password: str) -> bytes:
    """Return the command."""
    message = b64encode(f"\0{user}\0{password}".encode())
    return (b"a AUTHENTICATE PLAIN " if protocol == "imap" else b"AUTH PLAIN ") + message


def log_in_at_once(world: World, name: str, *credentials: tuple[str, str]) -> set[bytes]:
    """Log in with several connections at the same time, as refusals take seconds; return the replies."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(world, name)) for _ in credentials]
        for client, (user, password) in zip(clients, credentials, strict=True):
            client.send(login(protocol_of(name), user, password) + b"\r\n")
        return {client.read_line().rstrip() for client in clients}


@pytest.mark.parametrize("name", UPSTREAMS)
def test_client_logs_in_after_wrong_passwords(world: World, name: str) -> None:
    """Of a known user, of an unknown one, and of one without a route: the replies are the same."""
    protocol = protocol_of(name)
    users = f"alice@{DOMAIN}", f"nobody@{DOMAIN}", "alice@elsewhere.example"
    replies = log_in_at_once(world, name, *((user, "wrong password") for user in users))
    assert replies == {REFUSED[protocol]}
    with connect(world, name) as client:
        assert log_in(client, protocol, users[0], "wrong password").rstrip() == REFUSED[protocol]
        assert log_in(client, protocol, f"alice@{DOMAIN}", PASSWORD).startswith(SUCCESS[protocol])
        assert works(client, protocol)
    log = world.proxy.running.output_text()
    assert "wrong password" not in log
    assert PASSWORD not in log


def works(client: RawClient, protocol: str) -> bool:
    """Whether the mail server replies to a command that needs a login."""
    command = {"imap": b"b SELECT INBOX", "pop3": b"STAT", "smtp": b"MAIL FROM:<alice@example.org>"}
    reply = client.exchange(command[protocol])
    while reply.startswith(b"* "):
        reply = client.read_line()
    return reply.startswith((b"b OK", b"+OK 0 ", b"250 "))


@pytest.mark.parametrize("name", ["imap", "pop3", "submission"])
def test_upstream_that_requires_tls_is_misconfigured_without_and_decides_with_it(
    world: World, name: str
) -> None:
    protocol = protocol_of(name)
    with connect(world, f"{name}-clear") as client:
        reply = log_in(client, protocol, f"alice@{DOMAIN}", PASSWORD).rstrip()
        # POP3 has no code for it: its reply is the one to a wrong password.
        assert reply == (REFUSED if protocol == "pop3" else UNAVAILABLE)[protocol]
    with connect(world, f"{name}-starttls") as client:
        assert log_in(client, protocol, f"alice@{DOMAIN}", "wrong").rstrip() == REFUSED[protocol]
        assert log_in(client, protocol, f"alice@{DOMAIN}", PASSWORD).startswith(SUCCESS[protocol])


@pytest.mark.parametrize("name", UPSTREAMS)
def test_long_password_is_refused_as_a_short_one(world: World, name: str) -> None:
    user = f"{'b' * 240}@{DOMAIN}"
    replies = log_in_at_once(world, name, (user, "x" * 512), (user, "x" * 2000))
    assert replies == {REFUSED[protocol_of(name)]}


def test_postfix_gets_the_address_of_the_client_and_relays_after_auth_alone(
    world: World, postfix: Postfix
) -> None:
    with connect(world, "postfix") as client:
        assert client.exchange(b"MAIL FROM:<alice@example.org>").startswith(b"530 5.7.1 ")
        assert log_in(client, "smtp", f"alice@{DOMAIN}", PASSWORD).startswith(b"235 ")
        assert client.exchange(b"MAIL FROM:<alice@example.org>").startswith(b"250 ")
        assert client.exchange(b"RCPT TO:<somebody@elsewhere.example>").startswith(b"250 ")
        assert client.exchange(b"QUIT").startswith(b"221 ")
        eventually(lambda: postfix.log_lines(f"[127.0.0.1]:{client.port}"), "XCLIENT with the client's port")
    eventually(lambda: postfix.log_lines("sasl_method=PLAIN", "sasl_username=alice"), "AUTH in Postfix's log")


def test_stopped_upstream_is_no_refusal(ports: Ports, new_proxy: Callable[..., Proxy]) -> None:
    port, upstream = ports.take(), ports.take()
    server = {
        "name": "imap",
        "protocol": "imap",
        "listen": [{"address": "127.0.0.1", "port": port}],
        "routes": [{"domains": ["*"], "upstream": "stopped"}],
    }
    groups = [{"name": "stopped", "servers": [{"address": f"127.0.0.1:{upstream}"}]}]
    proxy = new_proxy(manifest([server], {"authMode": "Upstream"}, upstreams=groups))
    with RawClient(port) as client:
        client.read_line()
        reply = log_in(client, "imap", "alice", PASSWORD)
        assert reply.rstrip() == b"a NO [UNAVAILABLE] Account is temporarily unavailable."
        assert client.exchange(b"b NOOP").startswith(b"b OK")
    assert proxy.event("session")["result"] == "upstream_failed"
    assert proxy.value("mailproxy_logins_total", result="upstream_denied") == 0

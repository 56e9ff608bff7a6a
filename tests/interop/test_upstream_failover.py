# SPDX-License-Identifier: Apache-2.0
"""Two real Dovecots, one of which stops, and a Postfix that stops and starts again."""

from __future__ import annotations

import contextlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers import postfix as postfixes
from support.servers.auth_service import AuthRule, AuthService
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.postfix import DovecotPorts
from support.servers.programs import Ports, eventually
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop

PASSWORDS: Final = {"alice": "wonder land%21", "carol": "only at the proxy"}
"""Passwords that the authentication service accepts."""
AT_SERVER: Final = {"alice": PASSWORDS["alice"], "carol": "only at the server"}
PROTOCOLS: Final = ("imap", "pop3", "submission")
FAILOVER: Final[dict[str, Any]] = {
    "authHttpServerNames": True,
    "proxyNextUpstream": ["Connect", "Greeting", "Tls", "Starttls", "Hello"],
    "proxyPassErrorMessage": True,
    "proxySmtpAuth": True,
    "xclient": False,
    "proxySmtpGuard": False,  # tests have the address of the proxy
}
ACCEPTED: Final = {"imap": b"a OK", "pop3": b"+OK", "submission": b"235"}
REFUSED: Final = {"imap": b"a NO [AUTHENTICATIONFAILED]", "pop3": b"-ERR [AUTH]", "submission": b"535"}


@pytest.fixture
def two_dovecots(
    needs: Needs, new_folder: Callable[[str], Path], ports: Ports
) -> Iterator[tuple[Dovecot, Dovecot]]:
    """Two Dovecots with the same users."""
    path = needs("dovecot")
    with contextlib.ExitStack() as on_exit:

        def start(name: str) -> Dovecot:
            running = dovecots.start(path, new_folder(name), ports, AT_SERVER, ports.take())
            on_exit.callback(running.running.stop)
            return running

        yield start("first"), start("second")


@pytest.fixture
def started(
    new_proxy: Callable[..., Proxy], service: AuthService, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Proxy, dict[str, int]]]:
    """Start a proxy with one server for each protocol."""
    for user, password in PASSWORDS.items():
        monkeypatch.setitem(service.passwords, user, password)

    def start(rules: dict[str, AuthRule], **directives: Any) -> tuple[Proxy, dict[str, int]]:
        listeners = ports.take_all(*rules)
        servers = []
        for name, port in listeners.items():
            service.rules[f"/failover-{port}"] = rules[name]
            servers.append(
                {
                    "name": name,
                    "protocol": "smtp" if name == "submission" else name,
                    "listen": [{"address": "127.0.0.1", "port": port}],
                    "authHttp": service.url(f"/failover-{port}"),
                }
            )
        return new_proxy(manifest(servers, {"timeout": "20s", **directives})), listeners

    return start


def log_in(protocol: str, port: int, user: str) -> bytes:
    """Log in, and return the last reply."""
    password = PASSWORDS[user].encode()
    with RawClient(port) as client:
        client.read_line()
        if protocol == "imap":
            client.send(b'a LOGIN %b "%b"\r\n' % (user.encode(), password))
            return client.read_until(b"a ")[-1]
        if protocol == "pop3":
            assert client.exchange(b"USER " + user.encode()).startswith(b"+OK")
            return client.exchange(b"PASS " + password)
        client.send(b"EHLO client.example.org\r\n")
        client.read_until(b"250 ")
        return client.exchange(auth_plain(user))


def auth_plain(user: str) -> bytes:
    return b"AUTH PLAIN " + b64encode(f"\0{user}\0{PASSWORDS[user]}".encode())


def tries(proxy: Proxy, result: str) -> float:
    return proxy.value("mailproxy_upstream_tries_total", result=result)


def test_logins_go_on_at_the_second_dovecot_when_the_first_stops(
    two_dovecots: tuple[Dovecot, Dovecot], started: Callable[..., tuple[Proxy, dict[str, int]]]
) -> None:
    """A wrong password is final before and after: the other Dovecot does not get it."""
    first, second = two_dovecots
    rules = {
        name: AuthRule(143, address=f"127.0.0.1:{first.ports[name]}, 127.0.0.1:{second.ports[name]}")
        for name in PROTOCOLS
    }
    proxy, listeners = started(rules, **FAILOVER)
    for name, port in listeners.items():
        assert log_in(name, port, "alice").startswith(ACCEPTED[name])
        assert log_in(name, port, "carol").startswith(REFUSED[name])
    assert (tries(proxy, "success"), tries(proxy, "final"), tries(proxy, "next")) == (3, 3, 0)
    assert "Login" not in second.log()
    assert "carol" not in second.log()

    first.running.stop()
    for _ in range(10):
        for name, port in listeners.items():
            assert log_in(name, port, "alice").startswith(ACCEPTED[name])
    for name, port in listeners.items():
        assert log_in(name, port, "carol").startswith(REFUSED[name])
    assert (tries(proxy, "success"), tries(proxy, "final")) == (33, 6)
    assert tries(proxy, "next") >= 9  # three in a row for each address; then it is tried last
    eventually(
        lambda: len(second.log_lines("-login: Info: Login", "user=<alice>")) == 30, "30 logins in the log"
    )
    denied = proxy.value("mailproxy_logins_total", result="upstream_denied")
    assert denied == 6


def test_smtp_client_logs_in_on_the_same_connection_when_postfix_is_back(
    two_dovecots: tuple[Dovecot, Dovecot],
    started: Callable[..., tuple[Proxy, dict[str, int]]],
    needs: Needs,
    new_folder: Callable[[str], Path],
    ports: Ports,
) -> None:
    """``proxyTempfail: Rfc5530``: the client gets temporary failures while Postfix is stopped."""
    path, dovecot = needs("postfix", by_root=True), two_dovecots[0]
    of_dovecot = DovecotPorts(dovecot.ports["lmtp"], dovecot.ports["sasl"])
    own = postfixes.take_ports(ports)
    directives = {
        "proxyTempfail": "Rfc5530",
        "proxySmtpAuth": True,
        "xclient": False,
        "proxySmtpGuard": False,
    }
    proxy, listeners = started({"submission": AuthRule(own["smtp"])}, **directives)
    postfix = postfixes.start(path, new_folder("postfix-before"), own, of_dovecot, AT_SERVER)
    assert log_in("submission", listeners["submission"], "alice").startswith(b"235")
    postfix.stop()
    with RawClient(listeners["submission"]) as client:
        client.read_line()
        client.send(b"EHLO client.example.org\r\n")
        client.read_until(b"250 ")
        for _ in range(2):
            assert client.exchange(auth_plain("alice")) == b"454 4.7.0 Temporary authentication failure"
        postfix = postfixes.start(path, new_folder("postfix-after"), own, of_dovecot, AT_SERVER)
        try:
            assert client.exchange(auth_plain("alice")).startswith(b"235")
            assert client.exchange(b"MAIL FROM:<alice@example.org>").startswith(b"250")
            assert client.exchange(b"RCPT TO:<alice@example.org>").startswith(b"250")
            client.send(b"DATA\r\n")
            assert client.read_line().startswith(b"354")
            assert client.exchange(b"Subject: back\r\n\r\nHello\r\n.").startswith(b"250")
            eventually(lambda: postfix.log_lines("sasl_username=alice"), "Postfix's log")
        finally:
            postfix.stop()
    assert proxy.value("mailproxy_logins_total", result="upstream_failed") == 2
    assert proxy.value("mailproxy_logins_total", result="upstream_denied") == 0

# SPDX-License-Identifier: Apache-2.0
"""TLS to a real Dovecot and Postfix that require it, and the client's address in their logs.

Also through two proxies, behind webmail that names its client.
"""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers import postfix as postfixes
from support.servers import unbound as unbounds
from support.servers.auth_service import AuthRule, AuthService
from support.servers.certificates import Certificates
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.postfix import DovecotPorts, Postfix
from support.servers.programs import TIMEOUT_SECONDS, Ports, eventually
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop

PASSWORDS: Final = {"alice": "wonder land%21", "bob": 'buil"der\\'}
CLIENT: Final = "127.0.0.9"
"""The address that the clients bind: another one than the proxy's."""
_IMPLICIT: Final = ("imaps", "pop3s", "submissions")


@pytest.fixture(scope="module")
def service_rules(service: AuthService) -> AuthService:
    service.passwords.update(PASSWORDS)
    return service


@pytest.fixture(scope="module")
def tls_dovecot(
    needs: Needs, new_folder: Callable[[str], Path], ports: Ports, tls: Certificates
) -> Iterator[tuple[Dovecot, dict[str, int]]]:
    """Dovecot that refuses passwords in clear, and believes ID and XCLIENT from the proxy."""
    implicit = ports.take_all(*_IMPLICIT)
    lines = [
        "ssl = required",
        "disable_plaintext_auth = yes",
        f"ssl_cert = <{tls.proxy.certificate}",
        f"ssl_key = <{tls.proxy.key}",
        "login_trusted_networks = 127.0.0.1",
    ]
    for name, port in implicit.items():
        protocol = name.removesuffix("s")
        listener = f"  inet_listener {name} {{\n    port = {port}\n    ssl = yes\n  }}"
        lines.append(f"service {protocol}-login {{\n{listener}\n}}")
    running = dovecots.start(
        needs("dovecot"),
        new_folder("dovecot-tls"),
        ports,
        PASSWORDS,
        ports.take(),
        extra="\n".join(lines) + "\n",
    )
    running.running.wait_for_ports(*implicit.values())
    yield running, implicit
    running.running.stop()


@pytest.fixture(scope="module")
def tls_postfix(
    needs: Needs,
    new_folder: Callable[[str], Path],
    ports: Ports,
    tls: Certificates,
    tls_dovecot: tuple[Dovecot, dict[str, int]],
) -> Iterator[Postfix]:
    """Postfix that accepts nothing before STARTTLS, and XCLIENT from the proxy."""
    dovecot, _ = tls_dovecot
    extra = (
        "smtpd_tls_security_level = encrypt\n"
        f"smtpd_tls_cert_file = {tls.proxy.certificate}\nsmtpd_tls_key_file = {tls.proxy.key}\n"
    )
    running = postfixes.start(
        needs("postfix", by_root=True),
        new_folder("postfix-tls"),
        postfixes.take_ports(ports),
        DovecotPorts(dovecot.ports["lmtp"], dovecot.ports["sasl"]),
        PASSWORDS,
        extra=extra,
    )
    yield running
    running.stop()


StartProxy = Callable[..., tuple[Proxy, int]]


@pytest.fixture
def started(
    new_proxy: Callable[..., Proxy], service_rules: AuthService, tls: Certificates, ports: Ports
) -> StartProxy:
    """Start a proxy with one server in front of a port."""

    def start(protocol: str, upstream: int, **directives: Any) -> tuple[Proxy, int]:
        port = ports.take()
        path = f"/tls-{port}"
        service_rules.rules[path] = AuthRule(upstream)
        server = {
            "name": protocol,
            "protocol": protocol,
            "listen": [{"address": address, "port": port} for address in ("127.0.0.1", "[::1]")],
            "authHttp": service_rules.url(path),
            "proxySslName": "localhost",
            "proxySslTrustedCertificate": {"file": tls.authority},
            **directives,
        }
        return new_proxy(manifest([server], {"timeout": "20s"})), port

    return start


class ImapClient(imaplib.IMAP4):
    """An IMAP client with the address ``CLIENT``."""

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout, source_address=(CLIENT, 0))


def imap_login(port: int) -> imaplib.IMAP4:
    client = ImapClient("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    client.login("alice", PASSWORDS["alice"])
    return client


@pytest.mark.parametrize("mode", ["Enabled", "Starttls"])
def test_imap_with_tls_to_dovecot(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy, mode: str
) -> None:
    dovecot, implicit = tls_dovecot
    upstream = implicit["imaps"] if mode == "Enabled" else dovecot.ports["imap"]
    proxy, port = started("imap", upstream, proxySsl=mode, proxyId="Required")
    client = imap_login(port)
    assert client.select()[0] == "OK"
    assert client.logout()[0] == "BYE"
    eventually(
        lambda: dovecot.log_lines("imap-login: Info: Login", "user=<alice>", f"rip={CLIENT}", "TLS"),
        "the client's address in Dovecot's log",
    )
    for _ in range(3):
        imap_login(port).logout()
    assert proxy.value("mailproxy_upstream_tls_handshake_seconds_count", resumed="true") >= 2


@pytest.mark.parametrize("mode", ["Enabled", "Starttls"])
def test_pop3_with_tls_to_dovecot(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy, mode: str
) -> None:
    dovecot, implicit = tls_dovecot
    upstream = implicit["pop3s"] if mode == "Enabled" else dovecot.ports["pop3"]
    _, port = started("pop3", upstream, proxySsl=mode, proxyXclient="Auto")
    client = poplib.POP3("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    client.user("bob")
    assert client.pass_(PASSWORDS["bob"]).startswith(b"+OK")
    assert len(client.stat()) == 2
    assert client.quit().startswith(b"+OK")
    eventually(
        lambda: dovecot.log_lines("pop3-login: Info: Login", "user=<bob>", "TLS"), "TLS in Dovecot's log"
    )


@pytest.mark.parametrize("mode", ["Enabled", "Starttls"])
def test_submission_with_tls_to_dovecot(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy, mode: str
) -> None:
    dovecot, implicit = tls_dovecot
    upstream = implicit["submissions"] if mode == "Enabled" else dovecot.ports["submission"]
    _, port = started("smtp", upstream, proxySsl=mode, proxySmtpAuth=True, xclientMode="Auto")
    with smtplib.SMTP("127.0.0.1", port, timeout=TIMEOUT_SECONDS, source_address=(CLIENT, 0)) as client:
        client.login("alice", PASSWORDS["alice"])
    eventually(
        lambda: dovecot.log_lines("submission-login: Info: Login", "user=<alice>", f"rip={CLIENT}"),
        "the client's address in Dovecot's log",
    )


FACTS: Final = [
    {"name": "site", "value": 'east "1\\2'},
    {"name": "port", "value": "$protocol:$remote_port"},
    {"name": "long", "value": "v" * 150},
]


def raw_login(client: RawClient, protocol: str) -> None:
    """Log alice in."""
    client.read_line()
    password = PASSWORDS["alice"].encode()
    if protocol == "imap":
        client.send(b'a LOGIN alice "%b"\r\n' % password)
        assert client.read_until(b"a ")[-1].startswith(b"a OK")
    elif protocol == "pop3":
        assert client.exchange(b"USER alice").startswith(b"+OK")
        assert client.exchange(b"PASS " + password).startswith(b"+OK")
    else:
        client.send(b"EHLO client.example.org\r\n")
        client.read_until(b"250 ")
        assert client.exchange(b"AUTH PLAIN " + b64encode(b"\0alice\0" + password)).startswith(b"235")


@pytest.mark.parametrize("protocol", ["imap", "pop3", "submission"])
def test_dovecot_gets_the_facts_of_proxy_forward(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy, protocol: str
) -> None:
    dovecot, _ = tls_dovecot
    ours = "smtp" if protocol == "submission" else protocol
    directives = {
        "imap": {"proxyId": "Required"},
        "pop3": {"proxyXclient": "Required"},
        "smtp": {"xclientMode": "Required", "proxySmtpAuth": True},
    }[ours]
    _, port = started(ours, dovecot.ports[protocol], proxySsl="Starttls", proxyForward=FACTS, **directives)
    with RawClient(port) as client:
        raw_login(client, ours)
        client_port = client.port
    fields = (
        'forward_site=east "1\\2',
        f"forward_port={ours}:{client_port}",
        "forward_long=" + "v" * 150,
    )
    eventually(lambda: dovecot.log_lines("client passdb out: OK", *fields), "the facts in Dovecot's log")


every_client = pytest.mark.parametrize("address", [CLIENT, "127.255.1.2", "::1"])
IDENTITY: Final[dict[str, dict[str, Any]]] = {
    "imap": {"proxyId": "Required"},
    "pop3": {"proxyXclient": "Required"},
    "submission": {"xclientMode": "Required", "proxySmtpAuth": True},
}
"""How Dovecot gets the client's address without a PROXY header."""


@every_client
@pytest.mark.parametrize("way", ["", "V1", "V2"])
@pytest.mark.parametrize("protocol", ["imap", "pop3", "submission"])
def test_dovecot_logs_the_client_address_with_tls_required(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy, protocol: str, way: str, address: str
) -> None:
    """By ID or XCLIENT inside of TLS, or by a PROXY header before it."""
    dovecot, _ = tls_dovecot
    ours = "smtp" if protocol == "submission" else protocol
    directives = IDENTITY[protocol]
    upstream = dovecot.ports[protocol]
    if way:
        directives = {"proxyProtocol": way, "proxySmtpAuth": True, "xclient": False}
        upstream = dovecot.ports[f"{protocol}_haproxy"]
    _, port = started(ours, upstream, proxySsl="Starttls", **directives)
    with RawClient(port, source=address) as client:
        raw_login(client, ours)
        fields = (f"service={protocol}", f"rip={address}", f"rport={client.port}", "secured")
    [line] = eventually(
        lambda: dovecot.log_lines("client in: AUTH", *fields), "the client's address in Dovecot's log"
    )
    session = next(word for word in line.split("\t") if word.startswith("session="))
    login = (f"{protocol}-login: Info: Login", f"rip={address}", f"session=<{session.partition('=')[2]}>")
    eventually(lambda: dovecot.log_lines(*login), "the login in Dovecot's log")


@every_client
@pytest.mark.parametrize("way", ["", "V1", "V2"])
def test_postfix_logs_the_client_address_with_tls_required(
    tls_postfix: Postfix, started: StartProxy, way: str, address: str
) -> None:
    """By XCLIENT inside of TLS, or by a PROXY header before it."""
    directives: dict[str, Any] = {"xclientMode": "Required"}
    upstream = tls_postfix.ports["smtp"]
    if way:
        directives = {"proxyProtocol": way, "proxySmtpAuth": True, "xclient": False}
        upstream = tls_postfix.ports["smtp_haproxy"]
    _, port = started("smtp", upstream, proxySsl="Starttls", **directives)
    with RawClient(port, source=address) as client:
        raw_login(client, "smtp")
        assert client.exchange(b"MAIL FROM:<alice@example.org>").startswith(b"250")
        assert client.exchange(b"RCPT TO:<bob@example.org>").startswith(b"250")
        words = (f"client=unknown[{address}]:{client.port}", "sasl_username=alice")
        eventually(lambda: tls_postfix.log_lines(*words), "the client's address in Postfix's log")


@pytest.mark.parametrize("protocol", ["imap", "pop3", "submission"])
def test_dovecot_accepts_the_unique_id_of_a_proxy_header(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy, protocol: str
) -> None:
    dovecot, _ = tls_dovecot
    ours = "smtp" if protocol == "submission" else protocol
    directives: dict[str, Any] = {"xclient": False, "proxySmtpAuth": True} if ours == "smtp" else {}
    upstream = dovecot.ports[f"{protocol}_haproxy"]
    tls = {"proxySsl": "Starttls", "proxyProtocol": "V2", "proxyProtocolUniqueId": True}
    _, port = started(ours, upstream, **tls, **directives)
    with RawClient(port) as client:
        raw_login(client, ours)
        words = (f"service={protocol}", f"rport={client.port}")
        eventually(lambda: dovecot.log_lines("client in: AUTH", *words), "the client in Dovecot's log")


def test_smtp_with_starttls_to_postfix(tls_postfix: Postfix, started: StartProxy) -> None:
    _, port = started(
        "smtp",
        tls_postfix.ports["smtp"],
        proxySsl="Starttls",
        xclientMode="Required",
        serverName="front.example",
    )
    with smtplib.SMTP("127.0.0.1", port, timeout=TIMEOUT_SECONDS, source_address=(CLIENT, 0)) as client:
        client.login("alice", PASSWORDS["alice"])
        assert (
            client.sendmail("alice@example.org", ["bob@example.org"], b"Subject: TLS\r\n\r\nHello\r\n") == {}
        )
    eventually(lambda: tls_postfix.log_lines("client=", CLIENT, "sasl_username=alice"), "Postfix's log")


def test_postfix_refuses_what_comes_without_tls(tls_postfix: Postfix, started: StartProxy) -> None:
    proxy, port = started("smtp", tls_postfix.ports["smtp"])
    with (
        smtplib.SMTP("127.0.0.1", port, timeout=TIMEOUT_SECONDS) as client,
        pytest.raises(smtplib.SMTPException),
    ):
        client.login("alice", PASSWORDS["alice"])
    assert "STARTTLS" in proxy.event("upstream_failed")["reply"]


@pytest.mark.parametrize("mode", ["Enabled", "Starttls"])
def test_certificate_of_dovecot_with_another_name_is_rejected(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy, mode: str
) -> None:
    dovecot, implicit = tls_dovecot
    upstream = implicit["imaps"] if mode == "Enabled" else dovecot.ports["imap"]
    proxy, port = started("imap", upstream, proxySsl=mode, proxySslName="mail.example.org")
    client = ImapClient("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    with pytest.raises(imaplib.IMAP4.error):
        client.login("alice", PASSWORDS["alice"])
    client.shutdown()
    event = proxy.event("upstream_failed", failure="name")
    assert '"mail.example.org" is not among its names (DNS:localhost)' in event["reason"]


@pytest.fixture(scope="module")
def name_server(needs: Needs, new_folder: Callable[[str], Path], ports: Ports) -> Iterator[unbounds.Unbound]:
    """Unbound with the addresses of Dovecot, whose certificate has the name ``localhost``."""
    records = ("localhost. 60 IN A 127.0.0.1", "other.example. 60 IN A 127.0.0.1")
    running = unbounds.start(
        needs("unbound"), new_folder("unbound-tls"), ports.take(), ("localhost.", "other.example."), records
    )
    yield running
    running.running.stop()


NAMES: Final = {
    "authHttpServerNames": True,
    "authHttpServerNetworks": ["127.0.0.0/8"],
    "proxySslName": "",
    "proxySsl": "Starttls",
}


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_login_at_dovecot_by_name(
    tls_dovecot: tuple[Dovecot, dict[str, int]],
    started: StartProxy,
    service_rules: AuthService,
    name_server: unbounds.Unbound,
    protocol: str,
) -> None:
    dovecot, _ = tls_dovecot
    upstream = dovecot.ports[protocol]
    proxy, port = started(protocol, upstream, resolver={"addresses": [name_server.address]}, **NAMES)
    service_rules.rules[f"/tls-{port}"] = AuthRule(upstream, address="localhost")
    for _ in range(3):
        if protocol == "imap":
            imap_login(port).logout()
        else:
            client = poplib.POP3("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
            client.user("alice")
            assert client.pass_(PASSWORDS["alice"]).startswith(b"+OK")
            client.quit()
    assert proxy.value("mailproxy_dns_queries_total", purpose="upstream", result="ok") == 1


def test_certificate_of_dovecot_without_the_host_name_is_rejected(
    tls_dovecot: tuple[Dovecot, dict[str, int]],
    started: StartProxy,
    service_rules: AuthService,
    name_server: unbounds.Unbound,
) -> None:
    dovecot, _ = tls_dovecot
    upstream = dovecot.ports["imap"]
    proxy, port = started("imap", upstream, resolver={"addresses": [name_server.address]}, **NAMES)
    service_rules.rules[f"/tls-{port}"] = AuthRule(upstream, address="other.example")
    client = ImapClient("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    with pytest.raises(imaplib.IMAP4.error):
        client.login("alice", PASSWORDS["alice"])
    client.shutdown()
    reason = proxy.event("upstream_failed", failure="name")["reason"]
    assert '"other.example" is not among its names (DNS:localhost)' in reason


ORIGINAL: Final = "192.0.2.77"
"""The address that webmail names."""
TRUSTING: Final = {"realIpCommand": True, "setRealIpFrom": ["127.0.0.0/8"]}


def chain(started: StartProxy, protocol: str, upstream: int, **directives: Any) -> tuple[Proxy, int]:
    """Start two proxies, each in front of the next; return the second, and the port of the first."""
    second, port = started(protocol, upstream, proxySsl="Starttls", **TRUSTING, **directives)
    towards_proxy = {"proxySsl": "Disabled", "proxySmtpAuth": True}
    return second, started(protocol, port, **TRUSTING, **directives, **towards_proxy)[1]


def test_dovecot_logs_the_client_that_webmail_names_by_id(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy
) -> None:
    dovecot, _ = tls_dovecot
    second, port = chain(started, "imap", dovecot.ports["imap"], proxyId="Required")
    client = ImapClient("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    assert "ID" in client.capabilities
    pairs = f'("name" "Webmail" "x-originating-ip" "{ORIGINAL}" "x-session-id" "webmail+1/a")'
    assert client.xatom("ID", pairs) == ("OK", [b"Trusted ID completed."])
    client.login("alice", PASSWORDS["alice"])
    assert client.select()[0] == "OK"
    client.logout()
    words = ("imap-login: Info: Login", "user=<alice>", f"rip={ORIGINAL}", "session=<webmail+1/a>")
    eventually(lambda: dovecot.log_lines(*words), "the original client in Dovecot's log")
    event = second.event("session", client=ORIGINAL)
    assert (event["named_by"], event["received_session"]) == ("127.0.0.1", "webmail+1/a")
    assert event["session"] != "webmail+1/a"


def test_dovecot_logs_the_client_that_webmail_names_by_xclient(
    tls_dovecot: tuple[Dovecot, dict[str, int]], started: StartProxy
) -> None:
    dovecot, _ = tls_dovecot
    second, port = chain(started, "pop3", dovecot.ports["pop3"], proxyXclient="Required")
    client = poplib.POP3("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    assert client.getwelcome().startswith(b"+OK [XCLIENT] POP3 ready")
    assert client._shortcmd(f"XCLIENT ADDR={ORIGINAL} PORT=4711 TTL=7") == b"+OK"  # type: ignore[attr-defined]
    client.user("bob")
    assert client.pass_(PASSWORDS["bob"]).startswith(b"+OK")
    client.quit()
    words = ("pop3-login: Info: Login", "user=<bob>", f"rip={ORIGINAL}")
    eventually(lambda: dovecot.log_lines(*words), "the original client in Dovecot's log")
    assert second.event("session", client=ORIGINAL)["client_port"] == 4711


def test_postfix_logs_the_client_that_webmail_names(tls_postfix: Postfix, started: StartProxy) -> None:
    second, port = chain(started, "smtp", tls_postfix.ports["smtp"], xclientMode="Required")
    with smtplib.SMTP("127.0.0.1", port, timeout=TIMEOUT_SECONDS) as client:
        client.ehlo("webmail.example")
        assert client.esmtp_features["xclient"] == "ADDR PORT PROTO HELO DESTADDR DESTPORT NAME"
        attributes = f"ADDR={ORIGINAL} PORT=4711 HELO=original.example NAME=host.example"
        assert client.docmd("XCLIENT", attributes)[0] == 220
        client.ehlo("webmail.example")
        client.login("alice", PASSWORDS["alice"])
        assert client.sendmail("alice@example.org", ["bob@example.org"], b"Subject: W\r\n\r\nHi\r\n") == {}
    words = ("client=", f"host.example[{ORIGINAL}]", "sasl_username=alice")
    eventually(lambda: tls_postfix.log_lines(*words), "the original client in Postfix's log")
    assert second.event("session", client=ORIGINAL)["named_by"] == "127.0.0.1"

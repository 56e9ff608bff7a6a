# SPDX-License-Identifier: Apache-2.0
"""PROXY headers: upstreams accept those of the proxy, and the proxy accepts those of a load balancer."""

from __future__ import annotations

import socket
import struct
from base64 import b64encode
from collections.abc import Callable
from typing import Final

import pytest

from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import eventually
from support.servers.shared_proxy import SharedProxy

pytestmark = pytest.mark.interop

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
CLIENT, SERVER = "203.0.113.9", "198.51.100.7"
CLIENT6, SERVER6 = "2001:db8::9", "2001:db8::7"


def v2(source: str, destination: str, ports: tuple[int, int], tlvs: bytes = b"") -> bytes:
    """Return a PROXY header of version 2."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    body = addresses + struct.pack("!HH", *ports) + tlvs
    return SIGNATURE + bytes([0x21, 0x21 if ":" in source else 0x11]) + struct.pack("!H", len(body)) + body


V2_LOCAL: Final = SIGNATURE + b"\x20\x00\x00\x00"


def log_in(raw: RawClient, protocol: str) -> bytes:
    """Log carol in, and return the reply."""
    if protocol == "imap":
        raw.send(b"a LOGIN carol christmas\r\n")
        return raw.read_until(b"a ")[-1]
    if protocol == "pop3":
        raw.read_line()
        assert raw.exchange(b"USER carol") == b"+OK"
        return raw.exchange(b"PASS christmas")
    raw.read_line()
    raw.send(b"EHLO client.example.org\r\n")
    raw.read_until(b"250 ")
    return raw.exchange(b"AUTH PLAIN " + b64encode(b"\0carol\0christmas"))


LOGIN_REPLIES: Final = {"imap": b"a OK", "pop3": b"+OK Logged in.", "smtp": b"235 2.0.0 OK"}


@pytest.mark.parametrize("with_tls", [False, True])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_dovecot_logs_the_client_of_the_proxy_header(
    dovecot: Dovecot,
    shared_proxy: SharedProxy,
    tls: Certificates,
    protocol: str,
    version: str,
    with_tls: bool,
) -> None:
    """The port identifies the client: all have one address. Version 2 also contains TLS parameters."""
    listener = f"{protocol}-{version}" + ("-tls" if with_tls else "")
    context = tls.client() if with_tls else None
    if context is not None:
        context.set_alpn_protocols([protocol])
    with RawClient(shared_proxy.ports[listener], context) as raw:
        assert log_in(raw, protocol).startswith(LOGIN_REPLIES[protocol])
        port = raw.port
    log_fields = (
        f"service={protocol}",
        "rip=127.0.0.1",
        f"rport={port}",
        f"lport={shared_proxy.ports[listener]}",
    )
    eventually(lambda: dovecot.log_lines("client in: AUTH", *log_fields), "the client in the log")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_postfix_logs_the_client_of_the_proxy_header(
    postfix: Postfix, shared_proxy: SharedProxy, version: str
) -> None:
    with RawClient(shared_proxy.ports[f"smtp-{version}"]) as raw:
        assert log_in(raw, "smtp") == LOGIN_REPLIES["smtp"]
        port = raw.port
    eventually(lambda: postfix.log_lines(f"connect from unknown[127.0.0.1]:{port}"), "the client in the log")


@pytest.mark.parametrize("pipelined", [b"", b"x NOOP\r\n"], ids=["alone", "with-a-command"])
@pytest.mark.parametrize(
    ("port", "address", "build"),
    [
        (4711, CLIENT, lambda port: f"PROXY TCP4 {CLIENT} {SERVER} {port} 143\r\n".encode()),
        (4712, CLIENT6, lambda port: f"PROXY TCP6 {CLIENT6} {SERVER6} {port} 143\r\n".encode()),
        (4713, CLIENT, lambda port: v2(CLIENT, SERVER, (port, 143))),
        (4714, CLIENT6, lambda port: v2(CLIENT6, SERVER6, (port, 143))),
        (4715, CLIENT, lambda port: v2(CLIENT, SERVER, (port, 143), b"\x01\x00\x04imap\x02\x00\x04mail")),
    ],
    ids=["v1-ipv4", "v1-ipv6", "v2-ipv4", "v2-ipv6", "v2-with-tlvs"],
)
def test_client_address_of_a_received_header_reaches_service_and_upstream(
    dovecot: Dovecot,
    shared_proxy: SharedProxy,
    service: AuthService,
    build: Callable[[int], bytes],
    address: str,
    port: int,
    pipelined: bytes,
) -> None:
    """The address in the load balancer's header is in the authentication request and in Dovecot's log."""
    port += 100 * len(pipelined)  # so that the two cases have different ports
    with RawClient(shared_proxy.ports["imap-behind"]) as raw:
        raw.send(build(port) + pipelined)
        assert log_in(raw, "imap").startswith(b"a OK")
    auth_request = service.latest_request("/imap-behind")
    assert (auth_request["client-ip"], auth_request["proxy-protocol-addr"]) == (address, address)
    assert (auth_request["proxy-protocol-port"], auth_request["proxy-protocol-server-port"]) == (
        str(port),
        "143",
    )
    eventually(lambda: dovecot.log_lines("client in: AUTH", f"rip={address}", f"rport={port}"), "the address")
    shared_proxy.proxy.event("session", server="imap-behind", client=address, client_port=port, proxied=True)


@pytest.mark.parametrize(
    "header", [f"PROXY TCP4 {CLIENT} {SERVER} 4720 993\r\n".encode(), v2(CLIENT, SERVER, (4720, 993))]
)
def test_proxy_header_precedes_tls(
    dovecot: Dovecot, shared_proxy: SharedProxy, service: AuthService, tls: Certificates, header: bytes
) -> None:
    """The load balancer's header is sent in clear text before the TLS handshake."""
    with RawClient(shared_proxy.ports["imap-behind-tls"], tls.client(), preface=header) as raw:
        assert log_in(raw, "imap").startswith(b"a OK")
    auth_request = service.latest_request("/imap-behind")
    assert (auth_request["client-ip"], auth_request["proxy-protocol-port"], auth_request["auth-ssl"]) == (
        CLIENT,
        "4720",
        "on",
    )


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2_LOCAL])
def test_header_without_address_keeps_the_connection_address(
    dovecot: Dovecot, shared_proxy: SharedProxy, service: AuthService, header: bytes
) -> None:
    with RawClient(shared_proxy.ports["pop3-behind"]) as raw:
        raw.send(header)
        assert log_in(raw, "pop3") == LOGIN_REPLIES["pop3"]
    auth_request = service.latest_request("/pop3-behind")
    assert auth_request["client-ip"] == "127.0.0.1"
    assert "proxy-protocol-addr" not in auth_request.headers


def test_address_from_an_untrusted_peer_is_only_reported(
    dovecot: Dovecot, shared_proxy: SharedProxy, service: AuthService
) -> None:
    """Without ``set_real_ip_from`` the header's address is sent to the authentication service only."""
    with RawClient(shared_proxy.ports["imap-untrusting"]) as raw:
        raw.send(f"PROXY TCP4 {CLIENT} {SERVER} 4711 143\r\n".encode())
        assert log_in(raw, "imap").startswith(b"a OK")
    auth_request = service.latest_request("/imap-untrusting")
    assert (auth_request["client-ip"], auth_request["proxy-protocol-addr"]) == ("127.0.0.1", CLIENT)


@pytest.mark.parametrize("invalid_header", [b"a LOGIN carol christmas\r\n", b"PROXY TCP4 nobody nowhere\r\n"])
def test_client_without_a_valid_header_is_closed(shared_proxy: SharedProxy, invalid_header: bytes) -> None:
    with RawClient(shared_proxy.ports["imap-behind"]) as raw:
        raw.send(invalid_header)
        assert raw.read_to_eof() == b""

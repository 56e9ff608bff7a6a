# SPDX-License-Identifier: Apache-2.0
"""The client's identity for upstreams: IMAP ID (RFC 2971) with Dovecot's keys, and XCLIENT (POP3, SMTP).

Addresses are those after ``set_real_ip_from``: the client's own, and the one that it has connected to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from typing import Final

from mailproxy.protocols.imap_id import MAX_PAIRS, quoted
from mailproxy.protocols.types import Client, UpstreamLogin

PROXY_TTL: Final = 6
"""Number of proxies that may follow; each takes one off, so that a loop ends."""
MAX_LINE: Final = 512
"""Bytes of an SMTP command with its line end (RFC 5321 section 4.5.3.1.4)."""
_MAX_OWN: Final = 7168
"""Bytes of a client's own ID pairs that are sent on; with ours the line has at most 8192."""
_MAX_ATTRIBUTE: Final = 255
"""Bytes of an attribute's value that Postfix accepts."""
_HOST_NAME: Final = re.compile(rb"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")


def xtext(data: bytes) -> bytes:
    """Encode an XCLIENT attribute as xtext (RFC 3461 section 4)."""
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % ord(match[0]), data)


def imap_id(client: Client, tag: bytes) -> bytes:
    """Return the ID command; Dovecot believes it from ``login_trusted_networks``."""
    ours = [b'"%b" "%b"' % (key, value) for key, value in _imap_pairs(client)]
    own = [quoted(key) + b" " + quoted(value) for key, value in client.id_pairs[: MAX_PAIRS - len(ours)]]
    while sum(map(len, own)) > _MAX_OWN:
        own.pop()
    return b"%b ID (%b)\r\n" % (tag, b" ".join((*own, *ours)))


def _imap_pairs(client: Client) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values; none contains a quote, a backslash or a control character."""
    yield b"x-session-id", client.session_id.encode()
    if client.port:
        yield b"x-originating-ip", client.address.encode()
        yield b"x-originating-port", b"%d" % client.port
        yield b"x-connected-ip", client.connected[0].encode()
        yield b"x-connected-port", b"%d" % client.connected[1]
    yield b"x-proxy-ttl", b"%d" % PROXY_TTL
    yield b"x-client-transport", _transport(client)
    name = _server_name(client)
    if name:
        yield b"x-connected-name", name


def pop3_xclient(client: Client) -> bytes:
    """Return Dovecot's XCLIENT command."""
    words = [b"XCLIENT"]
    if client.port:
        words += [
            b"ADDR=" + client.address.encode(),
            b"PORT=%d" % client.port,
            b"DESTADDR=" + client.connected[0].encode(),
            b"DESTPORT=%d" % client.connected[1],
        ]
    words += [b"SESSION=" + client.session_id.encode(), b"TTL=%d" % PROXY_TTL]
    words.append(b"CLIENT-TRANSPORT=" + _transport(client))
    name = _server_name(client)
    if name:
        words.append(b"DESTNAME=" + name)
    return b" ".join(words) + b"\r\n"


def smtp_xclient(
    client: Client, login: UpstreamLogin, offered: Set[bytes], *, has_login: bool
) -> list[bytes]:
    """Return XCLIENT commands with the attributes that the upstream lists, each at most ``MAX_LINE`` bytes.

    Args:
        client: The client.
        login: Its login.
        offered: The attributes of the upstream's reply to EHLO, in upper case.
        has_login: Whether LOGIN may be sent: the service has decided, and no AUTH follows.
    """
    words = [
        name + b"=" + value
        for name, value in _smtp_attributes(client, login, has_login=has_login)
        if name in offered and value and len(value) <= _MAX_ATTRIBUTE
    ]
    commands: list[bytes] = []
    line = b"XCLIENT"
    for word in words:
        if len(line) + 1 + len(word) + 2 > MAX_LINE:
            commands.append(line + b"\r\n")
            line = b"XCLIENT"
        line += b" " + word
    return [*commands, line + b"\r\n"] if words else []


def _smtp_attributes(
    client: Client, login: UpstreamLogin, *, has_login: bool
) -> Iterator[tuple[bytes, bytes]]:
    if client.port:
        yield b"ADDR", _smtp_address(client.address)
        yield b"PORT", b"%d" % client.port
        yield b"DESTADDR", _smtp_address(client.connected[0])
        yield b"DESTPORT", b"%d" % client.connected[1]
    yield b"NAME", client.host
    if login.helo is not None:
        yield b"HELO", xtext(login.helo)
        yield b"PROTO", b"ESMTP" if login.esmtp else b"SMTP"
    yield b"SESSION", xtext(client.session_id.encode())
    yield b"TTL", b"%d" % PROXY_TTL
    yield b"CLIENT-TRANSPORT", _transport(client)
    if has_login:
        yield b"LOGIN", xtext(login.grant.user)


def _smtp_address(address: str) -> bytes:
    return b"IPV6:" + address.encode() if ":" in address else address.encode()


def _transport(client: Client) -> bytes:
    return b"TLS" if client.tls is not None else b"insecure"


def _server_name(client: Client) -> bytes:
    """Return SNI if it is a host name, else nothing."""
    name = client.tls.server_name if client.tls is not None else None
    return name if name is not None and len(name) <= 253 and _HOST_NAME.fullmatch(name) else b""

# SPDX-License-Identifier: Apache-2.0
"""The client's identity for upstreams: IMAP ID (RFC 2971) with Dovecot's keys, and XCLIENT (POP3, SMTP).

Addresses are those after ``set_real_ip_from``: the client's own, and the one that it has connected to.
The facts of ``proxy_forward`` follow: each in ID, all together in XCLIENT.  What does not fit into a
line, or is not printable ASCII, is left out.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import ProxyLoopError
from mailproxy.protocols.client_variables import Part, parse_value, render_value
from mailproxy.protocols.imap_id import MAX_PAIRS, MAX_VALUE, quoted
from mailproxy.protocols.types import Client, UpstreamLogin
from mailproxy_config.model import ServerConfig

MAX_ID_LINE: Final = 8192
"""Bytes of an IMAP ID command with its line end: what Dovecot accepts before a login."""
MAX_POP3_LINE: Final = 1024
"""Bytes of a POP3 XCLIENT command with its line end: what Dovecot accepts before a login."""
MAX_LINE: Final = 512
"""Bytes of an SMTP command with its line end (RFC 5321 section 4.5.3.1.4)."""
_MAX_ATTRIBUTE: Final = 255
"""Bytes of an attribute's value that Postfix accepts."""
_HOST_NAME: Final = re.compile(rb"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_MAX_HOST_NAME: Final = 253
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")
_PRINTABLE: Final = re.compile(rb"[ -~]*")

Fact = tuple[bytes, Sequence[Part]]
"""Name and value of a fact of ``proxy_forward``."""


def forwarded_facts(server: ServerConfig) -> tuple[Fact, ...]:
    """Prepare ``proxy_forward`` of a server."""
    return tuple(
        (name.encode(), parse_value(value.encode(), server.protocol)) for name, value in server.proxy_forward
    )


def xtext(data: bytes) -> bytes:
    """Encode an XCLIENT attribute as xtext (RFC 3461 section 4)."""
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % ord(match[0]), data)


def imap_id(client: Client, tag: bytes, facts: Sequence[Fact] = ()) -> bytes:
    """Return the ID command; Dovecot believes it from ``login_trusted_networks``.

    Raises:
        ProxyLoopError: The client's ``proxy_ttl`` is used up.
    """
    _check_ttl(client, UpstreamStage.ID)
    pairs = [b'"%b" "%b"' % pair for pair in _imap_pairs(client)]
    room = MAX_ID_LINE - len(tag + b" ID ()\r\n") - len(b" ".join(pairs))
    for name, value in _printable_facts(client, facts):
        pair = b'"x-forward-%b" %b' % (name, quoted(value))
        if len(value) <= MAX_VALUE and len(pair) < room and len(pairs) < MAX_PAIRS:
            pairs.append(pair)
            room -= len(pair) + 1
    own: list[bytes] = []
    for key, own_value in client.id_pairs[: MAX_PAIRS - len(pairs)]:
        pair = quoted(key) + b" " + quoted(own_value)
        if len(pair) < room:
            own.append(pair)
            room -= len(pair) + 1
    return b"%b ID (%b)\r\n" % (tag, b" ".join((*own, *pairs)))


def _check_ttl(client: Client, stage: UpstreamStage) -> None:
    if client.proxy_ttl < 1:
        reason = "proxy loop: the client has come through too many proxies; see Auth-Server of each"
        raise ProxyLoopError(reason, stage=stage)


def _has_address(client: Client) -> bool:
    """Whether the client has an IP address; the port of one that another proxy named may be unknown."""
    return bool(client.port) or not client.address.startswith("unix:")


def _has_destination(client: Client) -> bool:
    """Whether it has connected to an IP address; one that was named through a UNIX socket may not have."""
    return not client.connected[0].startswith("unix:")


def _received_facts(client: Client) -> tuple[tuple[bytes, bytes], ...]:
    return () if client.received is None else client.received.forwarded


def _printable_facts(client: Client, facts: Sequence[Fact]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the facts of ``proxy_forward``, then those of other names that another proxy has sent."""
    for name, parts in facts:
        value = render_value(parts, client)
        if _PRINTABLE.fullmatch(value):
            yield name, value
    received = _received_facts(client)
    if received:
        own = {name.lower() for name, _ in facts}
        yield from (fact for fact in received if fact[0].lower() not in own)


def _forward(
    client: Client, facts: Sequence[Fact], room: int, encode: Callable[[bytes], bytes] = bytes
) -> bytes:
    """Return the value of Dovecot's FORWARD: base64 of ``NAME=VALUE``, separated by tabs.

    Dovecot's escaping (``str_tabescape``) changes nothing, as values have no control characters.

    Args:
        client: The client.
        facts: The facts.
        room: The most bytes; facts that do not fit are left out.
        encode: Encodes the base64 for the command.
    """
    found, fields = b"", b""
    for name, value in _printable_facts(client, facts):
        longer = (fields + b"\t" if fields else b"") + name + b"=" + value
        encoded = encode(b2a_base64(longer, newline=False))
        if len(encoded) <= room:
            found, fields = encoded, longer
    return found


def _imap_pairs(client: Client) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values; none contains a quote, a backslash or a control character."""
    yield b"x-session-id", client.upstream_session_id.encode()
    if _has_address(client):
        yield b"x-originating-ip", client.address.encode()
        if client.port:
            yield b"x-originating-port", b"%d" % client.port
        if _has_destination(client):
            yield b"x-connected-ip", client.connected[0].encode()
            yield b"x-connected-port", b"%d" % client.connected[1]
    yield b"x-proxy-ttl", b"%d" % client.proxy_ttl
    yield b"x-client-transport", _transport(client)
    name = server_name(client)
    if name:
        yield b"x-connected-name", name


def pop3_xclient(client: Client, facts: Sequence[Fact] = ()) -> bytes:
    """Return Dovecot's XCLIENT command.

    Raises:
        ProxyLoopError: The client's ``proxy_ttl`` is used up.
    """
    _check_ttl(client, UpstreamStage.XCLIENT)
    words = [b"XCLIENT"]
    if _has_address(client):
        words.append(b"ADDR=" + client.address.encode())
        words += [b"PORT=%d" % client.port] if client.port else []
        if _has_destination(client):
            words += [b"DESTADDR=" + client.connected[0].encode(), b"DESTPORT=%d" % client.connected[1]]
    words += [b"SESSION=" + client.upstream_session_id.encode(), b"TTL=%d" % client.proxy_ttl]
    words.append(b"CLIENT-TRANSPORT=" + _transport(client))
    name = server_name(client)
    if name:
        words.append(b"DESTNAME=" + name)
    command = b" ".join(words)
    has_facts = facts or _received_facts(client)
    if has_facts and (value := _forward(client, facts, MAX_POP3_LINE - len(command + b" FORWARD=\r\n"))):
        command += b" FORWARD=" + value
    return command + b"\r\n"


def smtp_xclient(
    client: Client,
    login: UpstreamLogin,
    offered: Set[bytes],
    *,
    has_login: bool,
    facts: Sequence[Fact] = (),
) -> list[bytes]:
    """Return XCLIENT commands with the attributes that the upstream lists, each at most ``MAX_LINE`` bytes.

    Args:
        client: The client.
        login: Its login.
        offered: The attributes of the upstream's reply to EHLO, in upper case.
        has_login: Whether LOGIN may be sent: the service has decided, and no AUTH follows.
        facts: Those of ``proxy_forward``.

    Raises:
        ProxyLoopError: The client's ``proxy_ttl`` is used up.
    """
    _check_ttl(client, UpstreamStage.XCLIENT)
    words = [
        name + b"=" + value
        for name, value in _smtp_attributes(client, login, has_login=has_login)
        if name in offered and value and len(value) <= _MAX_ATTRIBUTE
    ]
    if (facts or _received_facts(client)) and b"FORWARD" in offered:
        forward = _forward(client, facts, MAX_LINE - len(b"XCLIENT FORWARD=\r\n"), xtext)
        words += [b"FORWARD=" + forward] if forward else []
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
    if _has_address(client):
        yield b"ADDR", _smtp_address(client.address)
        if client.port:
            yield b"PORT", b"%d" % client.port
        if _has_destination(client):
            yield b"DESTADDR", _smtp_address(client.connected[0])
            yield b"DESTPORT", b"%d" % client.connected[1]
    yield b"NAME", client.host
    if login.helo is not None:
        yield b"HELO", xtext(login.helo)
        yield b"PROTO", b"ESMTP" if login.esmtp else b"SMTP"
    yield b"SESSION", xtext(client.upstream_session_id.encode())
    yield b"TTL", b"%d" % client.proxy_ttl
    yield b"CLIENT-TRANSPORT", _transport(client)
    if has_login:
        yield b"LOGIN", xtext(login.grant.user)


def _smtp_address(address: str) -> bytes:
    return b"IPV6:" + address.encode() if ":" in address else address.encode()


def _transport(client: Client) -> bytes:
    if client.received is not None and client.received.transport:
        return client.received.transport
    return b"TLS" if client.tls is not None else b"insecure"


def server_name(client: Client) -> bytes:
    """Return SNI if it is a host name, else nothing; for a named client what another proxy has sent."""
    if client.received is not None:
        return client.received.server_name
    name = client.tls.server_name if client.tls is not None else None
    return name if name is not None and is_host_name(name) else b""


def is_host_name(name: bytes) -> bool:
    """Whether the bytes are a host name, also with underscores and with a dot at the end."""
    return len(name) <= _MAX_HOST_NAME and _HOST_NAME.fullmatch(name) is not None

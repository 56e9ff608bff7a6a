# SPDX-License-Identifier: Apache-2.0
"""The original client, as trusted webmail and other proxies name it (``real_ip_command``).

The facts have the names of XCLIENT in every protocol; IMAP ID has keys for the same facts.
Sources: Dovecot's ID keys and XCLIENT for POP3, Postfix's XCLIENT_README.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from mailproxy.protocols.client_identity import is_host_name
from mailproxy.protocols.imap_id import MAX_PAIRS, MAX_VALUE, Pair
from mailproxy.protocols.proxy_protocol import address_text
from mailproxy.protocols.types import Client, ReceivedIdentity

MAX_SESSION_ID: Final = 64
"""Bytes of a session ID that is sent on; a longer one is ignored."""
_HIGHEST_PORT: Final = 65535
_HIGHEST_TTL: Final = 255
_ID_KEYS: Final = {
    b"x-originating-ip": b"ADDR",
    b"x-originating-port": b"PORT",
    b"x-connected-ip": b"DESTADDR",
    b"x-connected-port": b"DESTPORT",
    b"x-session-id": b"SESSION",
    b"x-proxy-ttl": b"TTL",
    b"x-client-transport": b"CLIENT-TRANSPORT",
    b"x-connected-name": b"DESTNAME",
}
_DOVECOT_NAMES: Final = frozenset(_ID_KEYS.values())
_SMTP_NAMES: Final = (b"ADDR", b"PORT", b"PROTO", b"HELO", b"DESTADDR", b"DESTPORT", b"NAME")
"""LOGIN is not among them: nobody logs in without a password."""
SMTP_ATTRIBUTES: Final = b" ".join(_SMTP_NAMES).decode()
"""The attributes of SMTP XCLIENT, in the order of the reply to EHLO."""
_ADDRESSES: Final = frozenset((b"ADDR", b"DESTADDR"))
_FORWARD_KEY: Final = b"x-forward-"
_SESSION_ID: Final = re.compile(rb"[A-Za-z0-9+/_-]{1,%d}" % MAX_SESSION_ID)
_NUMBER: Final = re.compile(rb"[0-9]{1,5}")
_ADDRESS: Final = re.compile(rb"[0-9A-Fa-f.:]{2,45}")
_FACT_NAME: Final = re.compile(rb"[A-Za-z0-9_-]{1,20}")
_PRINTABLE: Final = re.compile(rb"[ -~]*")
_TRANSPORTS: Final = frozenset((b"TLS", b"insecure"))
_TAB_ESCAPE: Final = re.compile(rb"\x01([01trn])")
_TAB_ESCAPED: Final = {b"0": b"\0", b"1": b"\1", b"t": b"\t", b"r": b"\r", b"n": b"\n"}
_XTEXT: Final = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_XTEXT_ESCAPE: Final = re.compile(rb"\+(..)")
_HELO: Final = re.compile(rb"[!-~\x80-\xff]{1,255}")
_PROTOCOLS: Final = {b"ESMTP": True, b"SMTP": False}
_UNKNOWN: Final = frozenset((b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"))
_IPV6: Final = b"IPV6:"


class InvalidIdentity(Exception):
    """The command is malformed; nothing of it may be used."""


class ProxyLoop(Exception):
    """The client has come through so many proxies that they are probably a loop."""


Facts = Mapping[bytes, bytes]
"""Values by the name of the fact in XCLIENT."""
ForwardedFacts = tuple[tuple[bytes, bytes], ...]


def id_facts(pairs: Sequence[Pair]) -> tuple[Facts, ForwardedFacts]:
    """Return the facts among the pairs of IMAP ID; both are empty for an ordinary ID.

    Raises:
        InvalidIdentity: A key appears twice.
    """
    facts: dict[bytes, bytes] = {}
    forwarded: list[tuple[bytes, bytes]] = []
    for key, value in pairs:
        lower = key.lower()
        name = _ID_KEYS.get(lower)
        if value is None:
            continue
        if name is not None:
            _add(facts, name, value)
        elif lower.startswith(_FORWARD_KEY):
            forwarded.append((key[len(_FORWARD_KEY) :], value))
    return facts, _sendable(forwarded)


def pop3_facts(arguments: bytes) -> tuple[Facts, ForwardedFacts]:
    """Return the facts of POP3 XCLIENT; those that this proxy does not use are left out.

    Args:
        arguments: The line after the command's word.

    Raises:
        InvalidIdentity: It is malformed, or names a fact twice.
    """
    facts = _attributes(arguments)
    used = {name: value for name, value in facts.items() if name in _DOVECOT_NAMES}
    return used, _forwarded(facts.get(b"FORWARD", b""))


def smtp_facts(arguments: bytes) -> Facts:
    """Return the facts of SMTP XCLIENT, decoded from xtext (RFC 3461 section 4).

    Raises:
        InvalidIdentity: It is malformed, names a fact twice, or one that is not allowed.
    """
    facts: dict[bytes, bytes] = {}
    for name, value in _attributes(arguments).items():
        if name not in _SMTP_NAMES or not _XTEXT.fullmatch(value):
            raise InvalidIdentity
        decoded = _XTEXT_ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), value)
        if decoded.upper() in _UNKNOWN and name != b"NAME":
            continue
        facts[name] = _without_prefix(decoded) if name in _ADDRESSES else decoded
    return facts


def apply_identity(client: Client, facts: Facts, forwarded: ForwardedFacts = ()) -> None:
    """Replace what is known about a client by the facts of a trusted one: all of them, or none.

    Raises:
        InvalidIdentity: A value is malformed.
        ProxyLoop: ``TTL`` is used up.
    """
    before = client.received or ReceivedIdentity(client.address)
    changed = replace(
        client,
        received=replace(before, attributes=before.attributes | facts.keys(), forwarded=forwarded),
    )
    if b"ADDR" in facts and b"PORT" not in before.attributes:
        changed.port = 0
    for name, value in facts.items():
        _READERS[name](changed, value)
    for field in ("address", "port", "proxied_destination", "proxy_ttl", "host", "received"):
        setattr(client, field, getattr(changed, field))


def _add(facts: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    if name in facts:
        raise InvalidIdentity
    facts[name] = value


def _attributes(arguments: bytes) -> dict[bytes, bytes]:
    """Split ``NAME=VALUE`` pairs; names become upper case."""
    if not _PRINTABLE.fullmatch(arguments):
        raise InvalidIdentity
    facts: dict[bytes, bytes] = {}
    for word in arguments.split():
        name, sign, value = word.partition(b"=")
        if not (name and sign and value):
            raise InvalidIdentity
        _add(facts, name.upper(), value)
    if not facts:
        raise InvalidIdentity
    return facts


def _forwarded(encoded: bytes) -> ForwardedFacts:
    """Decode Dovecot's FORWARD: base64 of ``NAME=VALUE``, escaped and separated by tabs."""
    if not encoded:
        return ()
    try:
        fields = b64decode(encoded, validate=True).split(b"\t")
    except ValueError:
        raise InvalidIdentity from None
    return _sendable([_fact(field) for field in fields])


def _fact(field: bytes) -> tuple[bytes, bytes]:
    name, _, value = field.partition(b"=")
    return name, _TAB_ESCAPE.sub(lambda match: _TAB_ESCAPED[match[1]], value)


def _sendable(facts: Sequence[tuple[bytes, bytes]]) -> ForwardedFacts:
    """Return the facts that can be sent on: proper names, printable values, none of them twice."""
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for name, value in facts:
        if _FACT_NAME.fullmatch(name) and len(value) <= MAX_VALUE and _PRINTABLE.fullmatch(value):
            found.setdefault(name.lower(), (name, value))
    return tuple(found.values())[:MAX_PAIRS]


# ---- one function per fact ----


def _address(value: bytes) -> str:
    if not _ADDRESS.fullmatch(value):
        raise InvalidIdentity
    try:
        return address_text(ipaddress.ip_address(value.decode()))
    except ValueError:
        raise InvalidIdentity from None


def _number(value: bytes, highest: int) -> int:
    if not _NUMBER.fullmatch(value) or int(value) > highest:
        raise InvalidIdentity
    return int(value)


def _set_address(client: Client, value: bytes) -> None:
    client.address = _address(value)


def _set_port(client: Client, value: bytes) -> None:
    client.port = _number(value, _HIGHEST_PORT)


def _set_destination(client: Client, value: bytes) -> None:
    client.proxied_destination = _address(value), client.connected[1]


def _set_destination_port(client: Client, value: bytes) -> None:
    client.proxied_destination = client.connected[0], _number(value, _HIGHEST_PORT)


def _set_ttl(client: Client, value: bytes) -> None:
    left = _number(value, _HIGHEST_TTL) - 1
    if left < 1:
        raise ProxyLoop
    client.proxy_ttl = left


def _received(client: Client) -> ReceivedIdentity:
    assert client.received is not None  # noqa: S101 - ``apply_identity`` has set it
    return client.received


def _set_session_id(client: Client, value: bytes) -> None:
    if _SESSION_ID.fullmatch(value):
        _received(client).session_id = value.decode()


def _set_transport(client: Client, value: bytes) -> None:
    if value in _TRANSPORTS:
        _received(client).transport = value


def _set_server_name(client: Client, value: bytes) -> None:
    if is_host_name(value):
        _received(client).server_name = value


def _without_prefix(value: bytes) -> bytes:
    """Check Postfix's form of addresses: ``IPV6:`` before those of version 6, and only those."""
    has_prefix = value[: len(_IPV6)].upper() == _IPV6
    address = value[len(_IPV6) :] if has_prefix else value
    if has_prefix is not (b":" in address):
        raise InvalidIdentity
    return address


def _set_host(client: Client, value: bytes) -> None:
    upper = value.upper()
    if upper not in _UNKNOWN and not is_host_name(value):
        raise InvalidIdentity
    client.host = upper if upper in _UNKNOWN else value


def _set_helo(client: Client, value: bytes) -> None:
    if not _HELO.fullmatch(value):
        raise InvalidIdentity
    _received(client).helo = value


def _set_protocol(client: Client, value: bytes) -> None:
    is_esmtp = _PROTOCOLS.get(value.upper())
    if is_esmtp is None:
        raise InvalidIdentity
    _received(client).is_esmtp = is_esmtp


_READERS: Final[Mapping[bytes, Callable[[Client, bytes], None]]] = {
    b"ADDR": _set_address,
    b"PORT": _set_port,
    b"DESTADDR": _set_destination,
    b"DESTPORT": _set_destination_port,
    b"SESSION": _set_session_id,
    b"TTL": _set_ttl,
    b"CLIENT-TRANSPORT": _set_transport,
    b"DESTNAME": _set_server_name,
    b"NAME": _set_host,
    b"HELO": _set_helo,
    b"PROTO": _set_protocol,
}

# SPDX-License-Identifier: Apache-2.0
"""Keys by which sessions and logins are counted (``limit_conn_zone``, ``limit_req_zone``)."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from mailproxy.protocols.types import Client
from mailproxy_config.limits import DOMAIN, HEADER_PREFIX, REMOTE_ADDR, REMOTE_USER, variables_of

MAX_KEY: Final = 255
"""Bytes of the longest key that is counted, as in freenginx."""

_ADDRESSES_KEPT: Final = 4096
_MAPPED: Final = bytes(10) + b"\xff\xff"

KeyFunction = Callable[[Client, bytes, bytes], bytes]
"""Returns the key of a client, of its user name, and of the head of the authentication service's response."""


class KeyTooLong(Exception):
    """A key has more than ``MAX_KEY`` bytes."""


def key_function(key: str, ipv6_prefix: int) -> KeyFunction:
    """Return what makes the key of a login; an empty one is not counted.

    Args:
        key: The key of a zone.
        ipv6_prefix: ``limit_conn_ipv6_prefix``.
    """
    parts = [_variable(name, ipv6_prefix) for name in variables_of(key)]
    return parts[0] if len(parts) == 1 else partial(_joined, parts)


class AddressKeys(dict[str, bytes]):
    """The keys of addresses; those that come often are kept.

    Args:
        ipv6_prefix: As in ``address_key``.
    """

    def __init__(self, ipv6_prefix: int) -> None:
        super().__init__()
        self._prefix = ipv6_prefix

    def __missing__(self, address: str) -> bytes:
        if len(self) >= _ADDRESSES_KEPT:
            self.clear()
        key = self[address] = address_key(address, self._prefix)
        return key


def address_key(address: str, ipv6_prefix: int) -> bytes:
    """Return the key of an address: IPv4 as text, IPv6 as its network, ``unix:``.

    Args:
        address: As in ``Client.address``.
        ipv6_prefix: Bits of an IPv6 address that count.  IPv4 in IPv6 is IPv4.
    """
    if ":" not in address:
        return address.encode("ascii", "replace")
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return b"unix:"
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:]).encode()
    kept = int.from_bytes(packed) >> (128 - ipv6_prefix) << (128 - ipv6_prefix)
    return kept.to_bytes(16)


def check_length(key: bytes) -> bytes:
    """Return a key that is not too long.

    Raises:
        KeyTooLong: It is.
    """
    if len(key) > MAX_KEY:
        raise KeyTooLong
    return key


def _variable(name: str, ipv6_prefix: int) -> KeyFunction:
    if name == REMOTE_ADDR:
        addresses = AddressKeys(ipv6_prefix)
        return lambda client, _, __: addresses[client.address]
    if name == REMOTE_USER:
        return lambda _, user, __: user
    if name == DOMAIN:
        return lambda _, user, __: user.rpartition(b"@")[2].lower() if b"@" in user else b""
    header = name.removeprefix(HEADER_PREFIX).replace("_", "-").encode()
    values = re.compile(rb"\n%b:([^\r\n]*)" % re.escape(header), re.IGNORECASE)
    return lambda _, __, head: b", ".join(value.strip(b" ") for value in values.findall(head))


def _joined(parts: list[KeyFunction], client: Client, user: bytes, head: bytes) -> bytes:
    """Join values so that different ones are different keys; empty where all of them are."""
    values = [part(client, user, head) for part in parts]
    if not any(values):
        return b""
    check_length(b"".join(values))
    lengths = bytes(map(len, values))
    return lengths + b"".join(values)

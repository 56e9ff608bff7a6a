# SPDX-License-Identifier: Apache-2.0
"""The networks that the records of failed logins are about."""

from __future__ import annotations

import socket
from typing import Final

_MAPPED: Final = bytes(10) + b"\xff\xff"


def packed(address: str) -> bytes | None:
    """Return an address as 4 or 16 bytes; ``None`` for clients of UNIX sockets.

    Args:
        address: As in ``Client.address``.  An IPv4-mapped address counts as IPv4.
    """
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        found = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return None
    return found[12:] if found.startswith(_MAPPED) else found


def penalty_network(address: bytes) -> bytes:
    """Return what has one penalty: an IPv4 address, or an IPv6 network of 48 bits."""
    return address if len(address) == 4 else address[:6]


def block_network(address: bytes) -> bytes:
    """Return what is blocked: an IPv4 address, or an IPv6 network of 64 bits."""
    return address if len(address) == 4 else address[:8]


def user_network(address: bytes) -> bytes:
    """Return where a user who logged in is known: an IPv4 network of 24 bits, or an IPv6 one of 48 bits."""
    return address[:3] if len(address) == 4 else address[:6]

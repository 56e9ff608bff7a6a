# SPDX-License-Identifier: Apache-2.0
"""The order in which the addresses of one name are tried: RFC 6724 section 6, families in turn (RFC 8305).

Rules 3, 4 and 7 (deprecated and home addresses, native transport) need facts that the kernel does not
give without privileges.  Rule 9 (longest matching prefix) is left out: it would send all logins to the
same one of several equal servers.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import chain, zip_longest
from typing import Final

IpAddress = IPv4Address | IPv6Address

_ANY_PORT: Final = 9
"""Discard; connecting a UDP socket sends nothing."""
_NO_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})
"""``socket`` on a kernel without IPv6."""
_POLICY: Final = tuple(
    (ip_network(prefix), precedence, label)
    for prefix, precedence, label in (
        ("::1/128", 50, 0),
        ("::ffff:0:0/96", 35, 4),
        ("2002::/16", 30, 2),
        ("2001::/32", 5, 5),
        ("fc00::/7", 3, 13),
        ("::/96", 1, 3),
        ("fec0::/10", 1, 11),
        ("3ffe::/16", 1, 12),
        ("::/0", 40, 1),
    )
)
"""Prefix, precedence and label (RFC 6724 section 2.1)."""
_LINK_LOCAL, _SITE_LOCAL, _GLOBAL = 0x2, 0x5, 0xE
"""Scopes (RFC 4007 section 6 with the values of RFC 4291 section 2.7)."""


@dataclass(frozen=True, slots=True)
class Destination:
    """One address of a name.

    Attributes:
        address: An IPv4-mapped IPv6 address is its IPv4 address.
        text: The address as text.
        is_own: Whether it is an address of this machine, or of this pod.
    """

    address: IpAddress
    text: str
    is_own: bool


def ordered(
    addresses: Sequence[IpAddress], find_source: Callable[[IpAddress], IpAddress | None] | None = None
) -> tuple[Destination, ...]:
    """Sort the addresses of a name: the best family first, then families in turn.

    Addresses of equal rank stay in the order of the name server's reply.

    Args:
        addresses: The addresses, each once.
        find_source: Replaces ``source_of``.

    Raises:
        OSError: No socket can be made, for lack of descriptors perhaps.
    """
    ranked: list[tuple[tuple[int, ...], Destination]] = []
    for address in addresses:
        source = (find_source or source_of)(address)
        is_own = address.is_loopback or source == address
        ranked.append((_rank(address, source), Destination(address, str(address), is_own)))
    ranked.sort(key=lambda each: each[0])
    found = [destination for _, destination in ranked]
    first = [each for each in found if each.address.version == found[0].address.version]
    other = [each for each in found if each.address.version != found[0].address.version]
    in_turn = chain.from_iterable(zip_longest(first, other))
    return tuple(each for each in in_turn if each is not None)


def source_of(address: IpAddress) -> IpAddress | None:
    """Return the source address that the kernel uses for a destination; ``None`` if there is no route.

    For an address of this machine it is that address.

    Raises:
        OSError: No socket can be made.
    """
    try:
        sock = socket.socket(
            socket.AF_INET if address.version == 4 else socket.AF_INET6,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
        )
    except OSError as error:
        if error.errno in _NO_FAMILY:
            return None
        raise
    with sock:
        try:
            sock.connect((str(address), _ANY_PORT))
        except OSError:
            return None
        return ip_address(sock.getsockname()[0].partition("%")[0])


def _rank(address: IpAddress, source: IpAddress | None) -> tuple[int, ...]:
    """Return a key for sorting; the numbers of the rules are those of RFC 6724 section 6."""
    precedence, label = _policy(address)
    scope = _scope(address)
    if source is None:
        return (1, 1, 1, -precedence, scope)  # rule 1: avoid unusable destinations
    return (
        0,
        int(scope != _scope(source)),  # rule 2: prefer matching scope
        int(label != _policy(source)[1]),  # rule 5: prefer matching label
        -precedence,  # rule 6: prefer higher precedence
        scope,  # rule 8: prefer smaller scope
    )


def _policy(address: IpAddress) -> tuple[int, int]:
    """Return precedence and label."""
    wide = address if isinstance(address, IPv6Address) else IPv6Address(f"::ffff:{address}")
    return next((precedence, label) for prefix, precedence, label in _POLICY if wide in prefix)


def _scope(address: IpAddress) -> int:
    if address.is_link_local or address.is_loopback:
        return _LINK_LOCAL
    return _SITE_LOCAL if isinstance(address, IPv6Address) and address.is_site_local else _GLOBAL

# SPDX-License-Identifier: Apache-2.0
"""The client's address from a PROXY header (directive ``set_real_ip_from``)."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress

from mailproxy.protocols.proxy_protocol import address_text
from mailproxy.protocols.types import Client

_UNIX = "unix:"


class TrustedPeers:
    """The peers whose PROXY header replaces the client's address.

    Args:
        entries: Addresses, networks in CIDR form (host bits are ignored, as
            nginx ignores them), and ``unix:``.  Host names are resolved before.

    Raises:
        ValueError: An entry is none of these.
    """

    __slots__ = ("_unix", "_v4", "_v6")

    def __init__(self, entries: Sequence[str]) -> None:
        self._unix = _UNIX in entries
        self._v4: dict[int, set[int]] = {}
        self._v6: dict[int, set[int]] = {}
        for entry in entries:
            if entry == _UNIX:
                continue
            network = ipaddress.ip_network(entry, strict=False)
            shift = network.max_prefixlen - network.prefixlen
            networks = self._v4 if network.version == 4 else self._v6
            networks.setdefault(shift, set()).add(int(network.network_address) >> shift)

    def __bool__(self) -> bool:
        return bool(self._unix or self._v4 or self._v6)

    def trusts(self, peer_address: str) -> bool:
        """Whether a peer's PROXY header is trusted.

        Args:
            peer_address: Its address without a port, or ``unix:`` with or
                without a path.  An IPv4-mapped address counts as IPv4.
        """
        if not self:
            return False
        if peer_address.startswith(_UNIX):
            return self._unix
        try:
            address = ipaddress.ip_address(peer_address.partition("%")[0])
        except ValueError:
            return False
        networks = self._v4
        if isinstance(address, ipaddress.IPv6Address):
            mapped = address.ipv4_mapped
            if mapped is None:
                networks = self._v6
            else:
                address = mapped
        number = int(address)
        return any(number >> shift in numbers for shift, numbers in networks.items())


def apply_real_ip(client: Client, peers: TrustedPeers) -> bool:
    """Replace the client's address and port by those of the PROXY header if the peer is trusted.

    Call it once, while ``client.address`` is the address of the TCP peer.

    Returns:
        Whether they were replaced.  They stay if the peer is not trusted, the
        header has no addresses, or its source is malformed.
    """
    proxied = client.proxied
    if proxied is None or not peers.trusts(client.address):
        return False
    try:
        source = ipaddress.ip_address(proxied.source.decode("ascii"))
    except ValueError:
        return False
    client.address = address_text(source)
    client.port = proxied.source_port
    with suppress(ValueError):
        destination = ipaddress.ip_address(proxied.destination.decode("ascii"))
        client.proxied_destination = address_text(destination), proxied.destination_port
    return True

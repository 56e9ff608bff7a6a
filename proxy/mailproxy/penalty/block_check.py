# SPDX-License-Identifier: Apache-2.0
"""Whether the address of a client is blocked (``auth_block``), and which addresses never are."""

from __future__ import annotations

from typing import Final

from mailproxy.penalty.addresses import block_network, packed
from mailproxy.penalty.pod_state import PodState
from mailproxy.protocols.real_ip import TrustedPeers

_ADDRESSES_KEPT: Final = 4096


class Exemptions:
    """Addresses whose failed logins are not counted.

    Args:
        exempt: Of ``auth_penalty_exempt``.
        trusted: Of ``set_real_ip_from``: a client that still has such an address is a load balancer, another
            proxy or webmail that sent no address of its client.
    """

    __slots__ = ("_exempt", "_trusted")

    def __init__(self, exempt: TrustedPeers, trusted: TrustedPeers) -> None:
        self._exempt = exempt
        self._trusted = trusted

    def has(self, address: str) -> bool:
        """Whether failed logins from an address are not counted."""
        return self._exempt.trusts(address) or self._trusted.trusts(address)


class CountedAddresses(dict[str, bytes | None]):
    """Addresses as ``addresses.packed`` returns them, ``None`` for one whose failed logins are not counted.

    Those that come often are kept.

    Args:
        exemptions: Addresses whose failed logins are not counted.
    """

    def __init__(self, exemptions: Exemptions) -> None:
        super().__init__()
        self._exemptions = exemptions

    def __missing__(self, address: str) -> bytes | None:
        if len(self) >= _ADDRESSES_KEPT:
            self.clear()
        found = self[address] = None if self._exemptions.has(address) else packed(address)
        return found


class BlockCheck:
    """Finds clients whose address is blocked.

    Args:
        state: The records of the pod.
        exemptions: Addresses that are never blocked.
    """

    __slots__ = ("_exemptions", "_state")

    def __init__(self, state: PodState, exemptions: Exemptions) -> None:
        self._state = state
        self._exemptions = exemptions

    def is_blocked(self, address: str) -> bool:
        """Whether a client with this address is closed at once."""
        found = packed(address)
        if found is None:
            return False
        key = self._state.key_of(b"block", block_network(found))
        return self._state.blocked_for(key) > 0 and not self._exemptions.has(address)

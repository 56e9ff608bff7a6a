# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for a connection to the authentication service, served by client address in turn.

A service delays refusals to slow down who guesses passwords.  One client
address with many bad logins would then hold every connection, and good logins
of others would wait behind it.  So addresses take turns, and a part of the
connections is reserved: of those, one address holds one at a time.

Every operation takes constant time.  A client has one request at most, so there
are never more than ``worker_connections`` of them.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import Final

from mailproxy.auth_http.pending_request import PendingRequest

_MAPPED: Final = bytes(10) + b"\xff\xff"

_Requests = OrderedDict[PendingRequest, None]
"""In order of arrival; unlike in a ``dict``, finding the first takes the same time after many removals."""


def source_of(address: str) -> bytes:
    """Give what stands for one client: an IPv4 address, an IPv6 network of 64 bits, or ``unix:``.

    Args:
        address: Without a port, as in ``Client.address``.
    """
    if ":" not in address:
        return address.encode("ascii", "replace")
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return b"unix:"
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:]).encode()
    return packed[:8]


class FairQueue:
    """The requests that wait, and which addresses hold a reserved connection.

    Attributes:
        requests: Those that wait, and the address of each.
        holders: Those that have a reserved connection, and the address of each.
    """

    __slots__ = ("_holding", "_parked", "_ring", "holders", "requests")

    def __init__(self) -> None:
        self._ring: OrderedDict[bytes, _Requests] = OrderedDict()
        """By address, in the order of their turns."""
        self._parked: OrderedDict[bytes, _Requests] = OrderedDict()
        """The same, for addresses that hold a reserved connection."""
        self.requests: dict[PendingRequest, bytes] = {}
        self.holders: dict[PendingRequest, bytes] = {}
        self._holding: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, question: PendingRequest, source: bytes) -> None:
        """Append a request to those of its address."""
        self.requests[question] = source
        turns = self._parked if source in self._holding else self._ring
        requests = turns.get(source)
        if requests is None:
            requests = turns[source] = OrderedDict()
        requests[question] = None

    def discard(self, question: PendingRequest) -> None:
        """Remove a request that nobody waits for any more, wherever it is."""
        source = self.requests.pop(question, None)
        if source is None:
            return
        turns = self._parked if source in self._holding else self._ring
        requests = turns[source]
        del requests[question]
        if not requests:
            del turns[source]

    def take(self, *, reserved: bool) -> PendingRequest | None:
        """Remove and return the next request.

        Args:
            reserved: It gets a reserved connection, so its address must hold none.

        Returns:
            ``None`` where there is no such request.
        """
        turns = self._ring or (None if reserved else self._parked)
        if not turns:
            return None
        source, requests = turns.popitem(last=False)
        question, _ = requests.popitem(last=False)
        del self.requests[question]
        if requests:
            turns[source] = requests
        if reserved:
            self.hold(question, source)
        return question

    def may_hold(self, source: bytes) -> bool:
        """Return whether an address may have a reserved connection."""
        return source not in self._holding

    def hold(self, question: PendingRequest, source: bytes) -> None:
        """Note that a request has a reserved connection."""
        self.holders[question] = source
        self._holding.add(source)
        if source in self._ring:
            self._parked[source] = self._ring.pop(source)

    def release(self, question: PendingRequest) -> bool:
        """Note that a request is over: if it had a reserved connection, its address may have another.

        Returns:
            Whether it had one.
        """
        source = self.holders.pop(question, None)
        if source is None:
            return False
        self._holding.discard(source)
        if source in self._parked:
            self._ring[source] = self._parked.pop(source)
        return True

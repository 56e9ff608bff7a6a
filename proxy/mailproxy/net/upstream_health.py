# SPDX-License-Identifier: Apache-2.0
"""Which addresses of upstreams failed lately: shared memory of all workers of a supervisor.

An address that failed three times in a row is last in the order of its login's addresses for 30
seconds.  After that one login tries it again in its own place, and the others wait for the result of
that trial.  A success clears the address.

The table has a fixed number of slots.  Workers read and write it without a lock: a race can lose a
failure or begin two trials, so that an address is tried earlier or later than it should be.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from mailproxy.net.shared_memory import Area, SharedMemory
from mailproxy.protocols.types import UpstreamAddress

MAX_ADDRESSES: Final = 1024
"""Addresses that have failed lately; of more, the one with the oldest failure is forgotten."""
FAILURES: Final = 3
"""Failures in a row after which an address is last in order."""
LAST_SECONDS: Final = 30.0
"""How long it is last in order, and how long a trial may take until another one begins."""
FORGET_SECONDS: Final = 600.0
"""After so long without another failure an address is forgotten."""

_WAYS: Final = 8
"""The slots in which an address may be; its hash selects them."""
_SETS: Final = MAX_ADDRESSES // _WAYS
_COLUMN: Final = 8 * MAX_ADDRESSES
"""Bytes of one column.  There are three: hash, number of failures, time of the last failure or trial."""


class UpstreamHealth:
    """The table, as one process sees it.

    Args:
        memory: The memory of the workers.
    """

    __slots__ = ("_failures", "_keys", "_times")

    def __init__(self, memory: SharedMemory) -> None:
        columns = memory.view(Area.UPSTREAM_HEALTH)[: 3 * _COLUMN]
        self._keys = columns[:_COLUMN].cast("Q")
        self._failures = columns[_COLUMN : 2 * _COLUMN].cast("Q")
        self._times = columns[2 * _COLUMN :].cast("d")

    def ordered(self, addresses: Iterable[UpstreamAddress]) -> list[UpstreamAddress]:
        """Return the addresses with those that are last in order behind the others."""
        return sorted(addresses, key=self.is_last)

    def is_last(self, address: UpstreamAddress) -> bool:
        """Whether this address is last in order now."""
        slot = self._find(_key(address))
        return slot >= 0 and self._failures[slot] >= FAILURES and self._age(slot) < LAST_SECONDS

    def begin(self, address: UpstreamAddress) -> None:
        """A try at this address begins: if it is a trial, the address is last in order for other logins."""
        slot = self._find(_key(address))
        if slot < 0:
            return
        if self._age(slot) >= FORGET_SECONDS:
            self._keys[slot] = 0
        elif self._failures[slot] >= FAILURES:
            self._times[slot] = time.monotonic()

    def failed(self, address: UpstreamAddress) -> None:
        """A try at this address failed, before credentials were sent."""
        key = _key(address)
        slot = self._find(key)
        if slot < 0:
            slot = self._free(key)
            self._failures[slot] = 0
            self._keys[slot] = key
        self._times[slot] = time.monotonic()
        self._failures[slot] += 1

    def succeeded(self, address: UpstreamAddress) -> None:
        """The upstream at this address has replied to credentials."""
        key = _key(address)
        for slot in _slots(key):  # two workers may have added it at the same time
            if self._keys[slot] == key:
                self._keys[slot] = 0

    def unhealthy(self) -> int:
        """Return the number of addresses that failed three times in a row, and are not forgotten."""
        return sum(
            1
            for slot, key in enumerate(self._keys)
            if key and self._failures[slot] >= FAILURES and self._age(slot) < FORGET_SECONDS
        )

    def _find(self, key: int) -> int:
        """Return the slot of an address, -1 for none."""
        return next((slot for slot in _slots(key) if self._keys[slot] == key), -1)

    def _free(self, key: int) -> int:
        """Return a free slot for an address, or the one with the oldest failure."""
        return min(_slots(key), key=lambda slot: self._times[slot] if self._keys[slot] else -1.0)

    def _age(self, slot: int) -> float:
        return time.monotonic() - self._times[slot]


def _key(address: UpstreamAddress) -> int:
    text = f"{address.address} {address.port}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") or 1


def _slots(key: int) -> range:
    first = key % _SETS * _WAYS
    return range(first, first + _WAYS)

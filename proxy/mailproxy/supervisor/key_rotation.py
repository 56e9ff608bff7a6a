# SPDX-License-Identifier: Apache-2.0
"""Rotates the keys of TLS session tickets: another after each ``ssl_session_timeout``, for all workers.

Servers with the same ``ssl_session_timeout`` share their keys.  There are
three: the current one seals tickets, and the previous and the next one open
them.  Workers know the next one a whole period before the first of them seals
with it, so each opens the tickets of all others also while they change over.
A ticket is never older than the timeout, so the previous key is not needed
for longer than that either; after that nobody has it any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from mailproxy.tls.resumption import new_key
from mailproxy_config.model import ProxyConfig

Keys = Mapping[int, tuple[bytes, ...]]
"""Keys by the ``ssl_session_timeout`` of their servers, in seconds; the first of them seals tickets."""

LONGEST_WAIT_SECONDS: Final = 3600.0
"""How long ``wait`` is at most."""


@dataclass(slots=True)
class _Ring:
    due: float
    current: bytes = field(default_factory=new_key, repr=False)
    next: bytes = field(default_factory=new_key, repr=False)
    previous: bytes | None = field(default=None, repr=False)

    def keys(self) -> tuple[bytes, ...]:
        return (self.current, self.next, *((self.previous,) if self.previous else ()))


class KeyRotation:
    """All keys of this proxy's servers that have no ``ssl_session_ticket_key``.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rings: dict[int, _Ring] = {}

    def of(self, timeouts: Collection[int]) -> Keys:
        """Return the keys for these timeouts; for a new one, keys are made."""
        now = self._clock()
        for seconds in timeouts:
            self._rings.setdefault(seconds, _Ring(now + _period(seconds)))
        return {seconds: self._rings[seconds].keys() for seconds in sorted(timeouts)}

    def keep(self, timeouts: Collection[int]) -> None:
        """Forget the keys for all other timeouts."""
        for seconds in self._rings.keys() - set(timeouts):
            del self._rings[seconds]

    def rotate(self) -> bool:
        """Replace the keys that are due; returns whether any was."""
        now = self._clock()
        due = {seconds: ring for seconds, ring in self._rings.items() if ring.due <= now}
        for seconds, ring in due.items():
            self._rings[seconds] = _Ring(now + _period(seconds), ring.next, previous=ring.current)
        return bool(due)

    def all(self) -> Keys:
        """Return the keys for every timeout."""
        return self.of(tuple(self._rings))

    def wait(self) -> float:
        """Return the seconds until a key is due, or until it is worth looking again."""
        left = (ring.due - self._clock() for ring in self._rings.values())
        return max(0.0, min([*left, LONGEST_WAIT_SECONDS]))


def rotated_timeouts(config: ProxyConfig) -> frozenset[int]:
    """Return the session timeouts of the servers whose ticket keys rotate."""
    return frozenset(
        int(server.ssl_session_timeout)
        for server in config.servers
        if server.tls_is_used and server.ssl_session_tickets and not server.ssl_session_ticket_key
    )


def _period(seconds: int) -> float:
    return max(1.0, float(seconds))

# SPDX-License-Identifier: Apache-2.0
"""The limit of the rate at which a client gets relayed bytes (``limit_rate``, ``limit_rate_after``)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from mailproxy.loop.epoll import BROKEN, READ
from mailproxy.net.nonblocking import WOULD_BLOCK
from mailproxy.session.relay_end import READ_BYTES, RelayEnd
from mailproxy.telemetry.metrics import Counter
from mailproxy.tls.connection import TlsConnection
from mailproxy_config.model import ServerConfig


class ByteAllowance:
    """How many bytes may be read now: a token bucket that holds one second's worth.

    Args:
        rate: Bytes per second.
        free: Bytes that are read before the limit applies.
        now: Monotonic seconds.

    Attributes:
        minimum: The fewest bytes that are worth an event: about ten per second.
    """

    __slots__ = ("_free", "_left", "_updated", "minimum", "rate")

    def __init__(self, rate: int, free: int, now: float) -> None:
        self.rate = rate
        self.minimum = max(1, min(READ_BYTES, rate // 10))
        self._free = free
        self._left = float(rate)
        self._updated = now

    def available(self, now: float) -> int:
        """Return the number of bytes that may be read at this time."""
        self._left = min(self._left + (now - self._updated) * self.rate, float(self.rate))
        self._updated = now
        return self._free + int(self._left)

    def take(self, size: int) -> None:
        """Bytes were read; the free ones count first."""
        free = min(size, self._free)
        self._free -= free
        self._left -= size - free

    def delay(self) -> float:
        """Return the seconds until ``minimum`` bytes are available."""
        return max(self.minimum - self._left, 1.0) / self.rate


class RateLimitedEnd(RelayEnd):
    """The end of an upstream whose bytes reach the client at a limited rate.

    Where they have to wait, they wait in the kernel: the socket is not read.

    Args:
        limit: ``limit_rate`` and ``limit_rate_after``, in bytes per second and bytes.
        sock: The connection to the upstream.
        fd: Its descriptor.
        events: The events that it is polled for.
        counter: Counts the bytes for all sessions.
        tls: The same as ``sock`` where it is a TLS connection.
    """

    __slots__ = ("_allowance", "_limit", "is_paused")

    def __init__(
        self,
        limit: tuple[int, int],
        sock: socket.SocketType,
        fd: int,
        events: int,
        counter: Counter,
        tls: TlsConnection | None = None,
    ) -> None:
        super().__init__(sock, fd, events, counter, tls)
        self.is_paused = False
        self._limit = limit
        self._allowance: ByteAllowance | None = None

    def on_event(self, mask: int) -> None:
        """Copy; when the connection is broken, what is left of it without a limit."""
        if mask & BROKEN:
            self.is_paused = False
            super().on_event(mask)
        elif not self.is_paused or mask != READ:
            super().on_event(mask)

    def copy(self) -> None:
        """Read as much as is allowed now, and write it to the client."""
        other, relay = self.other, self.relay
        if other.has_unsent or self.is_paused:
            return
        now = relay.context.epoll.now
        if self._allowance is None:
            self._allowance = ByteAllowance(*self._limit, now)
        allowance = self._allowance
        available = allowance.available(now)
        if available < allowance.minimum:
            self.is_paused = True
            relay.context.loop.call_later(allowance.delay(), self._resume)
            return
        try:
            data = self.sock.recv(min(READ_BYTES, available))
        except WOULD_BLOCK:
            return
        if not data:
            relay.on_eof(self)
            return
        allowance.take(len(data))
        self._count(len(data))
        other.write(data)
        if self.tls is not None and self.tls.pending():
            relay.context.loop.call_soon(relay.copy_on, self)

    def _resume(self) -> None:
        """Read again."""
        relay = getattr(self, "relay", None)  # deleted when the relay is closed
        if relay is None or relay.is_closed or not self.is_paused:
            return
        self.is_paused = False
        self.update_events()
        relay.copy_on(self)


def relay_end_for(server: ServerConfig) -> Callable[..., RelayEnd]:
    """Return what makes the upstream's end of a relay: with a limit only where there is one."""
    if not server.limit_rate:
        return RelayEnd
    return partial(RateLimitedEnd, (server.limit_rate, server.limit_rate_after))

# SPDX-License-Identifier: Apache-2.0
"""After login: what the two ends of a session share, its books, its idle time and its end.

A relaying session is two ``RelayEnd`` objects, which copy bytes both ways, and the
``Relay`` that they belong to.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from mailproxy.closing import close_now
from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason, LoginResult, UpstreamStage
from mailproxy.loop.epoll import READ
from mailproxy.loop.timeouts import Deadlines
from mailproxy.session.relay_end import RelayEnd
from mailproxy.session.relay_socket import RelaySocket, SinkBroken
from mailproxy.session.session_end import book_end
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.metrics import Gauge

# An enumeration is slow to ask for its members.
_CLIENT_CLOSED: Final = CloseReason.CLIENT_CLOSED
_UPSTREAM_CLOSED: Final = CloseReason.UPSTREAM_CLOSED
_IDLE_TIMEOUT: Final = CloseReason.IDLE_TIMEOUT
_SUCCESS: Final = LoginResult.SUCCESS
HALF_CLOSED_SECONDS: Final = 60.0
"""Silence that a session survives once one side has ended, or is broken."""


class Relay:
    """What the two ends share: the books, the idle time, the end.

    Attributes:
        active: When something last moved, by the reactor's clock.
        spoke_last: The end that did.
    """

    __slots__ = (
        "_gauge",
        "_idle",
        "_owes_client",
        "_reason",
        "active",
        "client",
        "engine",
        "is_closed",
        "record",
        "server",
        "spoke_last",
        "timer",
        "upstream",
    )

    def __init__(
        self, engine: WorkerContext, server: VirtualServer, record: SessionRecord, gauge: Gauge
    ) -> None:
        self.engine = engine
        self.server = server
        self.record = record
        self._gauge = gauge
        self.is_closed = False
        self._owes_client = False
        self.timer: Deadlines | None = None
        self._idle: float = server.config.proxy_timeout
        self.active = engine.reactor.now
        self._reason: CloseReason | None = None
        self.client: RelayEnd
        self.upstream: RelayEnd
        self.spoke_last: RelayEnd

    def open(self) -> None:
        """Deliver what each side is owed, and serve both from now on."""
        if self.is_closed:
            return
        client, upstream, reactor = self.client, self.upstream, self.engine.reactor
        reactor.hand_over(client.fd, client)
        reactor.hand_over(upstream.fd, upstream)
        to_client, client.pending = client.pending, b""
        to_upstream, upstream.pending = upstream.pending, b""
        try:
            if to_client:
                client.write(to_client)
            if to_upstream:
                client.count(len(to_upstream))
                upstream.write(to_upstream)
        except SinkBroken as broken:
            self.broke(broken.side)
            return
        if client.is_behind or upstream.is_behind or client.mask != upstream.mask:
            client.watch()
            upstream.watch()
        if client.tls is not None and client.tls.pending() and not upstream.is_behind:
            client.on_event(READ)

    def has_ended(self, end: RelayEnd) -> bool:
        """One side has said everything; tell whether it is the first to."""
        if self._reason is not None:
            return False
        self._owes_client = self.client.is_behind or self.spoke_last is self.client
        self._reason = _CLIENT_CLOSED if end is self.client else _UPSTREAM_CLOSED
        return True

    def go_on(self, end: RelayEnd) -> None:
        """Carry what a turn has left above a side's socket, where no event tells of it."""
        if not self.is_closed:
            end.on_event(READ)

    def bound_silence(self) -> None:
        """There is nobody to wait for on one side: the other has a bounded while to take what is left."""
        self._idle = min(self._idle, HALF_CLOSED_SECONDS)
        self.engine.timers.arm(self, self._idle)

    def is_complete(self) -> bool:
        """Whether nobody has anything left to say that the other waits for.

        The upstream has ended and the client has all of it; or the client has
        ended, and had the last answer already.
        """
        client, upstream = self.client, self.upstream
        if client.is_behind:
            return client.is_over and upstream.is_over
        return upstream.is_over or (client.is_over and not self._owes_client)

    def broke(self, side: RelaySocket) -> None:
        """A connection broke."""
        if self._reason is None:
            if side is self.client:
                self._reason = CloseReason.CLIENT_RESET
            else:
                self._reason = CloseReason.UPSTREAM_ERROR
                self.server.numbers.upstream_errors[UpstreamStage.RELAY].value += 1
        self.close()

    def on_timeout(self) -> None:
        """``proxy_timeout`` has passed since it was last looked at; maybe not since something moved."""
        if self.is_closed:
            return
        left = self.active + self._idle - self.engine.reactor.now
        if left > 0.0:
            self.engine.timers.arm(self, left)
        else:
            self._reason = self._reason or CloseReason.IDLE_TIMEOUT
            self.close()

    def say_goodbye(self) -> None:
        """A relay goes on while the proxy drains."""

    def cut(self) -> None:
        """Leave at once."""
        self._reason = self._reason or CloseReason.DRAIN
        self.close()

    def crashed(self) -> None:
        """An exception of our own: close both sides; there is no place for a reply in what is relayed."""
        if self not in self.engine.live:
            return
        self._reason = CloseReason.INTERNAL_ERROR
        if self.is_closed:  # it was being closed
            self.give_up()
        else:
            self.close()

    def give_up(self) -> None:
        """Close both sides in whatever state they are."""
        engine, record = self.engine, self.record
        self.is_closed = True
        with suppress(Exception):
            engine.timers.disarm(self)
        with suppress(Exception):
            self._give_up_pipes()
        for end in (self.upstream, self.client):
            close_now(engine, end.sock, end.fd)  # once more, perhaps
        if self in engine.live:
            engine.live.discard(self)
            if record.reason is None:
                with suppress(Exception):
                    book_end(engine, self.server, record, self._gauge, CloseReason.INTERNAL_ERROR)

    def close(self) -> None:
        """Close both sides and the books."""
        if self.is_closed:
            return
        self.is_closed = True
        engine, client, upstream, record = self.engine, self.client, self.upstream, self.record
        engine.timers.disarm(self)
        record.bytes_to_upstream, record.bytes_to_client = client.moved, upstream.moved
        if upstream.pipe is not None or client.pipe is not None:
            self._give_up_pipes()
        close_now(engine, upstream.sock, upstream.fd)
        if client.tls is not None and self._reason is not _IDLE_TIMEOUT:
            client.tls.unwrap()
        close_now(engine, client.sock, client.fd)
        book_end(engine, self.server, record, self._gauge, self._reason or _CLIENT_CLOSED)
        engine.live.discard(self)
        del client.other, upstream.other, client.account, upstream.account

    def _give_up_pipes(self) -> None:
        for end in (self.upstream, self.client):
            if end.pipe is not None:
                self.engine.pipes.discard(end.pipe)
                end.pipe = None


def start_relay(
    relay: Relay, *, client: RelayEnd, upstream: RelayEnd, to_client: bytes, to_upstream: bytes
) -> None:
    """Turn two connections into a relay, and deliver what each side is owed, once, when the turn ends.

    From its return on both connections are the relay's; where it raises, they
    are still the session's.

    Args:
        relay: What the two ends will share.
        client: The client's end.
        upstream: The upstream's.
        to_client: The end of the login: what the upstream answered.
        to_upstream: What the client sent ahead.
    """
    relay.record.result = _SUCCESS
    client.other, upstream.other = upstream, client
    client.account = upstream.account = relay
    relay.client, relay.upstream = client, upstream
    relay.spoke_last = upstream
    client.pending, upstream.pending = to_client, to_upstream
    engine = relay.engine
    relay.server.idleness.arm(relay)
    engine.live.add(relay)
    reactor = engine.reactor
    reactor.forget(client.fd)  # until then: what comes in this turn must not overtake what is owed
    reactor.forget(upstream.fd)
    reactor.at_end(relay.open)

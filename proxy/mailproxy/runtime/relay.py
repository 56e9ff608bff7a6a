# SPDX-License-Identifier: Apache-2.0
"""After login: octets are copied both ways, with nothing kept that does not have to be.

A relaying session is two ``End`` objects.  Little goes by ``recv`` and
``send``; a read that fills its buffer makes that direction *bulk*: through a
pipe inside the kernel where both sides are plain, through one large buffer of
the worker's where TLS is in the way.  What the other side does not take at
once is the only thing held; until it is taken, this side is not read.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from mailproxy.events import CloseReason, LoginResult, UpstreamStage
from mailproxy.observe.meter import Counter, Gauge
from mailproxy.observe.record import SessionRecord
from mailproxy.runtime.accounts import book_end
from mailproxy.runtime.closing import close_now, end_writing
from mailproxy.runtime.conversation import CLOSED_BY_TLS, WOULD_BLOCK
from mailproxy.runtime.engine import Engine
from mailproxy.runtime.pipes import Pipe
from mailproxy.runtime.reactor import BROKEN, QUIET, READ, WRITE
from mailproxy.runtime.server import Server
from mailproxy.runtime.timers import Deadlines
from mailproxy.tls.session import TlsConnection

SMALL: Final = 16 * 1024
"""Octets of an ordinary read; one that fills it makes the direction bulk."""
ROUNDS: Final = 4
"""Bulk transfers per event, so that a busy session does not delay the others."""
_PARKED: Final = -1
# An enumeration is slow to ask for its members.
_CLIENT_CLOSED: Final = CloseReason.CLIENT_CLOSED
_UPSTREAM_CLOSED: Final = CloseReason.UPSTREAM_CLOSED
_IDLE_TIMEOUT: Final = CloseReason.IDLE_TIMEOUT
_SUCCESS: Final = LoginResult.SUCCESS
HALF_CLOSED_SECONDS: Final = 60.0
"""Silence that a session survives once one side has ended, or is broken."""


class SinkBroken(Exception):
    """Writing failed: it is not the side that was read that broke."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end


class End:
    """One side of a relaying session, and what waits to be written to it.

    Attributes:
        account: What it shares with the other side.
        counter: Counts what this side says, for all sessions.
        is_behind: Whether octets wait to be written to this side: ``pending``, or in ``pipe``.
        is_over: Whether this side has said everything.
        mask: What the reactor watches it for.
        moved: How many octets it said.
        other: The other side.
        tls: The same as ``sock`` where it is a TLS connection.
    """

    __slots__ = (
        "account",
        "counter",
        "fd",
        "is_behind",
        "is_over",
        "mask",
        "moved",
        "other",
        "pending",
        "pipe",
        "sock",
        "tls",
    )

    def __init__(
        self,
        sock: socket.SocketType,
        fd: int,
        mask: int,
        counter: Counter,
        tls: TlsConnection | None = None,
    ) -> None:
        self.sock = sock
        self.fd = fd
        self.tls = tls
        self.counter = counter
        self.moved = 0
        self.is_behind = False
        self.is_over = False
        self.pending = b""
        self.pipe: Pipe | None = None
        self.mask = mask
        self.other: End
        self.account: Relay

    # -- readiness

    def on_event(self, mask: int) -> None:
        """Write what waits to be written here, then read what came."""
        relay, other = self.account, self.other
        try:
            if mask & WRITE and self.is_behind:
                self._write_pending()
            if mask & (READ | BROKEN) and not self.is_over:
                self.carry()
            elif mask & BROKEN:
                relay.broke(self)
                return
        except SinkBroken as broken:
            relay.broke(broken.end)
            return
        except CLOSED_BY_TLS:
            self._ended()
        except OSError:
            relay.broke(self)
            return
        relay.active = relay.engine.reactor.now
        if mask & BROKEN or self.is_over or self.is_behind or other.is_behind or self.mask != other.mask:
            self._settle(is_broken=bool(mask & BROKEN))

    def _settle(self, *, is_broken: bool) -> None:
        """Watch both sides for what can go on now; end when nothing can."""
        relay, other = self.account, self.other
        if relay.is_complete():
            relay.close()
            return
        if is_broken and other.is_behind:
            self._park()
            relay.bound_silence()
        self.watch()
        other.watch()

    def watch(self) -> None:
        """Read here unless the other side is behind; write here if it is this one."""
        wanted = QUIET
        if not self.is_over and not self.other.is_behind:
            wanted = READ
        if self.is_behind:
            wanted |= WRITE
        if wanted == self.mask:
            return
        reactor = self.account.engine.reactor
        if self.mask != _PARKED:
            reactor.want(self.fd, wanted)
        elif wanted == QUIET:
            return
        else:
            reactor.add(self.fd, self, wanted)
        self.mask = wanted

    def _park(self) -> None:
        """Stop watching altogether: a hang-up is reported again and again, wanted or not."""
        if self.mask != _PARKED:
            self.mask = _PARKED
            self.account.engine.reactor.remove(self.fd)

    def cut(self) -> None:
        """End the session at once."""
        self.account.cut()

    # -- from this side to the other

    def carry(self) -> None:
        """Read what there is, and write it to the other side."""
        other = self.other
        if other.is_behind:
            return
        try:
            octets = self.sock.recv(SMALL)
        except WOULD_BLOCK:
            return
        if not octets:
            self._ended()
            return
        size = len(octets)
        self.moved += size
        self.counter.value += size
        self.account.spoke_last = self
        other.write(octets)
        tls = self.tls
        if not (size == SMALL if tls is None else tls.pending()) or other.is_behind:
            return  # what is left waits where it is while the other side is behind: it must not overtake
        if tls is None and other.tls is None:
            self._carry_through_pipe()
        else:
            self._carry_through_buffer()

    def _carry_through_buffer(self) -> None:
        buffer = self.account.engine.buffer
        view = memoryview(buffer)
        for _ in range(ROUNDS):
            filled, ended = self._fill(view)
            if filled:
                self.count(filled)
                self.other.write_from(view[:filled])
            if ended:
                self._ended()
                return
            if self.other.is_behind or (filled < len(buffer) and not (self.tls and self.tls.pending())):
                return
        if self.tls is not None and self.tls.pending():
            relay = self.account
            relay.engine.loop.call_soon(relay.go_on, self)

    def _fill(self, view: memoryview) -> tuple[int, bool]:
        filled, size, recv_into = 0, len(view), self.sock.recv_into
        while filled < size:
            try:
                count = recv_into(view[filled:], size - filled)
            except WOULD_BLOCK:
                break
            except CLOSED_BY_TLS:
                count = 0
            if not count:
                return filled, True
            filled += count
            if self.tls is None and filled < size:
                break
        return filled, False

    def _carry_through_pipe(self) -> None:
        engine, other = self.account.engine, self.other
        pipe = engine.pipes.take()
        if pipe is None:
            self._carry_through_buffer()
            return
        try:
            for _ in range(ROUNDS):
                count = self._into(pipe)
                if count <= 0:
                    if count == 0:
                        self._ended()
                    return
                self.count(count)
                pipe.holds = count
                if not other.out_of(pipe):
                    other.pipe, other.is_behind = pipe, True
                    return
                if count < SMALL:
                    return
        finally:
            if other.pipe is not pipe:
                engine.pipes.give_back(pipe)

    def _into(self, pipe: Pipe) -> int:
        try:
            return os.splice(self.fd, pipe.write, pipe.size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            return -1

    def out_of(self, pipe: Pipe) -> bool:
        """Write what a pipe holds to this side; tell whether all of it went."""
        try:
            while pipe.holds:
                pipe.holds -= os.splice(
                    pipe.read, self.fd, pipe.holds, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
                )
        except BlockingIOError:
            return False
        except OSError as error:
            raise SinkBroken(self) from error
        return True

    def count(self, octets: int) -> None:
        """Book octets that this side said."""
        self.moved += octets
        self.counter.value += octets
        self.account.spoke_last = self

    # -- to this side

    def write(self, octets: bytes) -> None:
        """Write what fits; the rest waits."""
        try:
            sent = self.sock.send(octets)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            raise SinkBroken(self) from error
        if sent != len(octets):
            self.pending, self.is_behind = octets[sent:], True

    def write_from(self, view: memoryview) -> None:
        """Write what fits of a buffer that others use too; the rest is copied and waits."""
        start = 0
        try:
            while start < len(view):
                start += self.sock.send(view[start:])
        except WOULD_BLOCK:
            self.pending, self.is_behind = bytes(view[start:]), True
        except OSError as error:
            raise SinkBroken(self) from error

    def _write_pending(self) -> None:
        if self.pipe is not None:
            if not self.out_of(self.pipe):
                return
            self.account.engine.pipes.give_back(self.pipe)
            self.pipe, self.is_behind = None, False
        else:
            octets, self.pending, self.is_behind = self.pending, b"", False
            self.write(octets)
        other = self.other
        if not self.is_behind:
            if other.is_over:
                self.finish_writing()
            elif other.tls and other.tls.pending():
                other.carry()

    # -- the end

    def _ended(self) -> None:
        self.is_over = True
        relay, other = self.account, self.other
        is_first = relay.has_ended(self)
        if not relay.is_complete():
            if is_first:
                relay.bound_silence()
            if not other.is_behind:
                other.finish_writing()

    def finish_writing(self) -> None:
        """The other side has ended, and everything it said is written: say so to this one."""
        if not self.is_over and self is self.account.upstream:
            end_writing(self.sock)


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

    def __init__(self, engine: Engine, server: Server, record: SessionRecord, gauge: Gauge) -> None:
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
        self.client: End
        self.upstream: End
        self.spoke_last: End
        engine.live.add(self)
        server.idleness.arm(self)

    def has_ended(self, end: End) -> bool:
        """One side has said everything; tell whether it is the first to."""
        if self._reason is not None:
            return False
        self._owes_client = self.client.is_behind or self.spoke_last is self.client
        self._reason = _CLIENT_CLOSED if end is self.client else _UPSTREAM_CLOSED
        return True

    def go_on(self, end: End) -> None:
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

    def broke(self, end: End) -> None:
        """A connection broke."""
        if self._reason is None:
            if end is self.client:
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

    def close(self) -> None:
        """Close both sides and the books."""
        if self.is_closed:
            return
        self.is_closed = True
        engine, client, upstream, record = self.engine, self.client, self.upstream, self.record
        engine.timers.disarm(self)
        engine.live.discard(self)
        record.bytes_to_upstream, record.bytes_to_client = client.moved, upstream.moved
        for end in (upstream, client):
            if end.pipe is not None:
                engine.pipes.discard(end.pipe)
                end.pipe = None
        close_now(engine, upstream.sock, upstream.fd)
        if client.tls is not None and self._reason is not _IDLE_TIMEOUT:
            end_writing(client.sock)
        close_now(engine, client.sock, client.fd)
        book_end(engine, self.server, record, self._gauge, self._reason or _CLIENT_CLOSED)
        del client.other, upstream.other, client.account, upstream.account


def start_relay(relay: Relay, *, client: End, upstream: End, to_client: bytes, to_upstream: bytes) -> None:
    """Turn two connections into a relay, and deliver what each side is owed, once.

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
    reactor = relay.engine.reactor
    reactor.hand_over(client.fd, client)
    reactor.hand_over(upstream.fd, upstream)
    try:
        if to_client:
            client.write(to_client)
        if to_upstream:
            client.count(len(to_upstream))
            upstream.write(to_upstream)
    except SinkBroken as broken:
        relay.broke(broken.end)
        return
    if client.is_behind or upstream.is_behind or client.mask != upstream.mask:
        client.watch()
        upstream.watch()
    if client.tls is not None and client.tls.pending() and not upstream.is_behind:
        client.on_event(READ)

# SPDX-License-Identifier: Apache-2.0
"""One end of a relay: reads from its socket, and writes what the other end has read.

Few bytes are copied by ``recv`` and ``send``.  A read that fills its buffer
makes a bulk transfer: through a pipe in the kernel where both ends are without
TLS, else through one large buffer that all relays of the worker share.

While an end has unsent bytes the other one is not read.  Unsent bytes are held
in memory, at most ``MAX_PENDING`` per direction, or in the pipe.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from mailproxy.loop.epoll import BROKEN, NO_EVENTS, READ, WRITE
from mailproxy.net.nonblocking import CLOSED_BY_TLS, WOULD_BLOCK
from mailproxy.net.pipes import Pipe
from mailproxy.session.lingering_close import end_writing
from mailproxy.telemetry.metrics import Counter
from mailproxy.tls.connection import TlsConnection

if TYPE_CHECKING:
    from mailproxy.session.relay import Relay

READ_BYTES: Final = 16 * 1024
"""Bytes of an ordinary read; one that returns as many begins a bulk transfer."""
MAX_PENDING: Final = 64 * 1024
"""Bytes that are held in memory for an end whose peer does not accept them.

Not fewer than OpenSSL is given at a time (``PIECE``): it must be given the same bytes again.
"""
MAX_TRANSFERS: Final = 4
"""Bulk transfers per event (with TLS 1 MiB together), so that a busy session does not delay the others."""
_UNREGISTERED: Final = -1
_TCP: Final = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})


class WriteFailed(Exception):
    """Writing to an end failed: not the end that was read is broken."""

    def __init__(self, end: RelayEnd) -> None:
        super().__init__()
        self.end = end


class RelayEnd:
    """One end of a relay; the handler of its socket.

    Attributes:
        bytes_read: Number of bytes that its peer sent.
        counter: Counts them for all sessions.
        events: The events that the socket is polled for.
        has_unsent: Whether bytes wait to be sent to its peer: in ``pending`` or in ``pipe``.
        is_eof: Whether its peer has sent everything.
        other: The other end.
        relay: What both ends share.
        tls: The same as ``sock`` where it is a TLS connection.
    """

    __slots__ = (
        "bytes_read",
        "counter",
        "events",
        "fd",
        "has_unsent",
        "is_eof",
        "other",
        "pending",
        "pipe",
        "relay",
        "sock",
        "tls",
    )

    other: RelayEnd
    relay: Relay
    is_paused: bool = False
    """Whether its socket is not read for now; see ``rate_limit``."""

    def __init__(
        self,
        sock: socket.SocketType,
        fd: int,
        events: int,
        counter: Counter,
        tls: TlsConnection | None = None,
    ) -> None:
        self.sock = sock
        self.fd = fd
        self.tls = tls
        self.counter = counter
        self.bytes_read = 0
        self.has_unsent = False
        self.is_eof = False
        self.pending = b""
        self.pipe: Pipe | None = None
        self.events = events

    @property
    def owner(self) -> Relay:
        """What an internal error ends."""
        return self.relay

    # -- readiness

    def on_event(self, mask: int) -> None:
        """Send what waits to be sent, then copy what was received to the other end."""
        relay, other = self.relay, self.other
        try:
            if mask & WRITE and self.has_unsent:
                self._send_unsent()
            if mask & (READ | BROKEN) and not self.is_eof:
                self.copy()
            elif mask & BROKEN:
                relay.on_broken(self)
                return
        except WriteFailed as failed:
            relay.on_broken(failed.end)
            return
        except CLOSED_BY_TLS:
            relay.on_eof(self)
        except OSError:
            relay.on_broken(self)
            return
        relay.last_activity = relay.context.epoll.now
        if not relay.is_closed and (
            mask & BROKEN or self.is_eof or self.has_unsent or other.has_unsent or self.events != other.events
        ):
            self._update(is_broken=bool(mask & BROKEN))

    def _update(self, *, is_broken: bool) -> None:
        """Poll both ends for what is possible now; close when nothing is left to do."""
        relay, other = self.relay, self.other
        if relay.is_complete():
            relay.close()
            return
        if is_broken and other.has_unsent:
            if self.events != _UNREGISTERED:
                self.events = _UNREGISTERED  # a hang-up is reported at every poll, whatever is polled for
                relay.context.epoll.remove(self.fd)
            relay.limit_idle_time()
        self.update_events()
        other.update_events()

    def update_events(self) -> None:
        """Read here unless the other end has unsent bytes; write here if this one has."""
        events = NO_EVENTS
        if not (self.is_eof or self.other.has_unsent or self.is_paused):
            events = READ
        if self.has_unsent:
            events |= WRITE
        if events == self.events:
            return
        epoll = self.relay.context.epoll
        if self.events != _UNREGISTERED:
            epoll.modify(self.fd, events)
        elif events == NO_EVENTS:
            return
        else:
            epoll.add(self.fd, self, events)
        self.events = events

    # -- copying to the other end

    def copy(self) -> None:
        """Read what was received, and write it to the other end."""
        other = self.other
        if other.has_unsent:
            return
        try:
            data = self.sock.recv(READ_BYTES)
        except WOULD_BLOCK:
            return
        if not data:
            self.relay.on_eof(self)
            return
        size = len(data)
        self.bytes_read += size
        self.counter.value += size
        self.relay.last_sender = self
        other.write(data)
        tls = self.tls
        if not (size == READ_BYTES if tls is None else tls.pending()) or other.has_unsent:
            return  # with unsent bytes the rest stays where it is: it must not overtake them
        if tls is None and other.tls is None:
            self._copy_through_pipe()
        else:
            self._copy_through_buffer()

    def _copy_through_buffer(self) -> None:
        buffer = self.relay.context.buffer
        size = len(buffer) if self._can_peek else min(len(buffer), MAX_PENDING)
        view = memoryview(buffer)[:size]
        for _ in range(MAX_TRANSFERS * len(buffer) // size):
            filled, is_eof = self.read_into(view)
            if filled:
                written = self.other.write_from(view[:filled])
                self.consume(view[:written])
                self._count(written)
            if is_eof:
                self.relay.on_eof(self)
                return
            if self.other.has_unsent or (filled < size and not (self.tls and self.tls.pending())):
                return
        if self.tls is not None and self.tls.pending():
            self.relay.context.loop.call_soon(self.relay.copy_on, self)

    def _copy_through_pipe(self) -> None:
        context, other = self.relay.context, self.other
        pipe = context.pipes.take()
        if pipe is None:
            self._copy_through_buffer()
            return
        try:
            for _ in range(MAX_TRANSFERS):
                count = self.splice_into(pipe)
                if count <= 0:
                    if count == 0:
                        self.relay.on_eof(self)
                    return
                self._count(count)
                pipe.holds = count
                if not other.splice_from(pipe):
                    other.pipe, other.has_unsent = pipe, True
                    return
                if count < READ_BYTES:
                    return
        finally:
            if other.pipe is not pipe:
                context.pipes.give_back(pipe)

    def _count(self, size: int) -> None:
        self.bytes_read += size
        self.counter.value += size
        self.relay.last_sender = self

    def end_writing(self) -> None:
        """Shut down writing: everything of the other end is written; done to an upstream only."""
        if not self.is_eof and self is self.relay.upstream:
            end_writing(self.sock)

    # -- reading

    @property
    def _can_peek(self) -> bool:
        """Whether bytes that the other end does not accept can stay in the kernel: TCP without TLS."""
        return self.tls is None and self.sock.family in _TCP

    def read_into(self, view: memoryview) -> tuple[int, bool]:
        """Read what was received into a buffer.

        Without TLS it can be read again until ``consume``.

        Returns:
            The number of bytes, and whether the peer has sent everything.
        """
        if self.tls is not None:
            return self.tls.fill(view)
        try:
            filled = self.sock.recv_into(view, 0, socket.MSG_PEEK)
        except BlockingIOError:
            return 0, False
        return filled, not filled

    def consume(self, view: memoryview) -> None:
        """Drop what ``read_into`` has returned and the other end has written, or holds."""
        if self.tls is None:
            flags = socket.MSG_TRUNC if self._can_peek else 0  # tcp(7): nothing is copied
            self.sock.recv_into(view, 0, flags)

    def splice_into(self, pipe: Pipe) -> int:
        """Move received bytes into a pipe; return how many, 0 at the end of the stream, -1 for none now."""
        try:
            return os.splice(self.fd, pipe.write, pipe.size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            return -1

    # -- writing

    def write(self, data: bytes) -> None:
        """Write what the kernel accepts, and hold the rest."""
        try:
            sent = self.sock.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            raise WriteFailed(self) from error
        if sent != len(data):
            self.pending, self.has_unsent = data[sent:], True

    def write_from(self, view: memoryview) -> int:
        """Write what the kernel accepts of a shared buffer, and hold a copy of the rest, or of its beginning.

        Returns:
            The number of bytes that are written or held.
        """
        start = 0
        try:
            while start < len(view):
                start += self.sock.send(view[start:])
        except WOULD_BLOCK:
            self.pending, self.has_unsent = bytes(view[start : start + MAX_PENDING]), True
            start += len(self.pending)
        except OSError as error:
            raise WriteFailed(self) from error
        return start

    def splice_from(self, pipe: Pipe) -> bool:
        """Write what a pipe holds; return whether the kernel accepted all of it."""
        try:
            while pipe.holds:
                pipe.holds -= os.splice(
                    pipe.read, self.fd, pipe.holds, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
                )
        except BlockingIOError:
            return False
        except OSError as error:
            raise WriteFailed(self) from error
        return True

    def _send_unsent(self) -> None:
        if self.pipe is not None:
            if not self.splice_from(self.pipe):
                return
            self.relay.context.pipes.give_back(self.pipe)
            self.pipe, self.has_unsent = None, False
        else:
            data, self.pending, self.has_unsent = self.pending, b"", False
            self.write(data)
        other = self.other
        if not self.has_unsent:
            if other.is_eof:
                self.end_writing()
            elif other.tls and other.tls.pending():
                self.relay.context.loop.call_soon(self.relay.copy_on, other)  # its errors are its own

# SPDX-License-Identifier: Apache-2.0
"""One side of a relay: its socket, what it has said, and what waits to be written to it.

A side knows neither the other one nor whom they belong to.  It reads and
writes by the octet string, by a buffer that others use too, and by a pipe;
what it does not take at once is the only thing kept.
"""

from __future__ import annotations

import os
import socket

from mailproxy.observe.meter import Counter
from mailproxy.runtime.nonblocking import WOULD_BLOCK
from mailproxy.runtime.pipes import Pipe
from mailproxy.tls.session import TlsConnection


class SinkBroken(Exception):
    """Writing failed: it is not the side that was read that broke."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = side


class Side:
    """One side's socket, and what waits to be written to it.

    Attributes:
        counter: Counts what this side says, for all sessions.
        is_behind: Whether octets wait to be written to this side: ``pending``, or in ``pipe``.
        is_over: Whether this side has said everything.
        mask: What the reactor watches it for.
        moved: How many octets it said.
        tls: The same as ``sock`` where it is a TLS connection.
    """

    __slots__ = (
        "counter",
        "fd",
        "is_behind",
        "is_over",
        "mask",
        "moved",
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

    # -- from this side

    def fill(self, view: memoryview) -> tuple[int, bool]:
        """Read into a buffer what there is; tell how much, and whether this side has ended."""
        if self.tls is not None:
            return self.tls.fill(view)
        try:
            filled = self.sock.recv_into(view)
        except BlockingIOError:
            return 0, False
        return filled, not filled

    def into(self, pipe: Pipe) -> int:
        """Move octets from this side into a pipe; tell how many, 0 at the end, -1 for none now."""
        try:
            return os.splice(self.fd, pipe.write, pipe.size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            return -1

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

# SPDX-License-Identifier: Apache-2.0
"""One side of a relay: its socket, what it has said, and what waits to be written to it.

A side knows neither the other one nor whom they belong to.  It reads and
writes by the byte string, by a buffer that others use too, and by a pipe;
what it does not take at once is the only thing kept, at most ``HELD`` bytes.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from mailproxy.net.nonblocking import WOULD_BLOCK
from mailproxy.net.pipes import Pipe
from mailproxy.telemetry.metrics import Counter
from mailproxy.tls.connection import TlsConnection

HELD: Final = 64 * 1024
"""Bytes that are kept at most for a side that does not take them.

Not less than OpenSSL is given at once (``PIECE``), which it must be given again.
"""
_TCP: Final = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})


class SinkBroken(Exception):
    """Writing failed: it is not the side that was read that broke."""

    def __init__(self, side: RelaySocket) -> None:
        super().__init__()
        self.side = side


class RelaySocket:
    """One side's socket, and what waits to be written to it.

    Attributes:
        counter: Counts what this side says, for all sessions.
        is_behind: Whether bytes wait to be written to this side: ``pending``, or in ``pipe``.
        is_over: Whether this side has said everything.
        mask: What the reactor watches it for.
        moved: How many bytes it said.
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

    def most(self, size: int) -> int:
        """Give how much of a buffer ``fill`` may use.

        All of it where what the other side does not take can stay in the
        kernel: on a TCP connection without TLS.
        """
        return size if self._can_peek else min(size, HELD)

    @property
    def _can_peek(self) -> bool:
        return self.tls is None and self.sock.family in _TCP

    def fill(self, view: memoryview) -> tuple[int, bool]:
        """Read into a buffer what there is; give how much, and whether this side has ended.

        Without TLS it is still there to be read again, until ``took``.
        """
        if self.tls is not None:
            return self.tls.fill(view)
        try:
            filled = self.sock.recv_into(view, 0, socket.MSG_PEEK)
        except BlockingIOError:
            return 0, False
        return filled, not filled

    def took(self, view: memoryview) -> None:
        """Drop from this side what was filled into ``view`` and is written, or kept to be."""
        if self.tls is None:
            self.sock.recv_into(
                view, 0, socket.MSG_TRUNC if self._can_peek else 0
            )  # tcp(7): nothing is copied

    def into(self, pipe: Pipe) -> int:
        """Move bytes from this side into a pipe; tell how many, 0 at the end, -1 for none now."""
        try:
            return os.splice(self.fd, pipe.write, pipe.size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            return -1

    # -- to this side

    def write(self, data: bytes) -> None:
        """Write what fits; the rest waits."""
        try:
            sent = self.sock.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            raise SinkBroken(self) from error
        if sent != len(data):
            self.pending, self.is_behind = data[sent:], True

    def write_from(self, view: memoryview) -> int:
        """Write what fits of a buffer that others use too; ``HELD`` bytes of the rest are copied and wait.

        Returns:
            How many bytes were written, or wait.
        """
        start = 0
        try:
            while start < len(view):
                start += self.sock.send(view[start:])
        except WOULD_BLOCK:
            self.pending, self.is_behind = bytes(view[start : start + HELD]), True
            start += len(self.pending)
        except OSError as error:
            raise SinkBroken(self) from error
        return start

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

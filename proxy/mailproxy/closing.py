# SPDX-License-Identifier: Apache-2.0
"""Leaving without losing the last word.

A socket that is closed while the peer's bytes lie unread makes TCP reset the
connection, and the last reply may be lost on the way.  So our side is shut
first, and what still comes is thrown away for a short while.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from mailproxy.context import WorkerContext
from mailproxy.loop.epoll import BROKEN, READ
from mailproxy.loop.timeouts import Deadlines
from mailproxy.net.nonblocking import CLOSED_BY_TLS, WOULD_BLOCK
from mailproxy.tls.connection import TlsConnection

LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 64 * 1024
LINGERING_AT_MOST: Final = 256


def close_now(engine: WorkerContext, sock: socket.SocketType, fd: int) -> None:
    """Close a connection that has nothing left to say.

    Its number stays taken until the turn ends, so that no event of this turn
    can be meant for another that got the same.
    """
    engine.reactor.forget(fd)
    engine.reactor.at_end(sock.close)


def lingering_close(engine: WorkerContext, sock: socket.SocketType, fd: int) -> None:
    """Close a connection whose last reply must arrive, although the peer may still be talking."""
    end_writing(sock)
    if len(engine.lingering) >= LINGERING_AT_MOST:
        close_now(engine, sock, fd)
        return
    lingerer = LingeringClose(engine, sock, fd)
    try:
        lingerer.on_event(READ)
    except Exception as crash:  # an entry point: its session is over
        engine.crashed(lingerer, crash)


def end_writing(sock: socket.SocketType) -> None:
    """Tell the peer that nothing more comes: close_notify where there is TLS, then FIN."""
    if isinstance(sock, TlsConnection):
        sock.unwrap()
    with suppress(OSError):
        socket.SocketType.shutdown(sock, socket.SHUT_WR)  # an SSLSocket's own forgets its TLS


class LingeringClose:
    """Throws away what a peer still sends, for a bounded while."""

    __slots__ = ("_left", "engine", "fd", "sock", "timer")

    def __init__(self, engine: WorkerContext, sock: socket.SocketType, fd: int) -> None:
        self.engine = engine
        self.sock = sock
        self.fd = fd
        self.timer: Deadlines | None = None
        self._left = LINGER_BYTES
        engine.reactor.want(fd, READ)
        engine.timers.arm(self, LINGER_SECONDS)
        engine.reactor.hand_over(fd, self)
        engine.lingering.add(self)

    def on_event(self, mask: int) -> None:
        """Read and forget; the end, an error or the limit closes."""
        try:
            data = self.sock.recv(4096)
        except WOULD_BLOCK:
            if mask & BROKEN:
                self.on_timeout()
            return
        except CLOSED_BY_TLS:
            data = b""
        except OSError:
            data = b""
        self._left -= len(data)
        if not data or self._left <= 0:
            self.on_timeout()

    def crashed(self) -> None:
        """An exception of our own: close at once."""
        self.on_timeout()

    def give_up(self) -> None:
        """Close in whatever state it is."""
        engine, fd, self.fd = self.engine, self.fd, -1
        with suppress(Exception):
            engine.timers.disarm(self)
        engine.lingering.discard(self)
        if fd >= 0:
            close_now(engine, self.sock, fd)

    def say_goodbye(self) -> None:
        """All is said."""

    def cut(self) -> None:
        """Leave at once."""
        self.on_timeout()

    def on_timeout(self) -> None:
        """Close, once."""
        if self.fd >= 0:
            self.engine.timers.disarm(self)
            self.engine.lingering.discard(self)
            close_now(self.engine, self.sock, self.fd)
            self.fd = -1

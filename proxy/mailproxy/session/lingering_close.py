# SPDX-License-Identifier: Apache-2.0
"""Closing a connection so that the peer receives the last reply.

A socket that is closed while bytes of the peer are unread makes TCP reset the
connection, and the last reply may be lost.  So our direction is shut down
first, and what the peer still sends is read and dropped for a short while, as
nginx does (``lingering_close``).
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
MAX_LINGERING: Final = 256
"""Connections of one worker in their lingering close; others are closed at once."""


def lingering_close(context: WorkerContext, sock: socket.SocketType, fd: int) -> None:
    """Close a connection whose last reply must arrive, although the peer may still send."""
    end_writing(sock)
    if len(context.lingering) >= MAX_LINGERING:
        context.epoll.close_socket(sock, fd)
        return
    closing = LingeringClose(context, sock, fd)
    try:
        closing.on_event(READ)
    except Exception as error:  # an entry point: the session is over
        context.handle_error(closing, error)


def end_writing(sock: socket.SocketType) -> None:
    """Shut down our direction: close_notify where there is TLS, then FIN."""
    if isinstance(sock, TlsConnection):
        sock.unwrap()
    with suppress(OSError):
        socket.SocketType.shutdown(sock, socket.SHUT_WR)  # that of an SSLSocket drops its TLS state


class LingeringClose:
    """Drops what a peer still sends, for at most ``LINGER_SECONDS`` and ``LINGER_BYTES``."""

    __slots__ = ("_left", "context", "fd", "sock", "timer")

    def __init__(self, context: WorkerContext, sock: socket.SocketType, fd: int) -> None:
        self.context = context
        self.sock = sock
        self.fd = fd
        self.timer: Deadlines | None = None
        self._left = LINGER_BYTES
        context.epoll.modify(fd, READ)
        context.timers.arm(self, LINGER_SECONDS)
        context.epoll.set_handler(fd, self)
        context.lingering.add(self)

    def on_event(self, mask: int) -> None:
        """Read and drop; the end of the stream, an error or the limit closes."""
        try:
            data = self.sock.recv(4096)
        except WOULD_BLOCK:
            if mask & BROKEN:
                self.abort()
            return
        except CLOSED_BY_TLS:
            data = b""
        except OSError:
            data = b""
        self._left -= len(data)
        if not data or self._left <= 0:
            self.abort()

    def drain(self) -> None:
        """Go on: the last reply is sent already."""

    def abort(self) -> None:
        """Close now, once."""
        if self.fd >= 0:
            self.context.timers.disarm(self)
            self.context.lingering.discard(self)
            self.context.epoll.close_socket(self.sock, self.fd)
            self.fd = -1

    on_timeout = abort
    on_internal_error = abort

    def force_close(self) -> None:
        """Close in whatever state it is."""
        context, fd, self.fd = self.context, self.fd, -1
        with suppress(Exception):
            context.timers.disarm(self)
        context.lingering.discard(self)
        if fd >= 0:
            context.epoll.close_socket(self.sock, fd)

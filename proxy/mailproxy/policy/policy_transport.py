# SPDX-License-Identifier: Apache-2.0
"""The transport of a connection to a policy server without TLS, served by the worker's epoll.

asyncio's own transport runs each event as a callback of its event loop, in an iteration of its own.  A
question to a policy server took more instructions with it than the request to the authentication service.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Final

from mailproxy.loop.epoll import READ, WRITE, Epoll

_READ_BYTES: Final = 16 * 1024


class EpollTransport:
    """Sends and receives for a protocol of asyncio.

    Args:
        epoll: The worker's sockets.
        sock: A connected socket, in non-blocking mode; it belongs to the transport.
        protocol: Gets what is received, and the end of the connection.
    """

    __slots__ = ("_epoll", "_fd", "_is_closed", "_protocol", "_sock", "_unsent")

    def __init__(self, epoll: Epoll, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        self._epoll = epoll
        self._sock = sock
        self._fd = sock.fileno()
        self._protocol = protocol
        self._unsent = b""
        self._is_closed = False
        epoll.add(self._fd, self, READ)

    def write(self, data: bytes) -> None:
        """Send bytes, those later that the kernel does not accept now."""
        if self._is_closed:
            return
        try:
            sent = 0 if self._unsent else self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._epoll.defer(partial(self._lose, error))
            return
        if sent < len(data):
            if not self._unsent:
                self._epoll.modify(self._fd, READ | WRITE)
            self._unsent += data[sent:]

    def abort(self) -> None:
        """Close the connection; the protocol gets its end at the end of this iteration."""
        if not self._is_closed:
            self._close()
            self._epoll.defer(partial(self._protocol.connection_lost, None))

    def on_event(self, mask: int) -> None:
        """Send the rest, and receive."""
        if self._is_closed:
            return
        try:
            if mask & WRITE and self._unsent:
                self._send_rest()
            if mask == WRITE:
                return
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._lose(None)

    def on_internal_error(self) -> None:
        """Something that it has called raised: end the connection."""
        self._lose(ConnectionAbortedError())

    def force_close(self) -> None:
        """Ending the connection raised, too."""
        self._close()

    def _send_rest(self) -> None:
        self._unsent = self._unsent[self._sock.send(self._unsent) :]
        if not self._unsent:
            self._epoll.modify(self._fd, READ)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_closed:
            self._close()
            self._protocol.connection_lost(error)

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._epoll.close_socket(self._sock, self._fd)

# SPDX-License-Identifier: Apache-2.0
"""What the operator's HTTP servers share: a limit on connections, which aiohttp does not have, and a log."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

LOGGER = logging.getLogger(__name__)
"""The log of the servers, without malformed requests of clients."""
HANDSHAKE_SECONDS = 3.0
"""Timeout of a TLS handshake, and of an accepted connection without a transport."""
HANDSHAKES_FACTOR = 4
"""The limit of handshakes, as a multiple of the maximum: they cannot be closed before their deadline."""


class Connections:
    """The connections of a server: above the limit, the one with the longest idle time is closed.

    Args:
        maximum: The maximum number of open connections.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._idle_since: dict[web.RequestHandler, float] = {}
        self._busy: set[web.RequestHandler] = set()

    def __len__(self) -> int:
        return len(self._idle_since)

    def __iter__(self) -> Iterator[web.RequestHandler]:
        return iter(self._idle_since)

    def admit(self, connection: web.RequestHandler) -> web.RequestHandler:
        """Add an accepted connection; close the one with the longest idle time if there are too many."""
        self._drop_closed()
        if len(self._idle_since) >= self.maximum:
            self._close_longest_idle()
        self._idle_since[connection] = asyncio.get_running_loop().time()
        return connection

    def is_full(self) -> bool:
        """Whether the limit of handshakes is reached, so that the next connection is refused."""
        return len(self._idle_since) >= HANDSHAKES_FACTOR * self.maximum and not self._drop_closed()

    def _drop_closed(self) -> bool:
        """Remove closed connections; return whether there were any."""
        now = asyncio.get_running_loop().time()
        closed = [
            connection
            for connection, since in self._idle_since.items()
            if connection.transport is None and now - since > HANDSHAKE_SECONDS
        ]
        for connection in closed:
            del self._idle_since[connection]
        return bool(closed)

    @contextmanager
    def busy(self, connection: web.RequestHandler) -> Iterator[None]:
        """Mark a connection as busy while its request is handled; afterwards it is idle."""
        self._busy.add(connection)
        try:
            yield
        finally:
            self._busy.discard(connection)
            if self._idle_since.pop(connection, None) is not None:
                self._idle_since[connection] = asyncio.get_running_loop().time()

    def _close_longest_idle(self) -> None:
        for connection in self._idle_since:
            transport = connection.transport
            # Without a transport the connection is in its handshake, which has a deadline, or is closed.
            if transport is not None and connection not in self._busy:
                del self._idle_since[connection]
                connection.force_close()
                # close() waits until the client has read the remaining bytes, without a timeout.
                transport.abort()
                return


class ListeningSocket(socket.socket):
    """A listening socket that refuses connections above the limit.

    Attributes:
        connections: The accepted connections.
    """

    connections: Connections | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            ConnectionAbortedError: The connection was refused; asyncio accepts the next one.
            OSError: There is no connection to accept.
        """
        accepted, address = super().accept()
        if self.connections is not None and self.connections.is_full():
            accepted.close()
            raise ConnectionAbortedError
        return accepted, address


def listening_socket(host: str, port: int, connections: Connections) -> socket.socket:
    """Listen on an address; ``::`` and the empty string accept IPv4 and IPv6.

    Args:
        host: An address without brackets.
        port: The port, or 0 for a free one.
        connections: Limits how many are accepted.

    Raises:
        OSError: The address cannot be bound.
    """
    opened = _open_socket(host, port)
    made = ListeningSocket(opened.family, opened.type, opened.proto, opened.detach())
    made.connections = connections
    return made


def _open_socket(host: str, port: int) -> socket.socket:
    if host not in ("", "::"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))  # noqa: S104  a host without IPv6


def _is_logged(record: logging.LogRecord) -> bool:
    """Return whether a record is not about a malformed request, which got a response with status 400."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


LOGGER.addFilter(_is_logged)

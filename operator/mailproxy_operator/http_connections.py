# SPDX-License-Identifier: Apache-2.0
"""Connections of the operator's HTTP servers: their number is limited, since aiohttp does not limit it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

HANDSHAKE_SECONDS = 3.0
"""For TLS; also how long a connection that was accepted may be without a transport."""
HANDSHAKES_FACTOR = 4
"""So many times the maximum may be in their handshakes: they cannot be closed before their deadline."""


class Connections:
    """The connections of a server: when there are too many, the one that has been idle longest is closed.

    Args:
        maximum: So many are open at once.
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
        """Count one that was just accepted, and make room for it."""
        self._drop_closed()
        if len(self._idle_since) >= self.maximum:
            self._close_idlest()
        self._idle_since[connection] = asyncio.get_running_loop().time()
        return connection

    def is_full(self) -> bool:
        """Whether so many are in their handshakes that the next one is refused."""
        return len(self._idle_since) >= HANDSHAKES_FACTOR * self.maximum and not self._drop_closed()

    def _drop_closed(self) -> bool:
        """Forget connections that are over; whether there were any."""
        now = asyncio.get_running_loop().time()
        over = [
            one
            for one, since in self._idle_since.items()
            if one.transport is None and now - since > HANDSHAKE_SECONDS
        ]
        for one in over:
            del self._idle_since[one]
        return bool(over)

    @contextmanager
    def busy(self, connection: web.RequestHandler) -> Iterator[None]:
        """Spare a connection while its request is handled; from then on it is idle."""
        self._busy.add(connection)
        try:
            yield
        finally:
            self._busy.discard(connection)
            if self._idle_since.pop(connection, None) is not None:
                self._idle_since[connection] = asyncio.get_running_loop().time()

    def _close_idlest(self) -> None:
        for one in self._idle_since:
            transport = one.transport
            # Without a transport it is in its handshake, which has a deadline, or closed already.
            if transport is not None and one not in self._busy:
                del self._idle_since[one]
                one.force_close()
                # A close alone waits until the client has read what is left, for ever if it does not read.
                transport.abort()
                return


class ListeningSocket(socket.socket):
    """A socket that refuses connections while there are too many.

    Attributes:
        connections: Those that were accepted.
    """

    connections: Connections | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            ConnectionAbortedError: It was refused; asyncio goes on with the next one.
            OSError: There is none.
        """
        accepted, address = super().accept()
        if self.connections is not None and self.connections.is_full():
            accepted.close()
            raise ConnectionAbortedError
        return accepted, address


def listening_socket(host: str, port: int, connections: Connections) -> socket.socket:
    """Listen at an address; ``::`` and the empty one take both families.

    Args:
        host: An address without brackets.
        port: The port, or 0 for a free one.
        connections: Limits how many are accepted.

    Raises:
        OSError: It cannot listen there.
    """
    opened = _opened(host, port)
    made = ListeningSocket(opened.family, opened.type, opened.proto, opened.detach())
    made.connections = connections
    return made


def _opened(host: str, port: int) -> socket.socket:
    if host not in ("", "::"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))  # noqa: S104  all there is, where there is no IPv6

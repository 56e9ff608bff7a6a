"""Where an authorization service can be connected to: a path, or the addresses of its host in turn."""

from __future__ import annotations

import socket
from typing import Any

from mailproxy.runtime.resolver import HostAddresses, Meter
from mailproxy_config.model import AuthHttp

Target = tuple[socket.AddressFamily, Any]


class ServiceAddresses:
    """What ``auth_http`` names, as socket addresses.

    Args:
        where: The directive.
        meter: Where look-ups of its host are counted.
    """

    def __init__(self, where: AuthHttp, *, meter: Meter) -> None:
        self._path = where.unix_path
        self._port = where.port
        self._host = None if where.unix_path is not None else HostAddresses(where.host, meter=meter)

    async def start(self) -> None:
        """Look the host up for the first time; without success, taking an address goes on trying."""
        if self._host is not None:
            await self._host.start()

    def take(self) -> Target | None:
        """Give the next address to connect to, or ``None`` while the name does not resolve."""
        if self._host is None:
            return socket.AF_UNIX, self._path
        address = self._host.take()
        if address is None:
            return None
        return (socket.AF_INET6 if ":" in address else socket.AF_INET), (address, self._port)

    def failed(self) -> None:
        """A connection failed: maybe the host has moved."""
        if self._host is not None:
            self._host.failed()

    async def close(self) -> None:
        """Stop looking."""
        if self._host is not None:
            await self._host.close()

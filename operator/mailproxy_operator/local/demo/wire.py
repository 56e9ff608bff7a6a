# SPDX-License-Identifier: Apache-2.0
"""Lines over TCP for the demo's mail servers, with every bound a stranger could test.

The proxy has a runtime of its own for speed; here asyncio's streams are
plain enough, and nothing of the proxy may be imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

MAX_LINE = 8192
MAX_CONNECTIONS = 64
IDLE_SECONDS = 1800.0
WRITE_SECONDS = 60.0


class NotFoundOrConflict(Exception):
    """The peer left, fell silent, or sent a line that is too long."""


class Wire:
    """One connection: lines in, bytes out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def line(self) -> bytes:
        """Return the next line without its line end.

        Raises:
            NotFoundOrConflict: There is none.
        """
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                line = await self._reader.readuntil(b"\n")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise NotFoundOrConflict from error
        return line.removesuffix(b"\n").removesuffix(b"\r")

    async def exactly(self, count: int) -> bytes:
        """Return the next ``count`` bytes: an IMAP literal.

        Raises:
            NotFoundOrConflict: The peer left before.
        """
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                return await self._reader.readexactly(count)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise NotFoundOrConflict from error

    async def say(self, *lines: bytes) -> None:
        """Send lines; each gets its CRLF."""
        await self.send(b"".join(line + b"\r\n" for line in lines))

    async def send(self, data: bytes) -> None:
        """Send bytes as they are.

        Raises:
            NotFoundOrConflict: The peer left or does not read.
        """
        try:
            self._writer.write(data)
            async with asyncio.timeout(WRITE_SECONDS):
                await self._writer.drain()
        except OSError as error:
            raise NotFoundOrConflict from error

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until the connection is gone, within a second."""
        with suppress(OSError):
            async with asyncio.timeout(1):
                await self._writer.wait_closed()


class LineServer:
    """A mail server on a free loopback port: one conversation per connection, at most a few at once."""

    def __init__(self, converse: Callable[[Wire], Awaitable[None]]) -> None:
        self._converse = converse
        self._open: dict[Wire, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=MAX_LINE)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        tasks = list(self._open.values())
        for wire in list(self._open):
            wire.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        task = asyncio.current_task()
        if task is not None and len(self._open) < MAX_CONNECTIONS:
            self._open[wire] = task
            with suppress(NotFoundOrConflict, TimeoutError, asyncio.CancelledError):
                await self._converse(wire)
            del self._open[wire]
        wire.close()
        await wire.closed()

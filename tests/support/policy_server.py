# SPDX-License-Identifier: Apache-2.0
"""A policy server on loopback that records its requests, and answers as a test wants, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from support.streams import abort

HANG: Final = None
"""A request that is never answered."""
Answer = bytes | list[bytes] | None
"""A response; several parts with 50 ms between them; or ``HANG``."""


def answer(status: Any, *, code: str = "200 OK", **fields: Any) -> bytes:
    """Return the response to ``command=allow``."""
    body = json.dumps({"status": status, "msg": "", **fields}).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (code.encode(), len(body), body)


ALLOWED: Final = answer(0)


@dataclass
class PolicyServer:
    """Answers requests with ``reply``.

    Attributes:
        connections: Number of connections that were accepted.
        requests: All requests, in order: the head and the body of each.
    """

    reply: Callable[[str], Answer] = lambda _: ALLOWED
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    scheme: str = "http"
    closes: bool = False
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"{self.scheme}://127.0.0.1:{self.port}/"

    def bodies(self, command: str) -> list[dict[str, Any]]:
        """Return the objects of all requests with a command."""
        return [json.loads(body) for head, body in self.requests if f"command={command} ".encode() in head]

    async def wait_for(self, command: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many requests with a command."""
        while len(self.bodies(command)) < count:
            await asyncio.sleep(0.005)
        return self.bodies(command)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                self.requests.append((head, await reader.readexactly(length)))
                command = "report" if b"command=report " in head else "allow"
                made = self.reply(command)
                for part in made if isinstance(made, list) else [made]:
                    if part is None:
                        await asyncio.sleep(3600)
                    writer.write(part or b"")
                    await writer.drain()
                    await asyncio.sleep(0.05 if isinstance(made, list) else 0)
                if self.closes:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def policy_server(
    reply: Callable[[str], Answer] | Answer = ALLOWED,
    *,
    closes: bool = False,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[PolicyServer]:
    """Run a policy server.

    Args:
        reply: The answer to all requests, or a function of the command.
        closes: Whether each connection ends after one response that does not announce it.
        tls: The TLS context of the server.
    """
    server = PolicyServer(reply if callable(reply) else lambda _: reply, closes=closes)
    server.scheme = "http" if tls is None else "https"
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in server.writers:
            abort(writer)

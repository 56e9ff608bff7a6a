# SPDX-License-Identifier: Apache-2.0
"""A token service (RFC 6749) on loopback, in the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from support.streams import abort


def answer(body: bytes | dict[str, Any], *, status: str = "200 OK", head: str = "") -> bytes:
    """Return an HTTP response; a dictionary becomes JSON."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def token(value: str, seconds: object = 3600, **more: Any) -> bytes:
    """Return an answer with a token."""
    return answer({"access_token": value, "token_type": "Bearer", "expires_in": seconds, **more})


Answer = bytes | Callable[[], Awaitable[bytes]]


@dataclass
class TokenService:
    """Sends its answers in order, the last one for ever.

    Attributes:
        answers: What it sends.
        forms: The fields of the requests, each with one value.
        heads: The heads of the requests.
    """

    answers: list[Answer]
    forms: list[dict[str, str]] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    port: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, with one request."""
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            body = (await reader.readexactly(length)).decode()
            self.heads.append(head)
            self.forms.append({name: values[0] for name, values in parse_qs(body).items()})
            found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            writer.write(found if isinstance(found, bytes) else await found())
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def token_service(*answers: Answer) -> AsyncIterator[TokenService]:
    """Run a token service."""
    service = TokenService(list(answers))
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        for writer in service.writers:
            abort(writer)
            with contextlib.suppress(OSError):
                await writer.wait_closed()

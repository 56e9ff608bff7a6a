# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 server for requests without a body (RFC 9112): that of the admin endpoint.

A client that sends no request, sends it a byte at a time, keeps an idle
connection or does not read the response uses one of ``MAX_CONNECTIONS``, for a
limited time.  When all are in use, a new client replaces the connection that
has been idle longest, so that probes always get a response.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

MAX_CONNECTIONS: Final = 64
"""Connections at a time; for another one, the one that has been idle longest is closed."""
FIRST_REQUEST_SECONDS: Final = 10.0
"""Timeout of the first request, and of every other request from its first byte on."""
IDLE_SECONDS: Final = 75.0
"""Timeout between two requests while at most half of ``MAX_CONNECTIONS`` are in use."""
MIN_IDLE_SECONDS: Final = 1.0
"""The same when all are in use; in between the timeout decreases linearly."""
WRITE_SECONDS: Final = 10.0
"""Timeout of writing a response."""
CLOSE_SECONDS: Final = 1.0
"""How long requests after an error response are read and ignored, so that the client can read it."""
MAX_LINE_BYTES: Final = 4096
"""Maximum length of the request line and of each header field."""
MAX_HEAD_BYTES: Final = 16384
"""Maximum length of the request line and all header fields."""
LOG_SECONDS: Final = 10.0
"""Malformed requests and failures are logged once per interval, with the number of the others."""

_BACKLOG: Final = 24
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its method, its path without the query, its header fields by lower-case name."""

    method: str
    path: str
    headers: Mapping[str, str]
    keeps_alive: bool


@dataclass(frozen=True, slots=True)
class Response:
    """A response; ``headers`` are those beside Content-Type, Content-Length, Date, Server and Connection."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


class BadRequest(Exception):
    """A malformed request, or one that is too long."""


class HttpServer:
    """Reads requests, and sends the responses of ``handler``.

    Args:
        handler: Called with each request, one at a time per connection.
    """

    def __init__(self, handler: Callable[[Request], Awaitable[Response]]) -> None:
        self._handler = handler
        self._connections: dict[_Connection, None] = {}  # the one that has been idle longest comes first
        self._quiet_until = float("-inf")
        self._not_logged = 0
        self._listener: asyncio.Server

    async def listen(self, bound: socket.socket) -> None:
        """Accept connections on a bound socket."""
        self._listener = await asyncio.start_server(
            self._serve, sock=bound, backlog=_BACKLOG, limit=MAX_HEAD_BYTES
        )

    async def close(self) -> None:
        """Stop listening; a response in progress gets one second."""
        self._listener.close()
        for connection in [one for one in self._connections if one.is_idle]:
            connection.abort()
        ends_at = time.monotonic() + CLOSE_SECONDS
        while self._connections and time.monotonic() < ends_at:  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(0.01)
        for connection in tuple(self._connections):
            connection.abort()

    # -- connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer)
        self._make_room()
        self._connections[connection] = None
        try:
            while await self._exchange(connection):
                del self._connections[connection]
                self._connections[connection] = None
        except (OSError, EOFError, TimeoutError):  # the client has disconnected, or is too slow
            pass
        finally:
            self._connections.pop(connection, None)
            connection.abort()

    def _make_room(self) -> None:
        """Close connections that are idle for too long, now that there is one more."""
        now = time.monotonic()
        limit = idle_seconds(len(self._connections) + 1)
        for connection in [one for one in self._connections if one.is_idle and now - one.since > limit]:
            self._drop(connection)
        if len(self._connections) >= MAX_CONNECTIONS:
            idle = (one for one in self._connections if one.is_idle)
            self._drop(next(idle, next(iter(self._connections))))

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection]
        connection.abort()

    # -- requests

    async def _exchange(self, connection: _Connection) -> bool:
        """Read one request and answer it; returns whether there may be another."""
        try:
            request = await connection.request(idle_seconds(len(self._connections)))
        except BadRequest as error:
            self._log("malformed request from %s: %s", connection.host, error)
            await connection.refuse(Response(400, f"{error}\n".encode()))
            return False
        connection.is_idle = False
        try:
            response = await self._handler(request)
        except Exception as error:  # a bug of ours costs one response
            self._log("cannot answer %s: %r", request.path, error, exc_info=error)
            response = Response(500, b"internal error\n")
        await connection.send(response, request)
        connection.is_idle, connection.since = True, time.monotonic()
        return request.keeps_alive

    def _log(self, text: str, *values: object, exc_info: BaseException | None = None) -> None:
        now = time.monotonic()
        if now < self._quiet_until:
            self._not_logged += 1
            return
        more = f" ({self._not_logged} more since the last line)" if self._not_logged else ""
        _logger.warning("%s%s", text % values, more, exc_info=exc_info)
        self._quiet_until, self._not_logged = now + LOG_SECONDS, 0


class _Connection:
    """One client's connection.

    Attributes:
        host: The client's address.
        since: When it was accepted, or its last response was sent; monotonic seconds.
        is_idle: Whether it has no request in progress.
        requests: How many were read.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        name = writer.get_extra_info("peername")
        self.host = name[0] if name else "a disconnected client"
        self.since = time.monotonic()
        self.is_idle = True
        self.requests = 0

    def abort(self) -> None:
        self._writer.transport.abort()

    async def request(self, idle: float) -> Request:
        """Read a request.

        Args:
            idle: Seconds until its first byte, except for the first request.

        Raises:
            BadRequest: It is malformed or too long.
            EOFError: The client has closed the connection.
            TimeoutError: It was not complete in time.
        """
        first = b""
        if self.requests:
            async with asyncio.timeout(idle):
                first = await self._reader.readexactly(1)
        self.requests += 1
        async with asyncio.timeout(FIRST_REQUEST_SECONDS):
            return parse(first + await self._head())

    async def _head(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise BadRequest(
                f"request line and header fields are longer than {MAX_HEAD_BYTES} bytes"
            ) from None

    async def send(self, response: Response, request: Request) -> None:
        """Send a response; returns when all of it is in the socket's send buffer."""
        body = b"" if request.method == "HEAD" else response.body
        self._writer.write(_head(response, keeps_alive=request.keeps_alive) + body)
        async with asyncio.timeout(WRITE_SECONDS):
            await self._writer.drain()
            if not request.keeps_alive:
                self._writer.close()
                await self._writer.wait_closed()

    async def refuse(self, response: Response) -> None:
        """Send a response and close, after reading what the client still sends: unread data resets it."""
        self._writer.write(_head(response, keeps_alive=False) + response.body)
        self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while await self._reader.read(MAX_HEAD_BYTES):
                    pass


def idle_seconds(connections: int) -> float:
    """Return the idle timeout for a number of connections."""
    free = min(1.0, max(0.0, 2 * (1 - connections / MAX_CONNECTIONS)))
    return MIN_IDLE_SECONDS + (IDLE_SECONDS - MIN_IDLE_SECONDS) * free


def parse(head: bytes) -> Request:
    """Parse a request's first line and header fields.

    Raises:
        BadRequest: They are malformed or too long.
    """
    lines = head.lstrip(b"\r\n").decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    if any(len(line) > MAX_LINE_BYTES for line in lines):
        raise BadRequest(f"a line is longer than {MAX_LINE_BYTES} bytes")
    words = lines[0].split(" ")
    method, target, version = words if len(words) == 3 else ("", "", "")
    if not (method.isascii() and method.isupper() and target and version in {"HTTP/1.0", "HTTP/1.1"}):
        raise BadRequest("not an HTTP/1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest("a header field is malformed")
        headers[name.lower()] = value.strip()
    return Request(method, _path(target), headers, _keeps_alive(version, headers))


def _path(target: str) -> str:
    """Return the path of a request target, which may be a whole URL (RFC 9112 section 3.2.2)."""
    if target.lower().startswith("http://"):
        target = "/" + target[7:].partition("/")[2]
    return target.partition("?")[0]


def _keeps_alive(version: str, headers: Mapping[str, str]) -> bool:
    """Return whether another request may follow; not after a body, which is not read."""
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return False
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    return "keep-alive" in options if version == "HTTP/1.0" else "close" not in options


def _head(response: Response, *, keeps_alive: bool) -> bytes:
    fields = {
        "Date": _date(time.time()),
        "Server": "mailproxy",
        "Cache-Control": "no-store",
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "keep-alive" if keeps_alive else "close",
        **response.headers,
    }
    first = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
    return (first + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n").encode()


def _date(seconds: float) -> str:
    """Format a time for HTTP, independent of the locale."""
    at = time.gmtime(seconds)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
    return f"{day}, {at.tm_mday:02} {month} {at.tm_year} {clock} GMT"

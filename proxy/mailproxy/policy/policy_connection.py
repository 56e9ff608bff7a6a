# SPDX-License-Identifier: Apache-2.0
"""One connection to a policy server: sends a request, and reads the whole response (RFC 9112).

``auth_http`` reads the head of a response only, and aiohttp costs about as much for one request as the
proxy for a whole login.  So this is a client for exactly this: small responses, no redirects, no proxy.
"""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from mailproxy.auth_http.response_body import BodyFraming, framing_of
from mailproxy.loop.epoll import Epoll
from mailproxy.policy.policy_transport import EpollTransport

if TYPE_CHECKING:
    from mailproxy.policy.policy_client import PolicyClient, PolicyRequest

MAX_HEAD: Final = 8 * 1024
"""Bytes of the head of a response."""
MAX_BODY: Final = 16 * 1024
"""Bytes of the body of a response, chunk sizes included."""
_STATUS_LINE: Final = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")


class InvalidResponse(Exception):
    """The response is not valid HTTP, or too long."""


class RequestRefused(InvalidResponse):
    """The response has a status of 400 to 499."""


class ServerError(Exception):
    """The response has a status of 500 or more."""


class PolicyConnection(asyncio.Protocol):
    """A connection.

    Args:
        client: Gets the connection back when it is idle or closed.

    Attributes:
        idle_since: Time of the last response, as of ``loop.time()``.
        request: What it is used for; ``None`` while it is idle.
        was_used: Whether it has had a response.
    """

    def __init__(self, client: PolicyClient) -> None:
        self.request: PolicyRequest | None = None
        self.was_used = False
        self.idle_since = 0.0
        self._client = client
        self._transport: asyncio.Transport | EpollTransport | None = None
        self._received = b""
        self._head: tuple[BodyFraming, bool] | None = None

    @property
    def is_opened(self) -> bool:
        """Whether it is, or was, open."""
        return self._transport is not None

    # -- by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection, TLS included, is open."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of create_connection
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read a part of a response."""
        if self.request is None:
            self.close()  # bytes that nobody has requested
            return
        self._received += data
        self._read(is_end=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed: the end of a response, or a failure."""
        if exc is None and self.request is not None:
            self._read(is_end=True)
        elif self.request is not None:
            self._break(self.request)
        self._client.on_closed(self)

    # -- by the client

    def leave_asyncio(self, epoll: Epoll) -> None:
        """Go on with the worker's epoll instead of asyncio, before a request; nothing happens with TLS.

        Raises:
            OSError: There is no descriptor, or epoll takes no more; asyncio still serves the connection.
        """
        transport = self._transport
        if not isinstance(transport, asyncio.Transport) or transport.is_closing():
            return
        if transport.get_extra_info("ssl_object") is not None:
            return
        sock = transport.get_extra_info("socket").dup()
        try:
            sock.setblocking(False)
            self._transport = EpollTransport(epoll, sock, self)
        except BaseException:
            epoll.discard(sock.fileno())
            sock.close()
            raise
        transport.set_protocol(asyncio.Protocol())  # it does not get the end of the first descriptor
        transport.abort()

    def send(self, request: PolicyRequest) -> None:
        """Send a request."""
        assert self._transport is not None  # noqa: S101 - it is connected
        self.request = request
        request.connection = self
        self._received = b""
        self._head = None
        self._transport.write(request.data)

    def close(self) -> None:
        """Close the connection; a request that it has gets no response."""
        self.request = None
        if self._transport is not None:
            self._transport.abort()

    # -- responses

    def _read(self, *, is_end: bool) -> None:
        """Finish the request if the response is complete, or not valid."""
        request = self.request
        assert request is not None  # noqa: S101 - checked by the callers
        try:
            body = self._body(is_end=is_end)
        except (InvalidResponse, ServerError) as error:
            self.close()
            self._client.on_bad_response(request, error)
            return
        if body is not None:
            keeps_alive = self._head is not None and self._head[1] and not is_end
            self.request = None
            if keeps_alive:
                self.was_used = True
                self._client.on_idle(self)
            else:
                self.close()
            self._client.on_body(request, body)
        elif is_end:
            self._break(request)

    def _break(self, request: PolicyRequest) -> None:
        self.request = None
        is_stale = self.was_used and self._head is None and not self._received
        self._client.on_broken(request, is_stale=is_stale)

    def _body(self, *, is_end: bool) -> bytes | None:
        """Return the body of the response, or ``None`` while it is not complete."""
        if self._head is None and not self._read_head():
            return None
        assert self._head is not None  # noqa: S101 - just read
        framing = self._head[0]
        if len(self._received) > MAX_BODY or (framing.length or 0) > MAX_BODY:
            raise InvalidResponse(f"a response of more than {MAX_BODY} bytes")
        if framing.chunked:
            body = _unchunked(self._received)
        elif framing.length is not None:
            is_complete = len(self._received) >= framing.length
            body = self._received[: framing.length] if is_complete else None
            if is_complete and len(self._received) > framing.length:
                self._head = framing, False
        else:
            body = self._received if is_end else None
        return body

    def _read_head(self) -> bool:
        """Read the status line and the headers; return whether they are complete."""
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(self._received) > MAX_HEAD:
                raise InvalidResponse(f"a head of more than {MAX_HEAD} bytes")
            return False
        self._head = _parse_head(head)
        self._received = rest
        return True


@lru_cache(16)
def _parse_head(head: bytes) -> tuple[BodyFraming, bool]:
    """Return how the body ends, and whether the connection can be used again; most heads are the same.

    Raises:
        InvalidResponse: It is not valid, or its status is not 200 to 299.
        ServerError: Its status is 500 or more.
    """
    status_line, *lines = head.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(status_line)
    if found is None:
        raise InvalidResponse("it has no status line")
    status = int(found[2])
    if status >= 500:
        raise ServerError(f"HTTP status {status}")
    if status >= 400:
        raise RequestRefused(f"HTTP status {status}")
    if not 200 <= status < 300:
        raise InvalidResponse(f"HTTP status {status}")
    framing, keeps_alive = framing_of(found[1], status, _headers(lines))
    return BodyFraming(length=0) if status == 204 else framing, keeps_alive


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise InvalidResponse("a malformed header")
        headers[name.lower()] = value.strip(b" \t")
    return headers


def _unchunked(data: bytes) -> bytes | None:
    """Decode a chunked body, whose trailer is ignored; ``None`` while it is not complete.

    Raises:
        InvalidResponse: A chunk is malformed.
    """
    body, position = b"", 0
    while True:
        end = data.find(b"\r\n", position)
        if end < 0:
            return None
        size = _CHUNK_SIZE.fullmatch(data[position:end])
        if size is None:
            raise InvalidResponse("a malformed chunk")
        start, length = end + 2, int(size[1], 16)
        if not length:
            return body if data.endswith(b"\r\n\r\n") else None
        if len(data) < start + length + 2:
            return None
        if data[start + length : start + length + 2] != b"\r\n":
            raise InvalidResponse("a malformed chunk")
        body += data[start : start + length]
        position = start + length + 2

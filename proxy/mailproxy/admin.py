# SPDX-License-Identifier: Apache-2.0
"""The admin endpoint: ``/metrics``, ``/healthz``, ``/readyz``, ``/config``.

Lives in the supervisor and answers for all workers.  It decides nothing: a
``Source`` knows the facts.  Off the mail path, so plain aiohttp will do; it and
the Prometheus library are imported only where an endpoint is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from aiohttp import web

    from mailproxy.observe.merge import Page

SNAPSHOT_SECONDS: Final = 1.0
"""How long a scrape waits for workers; who does not answer counts with its last snapshot."""
FIRST_REQUEST_SECONDS: Final = 10.0
"""How long a connection may take to ask its first question."""
IDLE_SECONDS: Final = 75.0
"""How long a connection may take for another one (Prometheus asks every 15 to 60 seconds)."""
CONNECTIONS: Final = 64
"""Connections at a time; more are closed at once."""
HEADER_OCTETS: Final = 4096
"""Longest request line, and longest header field."""
CLOSE_SECONDS: Final = 1.0


class Source(Protocol):
    """What the endpoint asks of the supervisor."""

    async def snapshots(self) -> None:
        """Ask every worker for its numbers; cancelled when it takes too long."""
        ...

    def page(self) -> Page:
        """Give the sums as they are known now (``Totals.page``)."""
        ...

    def ready(self) -> bool:
        """Tell whether clients are accepted: not while starting or draining."""
        ...

    def config(self) -> Mapping[str, object]:
        """Give ``hash``, ``generation``, ``loaded_at`` and ``last_error``; nothing secret.

        ``hash`` is that of the configuration which all workers run.
        """
        ...


class Running:
    """An endpoint that answers.

    Attributes:
        address: Where, as bound.
        port: Likewise; of interest when port 0 was asked for.
    """

    def __init__(self, listener: asyncio.Server, server: web.Server) -> None:
        self._listener = listener
        self._server = server
        self.address: str
        self.port: int
        self.address, self.port = listener.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        """Stop answering; an answer that is under way gets a second."""
        self._listener.close()
        self._server.pre_shutdown()
        await self._server.shutdown(CLOSE_SECONDS)


async def serve(address: str, port: int, source: Source) -> Running:
    """Answer on an address.

    Args:
        address: An IPv4 or IPv6 address, brackets or not.  ``::`` takes IPv4
            too, and nothing but IPv4 where the system has no IPv6.
        port: 0 for any.
        source: Who knows the answers.

    Raises:
        OSError: It cannot be bound: in use, not permitted, not ours.
    """
    from aiohttp import web  # noqa: PLC0415 - only who serves pays for it

    from mailproxy.observe import metrics  # noqa: F401, PLC0415 - now, and not while a scrape waits

    answers = _Answers(source)
    server = web.Server(
        answers.answer,
        access_log=None,
        keepalive_timeout=IDLE_SECONDS,
        max_line_size=HEADER_OCTETS,
        max_field_size=HEADER_OCTETS,
        lingering_time=CLOSE_SECONDS,
    )
    bound = _bound_for(address.removeprefix("[").removesuffix("]"), port)
    try:
        door = _Door(server, answers.silent)
        listener = await asyncio.get_running_loop().create_server(door, sock=bound)
    except BaseException:
        bound.close()
        raise
    return Running(listener, server)


class _Answers:
    """What is said to each question.

    Attributes:
        silent: Connections on which nothing has been asked yet.
    """

    def __init__(self, source: Source) -> None:
        self.silent: set[asyncio.BaseProtocol] = set()
        self._source = source
        self._turn = asyncio.Lock()
        self._refreshed = float("-inf")
        self._paths = {
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/config": self._config,
        }

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.silent.discard(request.protocol)
        path = self._paths.get(request.path)
        if path is None:
            return _text(404, "There is nothing here. There is:\n" + "".join(f"{it}\n" for it in self._paths))
        if request.method not in {"GET", "HEAD"}:
            response = _text(405, "Only GET and HEAD.\n")
            response.headers["Allow"] = "GET, HEAD"
            return response
        return await path(request)

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        from mailproxy.observe.metrics import expose  # noqa: PLC0415 - loads the Prometheus library

        await self._refresh()
        headers = request.headers
        shown = expose(self._source.page(), headers.get("Accept", ""), headers.get("Accept-Encoding", ""))
        response = _response(200, shown.body, shown.content_type)
        response.headers["Vary"] = "Accept, Accept-Encoding"
        if shown.encoding:
            response.headers["Content-Encoding"] = shown.encoding
        return response

    async def _refresh(self) -> None:
        """Have numbers that are not older than the question; who waits for the same ones shares them."""
        loop = asyncio.get_running_loop()
        came = loop.time()
        async with self._turn:
            if self._refreshed >= came:
                return
            self._refreshed = loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_SECONDS):
                    await self._source.snapshots()

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return _text(200, "ok\n")

    async def _readiness(self, _: web.BaseRequest) -> web.Response:
        return _text(200, "ready\n") if self._source.ready() else _text(503, "not ready\n")

    async def _config(self, _: web.BaseRequest) -> web.Response:
        body = json.dumps(dict(self._source.config()), indent=2) + "\n"
        return _response(200, body.encode(), "application/json")


def _text(status: int, text: str) -> web.Response:
    return _response(status, text.encode(), "text/plain; charset=utf-8")


def _response(status: int, body: bytes, content_type: str) -> web.Response:
    from aiohttp import web  # noqa: PLC0415

    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "Server": "mailproxy"}
    return web.Response(status=status, body=body, headers=headers)


class _Turned(asyncio.Protocol):
    """Says nothing and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Door:
    """Lets connections in: so many, and only those that ask something soon."""

    def __init__(self, server: web.Server, silent: set[asyncio.BaseProtocol]) -> None:
        self._server = server
        self._silent = silent

    def __call__(self) -> asyncio.Protocol:
        if len(self._server.connections) >= CONNECTIONS:
            return _Turned()
        connection = self._server()
        self._silent.add(connection)
        asyncio.get_running_loop().call_later(FIRST_REQUEST_SECONDS, self._look_after, connection)
        return connection

    def _look_after(self, connection: web.RequestHandler) -> None:
        if connection in self._silent:
            self._silent.discard(connection)
            if connection.transport is not None:
                connection.transport.abort()


def _bound_for(address: str, port: int) -> socket.socket:
    """Bind, with both families on the one address that means both."""
    try:
        return _bound(socket.AF_INET6 if ":" in address else socket.AF_INET, address, port)
    except OSError as error:
        if address != "::" or error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            raise
        return _bound(socket.AF_INET, "0.0.0.0", port)  # noqa: S104 - what was asked for, as far as there is


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound

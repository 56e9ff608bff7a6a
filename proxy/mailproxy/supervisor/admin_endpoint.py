# SPDX-License-Identifier: Apache-2.0
"""The admin endpoint: ``/metrics``, ``/healthz``, ``/readyz``, ``/config``.

Lives in the supervisor and answers for all workers.  It decides nothing: a
``Source`` knows the facts.  The Prometheus library is imported when metrics
are asked for: a start need not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import json
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from mailproxy.http_server import HttpServer, Request, Response

if TYPE_CHECKING:
    from mailproxy.telemetry.aggregate import MetricsPage

SNAPSHOT_SECONDS: Final = 1.0
"""How long a scrape waits for workers; who does not answer counts with its last snapshot."""


class Source(Protocol):
    """What the endpoint asks of the supervisor."""

    async def snapshots(self) -> None:
        """Ask every worker for its numbers; cancelled when it takes too long."""
        ...

    def page(self) -> MetricsPage:
        """Give the sums as they are known now (``Totals.page``)."""
        ...

    def unready(self) -> str:
        """Return why clients are not accepted, or not by all workers; empty where they are."""
        ...

    def config(self) -> Mapping[str, object]:
        """Give ``hash``, ``generation``, ``loaded_at`` and ``last_error``; nothing secret.

        ``hash`` is that of the configuration which all workers run.
        """
        ...


class AdminEndpoint:
    """An endpoint that answers.

    Attributes:
        address: Where, as bound.
        port: Likewise; of interest when port 0 was asked for.
    """

    def __init__(self, server: HttpServer, bound: socket.socket) -> None:
        self._server = server
        self.address: str
        self.port: int
        self.address, self.port = bound.getsockname()[:2]

    async def close(self) -> None:
        """Stop answering; an answer that is under way gets a second."""
        await self._server.close()


async def serve(address: str, port: int, source: Source) -> AdminEndpoint:
    """Answer on an address.

    Args:
        address: An IPv4 or IPv6 address, brackets or not.  ``::`` takes IPv4
            too, and nothing but IPv4 where the system has no IPv6.
        port: 0 for any.
        source: Who knows the answers.

    Raises:
        OSError: It cannot be bound: in use, not permitted, not ours.
    """
    server = HttpServer(_Answers(source).answer)
    bound = _bound_for(address.removeprefix("[").removesuffix("]"), port)
    try:
        await server.listen(bound)
    except BaseException:
        bound.close()
        raise
    return AdminEndpoint(server, bound)


class _Answers:
    """What is answered to each request."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._turn = asyncio.Lock()
        self._refreshed = float("-inf")
        self._paths = {
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/config": self._config,
        }

    async def answer(self, request: Request) -> Response:
        path = self._paths.get(request.path)
        if path is None:
            return _text(404, "There is nothing here. There is:\n" + "".join(f"{it}\n" for it in self._paths))
        if request.method not in {"GET", "HEAD"}:
            return Response(405, b"Only GET and HEAD.\n", headers={"Allow": "GET, HEAD"})
        return await path(request)

    async def _metrics(self, request: Request) -> Response:
        # The first scrape loads the Prometheus library, while probes are answered.
        library = await asyncio.to_thread(importlib.import_module, "mailproxy.telemetry.prometheus")
        await self._refresh()
        headers = request.headers
        shown = library.expose(
            self._source.page(), headers.get("accept", ""), headers.get("accept-encoding", "")
        )
        encoding = {"Content-Encoding": shown.encoding} if shown.encoding else {}
        return Response(200, shown.body, shown.content_type, {"Vary": "Accept, Accept-Encoding", **encoding})

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

    async def _health(self, _: Request) -> Response:
        return _text(200, "ok\n")

    async def _readiness(self, _: Request) -> Response:
        reason = self._source.unready()
        return _text(503, f"not ready: {reason}\n") if reason else _text(200, "ready\n")

    async def _config(self, _: Request) -> Response:
        body = json.dumps(dict(self._source.config()), indent=2) + "\n"
        return Response(200, body.encode(), "application/json")


def _text(status: int, text: str) -> Response:
    return Response(status, text.encode())


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

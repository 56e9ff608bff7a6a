# SPDX-License-Identifier: Apache-2.0
"""The admin endpoint: ``/metrics``, ``/healthz``, ``/readyz``, ``/config``.

It runs in the supervisor and reports the ``Status`` of all processes.  The
Prometheus library is imported at the first request for metrics, so that it
does not delay the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import json
import socket

from mailproxy.http_server import HttpServer, Request, Response
from mailproxy.supervisor.status import SNAPSHOT_SECONDS, Status


class AdminEndpoint:
    """A running admin endpoint.

    Attributes:
        address: Its address.
        port: Its port, also where port 0 was requested.
    """

    def __init__(self, server: HttpServer, bound: socket.socket) -> None:
        self._server = server
        self.address: str
        self.port: int
        self.address, self.port = bound.getsockname()[:2]

    async def close(self) -> None:
        """Stop serving; a response in progress gets one second."""
        await self._server.close()


async def serve(address: str, port: int, status: Status) -> AdminEndpoint:
    """Serve the admin endpoint on an address.

    Args:
        address: An IPv4 or IPv6 address, with or without brackets.  ``::``
            accepts IPv4 too, and only IPv4 where the system has no IPv6.
        port: 0 for any free port.
        status: What to report.

    Raises:
        OSError: bind(2) failed: in use, not permitted, not a local address.
    """
    server = HttpServer(_Handlers(status).handle)
    bound = _bind_dual_stack(address.removeprefix("[").removesuffix("]"), port)
    try:
        await server.listen(bound)
    except BaseException:
        bound.close()
        raise
    return AdminEndpoint(server, bound)


class _Handlers:
    """The response to each request."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._lock = asyncio.Lock()
        self._refreshed_at = float("-inf")
        self._paths = {
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/config": self._config,
        }

    async def handle(self, request: Request) -> Response:
        path = self._paths.get(request.path)
        if path is None:
            return _text(404, "There is nothing here. There is:\n" + "".join(f"{it}\n" for it in self._paths))
        if request.method not in {"GET", "HEAD"}:
            return Response(405, b"Only GET and HEAD.\n", headers={"Allow": "GET, HEAD"})
        return await path(request)

    async def _metrics(self, request: Request) -> Response:
        # The first scrape imports the Prometheus library in a thread, so that probes are still served.
        library = await asyncio.to_thread(importlib.import_module, "mailproxy.telemetry.prometheus")
        await self._refresh()
        headers = request.headers
        shown = library.expose(
            self._status.page(), headers.get("accept", ""), headers.get("accept-encoding", "")
        )
        encoding = {"Content-Encoding": shown.encoding} if shown.encoding else {}
        return Response(200, shown.body, shown.content_type, {"Vary": "Accept, Accept-Encoding", **encoding})

    async def _refresh(self) -> None:
        """Get metrics that are not older than the request; requests that wait at the same time share them."""
        loop = asyncio.get_running_loop()
        requested_at = loop.time()
        async with self._lock:
            if self._refreshed_at >= requested_at:
                return
            self._refreshed_at = loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_SECONDS):
                    await self._status.refresh()

    async def _health(self, _: Request) -> Response:
        return _text(200, "ok\n")

    async def _readiness(self, _: Request) -> Response:
        reason = self._status.unready_reason()
        return _text(503, f"not ready: {reason}\n") if reason else _text(200, "ready\n")

    async def _config(self, _: Request) -> Response:
        body = json.dumps(dict(self._status.config()), indent=2) + "\n"
        return Response(200, body.encode(), "application/json")


def _text(status: int, text: str) -> Response:
    return Response(status, text.encode())


def _bind_dual_stack(address: str, port: int) -> socket.socket:
    """Bind a socket; the address ``::`` accepts both families."""
    try:
        return _bind(socket.AF_INET6 if ":" in address else socket.AF_INET, address, port)
    except OSError as error:
        if address != "::" or error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            raise
        return _bind(socket.AF_INET, "0.0.0.0", port)  # noqa: S104 - what was requested, on a system without IPv6


def _bind(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
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

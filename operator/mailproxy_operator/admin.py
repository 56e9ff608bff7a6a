# SPDX-License-Identifier: Apache-2.0
"""The operator's admin endpoint: ``/metrics``, ``/healthz``, ``/readyz``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self, cast

from aiohttp import web

from mailproxy_operator.http_servers import LOGGER, Connections, listening_socket
from mailproxy_operator.metrics import Metrics

MAX_CONNECTIONS = 64
"""At this limit, a new connection closes the one with the longest idle time, so that probes are answered."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminEndpoint:
    """The endpoint, as an asynchronous context manager.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        metrics: The metrics for ``/metrics``.
        liveness_error: Returns why the operator is stuck; empty when it is not.
        readiness_error: Returns why the operator is not ready; empty when it is, leader or not.

    Attributes:
        connections: The open connections.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Metrics,
        liveness_error: Callable[[], str],
        readiness_error: Callable[[], str],
    ) -> None:
        self._host = host
        self.port = port
        self._shown = metrics
        self._liveness_error = liveness_error
        self._readiness_error = readiness_error
        self.connections = Connections(MAX_CONNECTIONS)
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._track_use])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, logger=LOGGER, shutdown_timeout=1)
        await self._runner.setup()
        handler = cast(web.Server, self._runner.server)  # not None after runner.setup()
        # A kubelet may probe over IPv4 or IPv6: "::" accepts both here, unlike in asyncio.
        opened = listening_socket(self._host.strip("[]"), self.port, self.connections)
        self.port = int(opened.getsockname()[1])
        self._server = await asyncio.get_running_loop().create_server(
            lambda: self.connections.admit(handler()), sock=opened
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _track_use(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self.connections.busy(request.protocol):
            return await handler(request)

    async def _metrics(self, _: web.Request) -> web.Response:
        text, content_type = self._shown.exposition()
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def _healthz(self, _: web.Request) -> web.Response:
        error = self._liveness_error()
        return web.Response(status=503 if error else 200, text=f"{error or 'ok'}\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._readiness_error()
        text = f"not ready: {reason}\n" if reason else "ready\n"
        return web.Response(status=503 if reason else 200, text=text)

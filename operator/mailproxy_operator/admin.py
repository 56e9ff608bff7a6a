# SPDX-License-Identifier: Apache-2.0
"""The operator's admin endpoint: ``/metrics``, ``/healthz``, ``/readyz``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from aiohttp import web

from mailproxy_operator.http_log import LOGGER
from mailproxy_operator.meters import Meters


class AdminEndpoint:
    """The endpoint, for as long as the context lasts.

    Args:
        host: Where to listen.
        port: Where to listen; 0 for a free one.
        meters: What ``/metrics`` shows.
        trouble: Tells why the operator is stuck; nothing when it is not.
        unready: Says why it is not ready; nothing when it works, or stands by for the one that does.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        meters: Meters,
        trouble: Callable[[], str],
        unready: Callable[[], str],
    ) -> None:
        self._host = host
        self.port = port
        self._meters = meters
        self._trouble = trouble
        self._unready = unready
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, logger=LOGGER, shutdown_timeout=1)
        await self._runner.setup()
        host = self._host.strip("[]")
        # asyncio makes "::" IPv6 alone, and a kubelet may ask over IPv4; without a host it takes both.
        await web.TCPSite(self._runner, None if host in ("", "::") else host, self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        text, content_type = self._meters.exposition()
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def _healthz(self, _: web.Request) -> web.Response:
        trouble = self._trouble()
        return web.Response(status=503 if trouble else 200, text=f"{trouble or 'ok'}\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._unready()
        text = f"not ready: {reason}\n" if reason else "ready\n"
        return web.Response(status=503 if reason else 200, text=text)

# SPDX-License-Identifier: Apache-2.0
"""The HTTPS server of the webhook: any client can connect to its port, so everything has a limit.

A request body is read first, with separate limits.  The semaphore limits only the
decisions, so a client that sends slowly does not delay others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any, cast

import kopf
from aiohttp import web

from mailproxy_operator.http_servers import HANDSHAKE_SECONDS, LOGGER, Connections, listening_socket

READ_SECONDS = 3.0
"""Timeout for a complete body; an API server sends it together with the request."""
MAX_REVIEW_BYTES = 3 * 1024 * 1024
MAX_READ_AT_ONCE = 32
"""Maximum of concurrent reads of bodies; at the limit, a new one cancels the oldest."""
MAX_CONNECTIONS = 256
"""At this limit, a new connection closes the one with the longest idle time."""
MAX_AT_ONCE = 16
"""Maximum of concurrent decisions."""
MAX_WAITING = 64
"""Maximum of reviews that wait for a decision; the response to any further one is 503."""
LINGER_SECONDS = 1.0

_log = logging.getLogger(__name__)


class ReviewServer:
    """Serves AdmissionReviews over TLS, with the interface of a kopf webhook server.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        context: The TLS context; its certificate may be replaced while the server runs.

    Attributes:
        port: The port that it listens on.
        is_listening: Whether it accepts connections.

    Raises:
        OSError: The address cannot be bound.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host = host.strip("[]")
        self._connections = Connections(MAX_CONNECTIONS)
        self._socket = listening_socket(self._host, port, self._connections)
        self.port = int(self._socket.getsockname()[1])
        self._context = context
        self._gate = asyncio.Semaphore(MAX_AT_ONCE)
        self._waiting = 0
        self._reading: dict[asyncio.Timeout, None] = {}
        self.is_listening = False

    async def __call__(self, reviewed: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        """Serve until the iterator is closed.

        Args:
            reviewed: Returns the response to a review.
        """

        async def answer(request: web.Request) -> web.Response:
            return await self._answer(request, reviewed)

        if self._socket.fileno() < 0:  # closed by the previous run of kopf
            self._socket = listening_socket(self._host, self.port, self._connections)
        app = web.Application(client_max_size=MAX_REVIEW_BYTES)
        app.router.add_post("/{id}", answer)
        runner = web.AppRunner(
            app, access_log=None, logger=LOGGER, shutdown_timeout=1, lingering_time=LINGER_SECONDS
        )
        await runner.setup()
        try:
            server = await self._serving(runner)
            try:
                self.is_listening = True
                yield {"url": f"https://localhost:{self.port}"}
                await asyncio.Event().wait()
            finally:
                self.is_listening = False
                server.close()
        finally:
            await runner.cleanup()

    async def _serving(self, runner: web.AppRunner) -> asyncio.Server:
        """Accept connections; the sites of aiohttp do not limit their number or the handshake time."""
        handler = cast(web.Server, runner.server)  # not None after runner.setup()

        def accepted() -> asyncio.Protocol:
            return self._connections.admit(handler())

        loop = asyncio.get_running_loop()
        return await loop.create_server(
            accepted, sock=self._socket, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
        )

    async def _answer(self, request: web.Request, reviewed: kopf.WebhookFn) -> web.Response:
        try:
            review = _located(json.loads(await self._body(request)))
            if self._waiting >= MAX_WAITING:
                return _closing(503, "too many reviews at once\n")
            return web.json_response(await self._decided(request, review, reviewed))
        except web.HTTPException:
            raise
        except TimeoutError:
            return _closing(408, "the body did not come in time\n")
        except Exception as error:  # clients can send anything, and kopf then raises various exceptions
            _log.warning("a request that is not an AdmissionReview for us: %s", type(error).__name__)
            return web.Response(status=400, text="not an AdmissionReview for this webhook\n")

    async def _body(self, request: web.Request) -> bytes:
        """Read the body of a request.

        Raises:
            TimeoutError: ``READ_SECONDS`` have passed, or it was the oldest read at the limit.
        """
        if len(self._reading) >= MAX_READ_AT_ONCE:
            slowest = next(iter(self._reading))
            del self._reading[slowest]
            slowest.reschedule(asyncio.get_running_loop().time())
        async with asyncio.timeout(READ_SECONDS) as limit:
            self._reading[limit] = None
            try:
                return await request.read()
            finally:
                self._reading.pop(limit, None)

    async def _decided(self, request: web.Request, review: Any, reviewed: kopf.WebhookFn) -> Any:  # noqa: ANN401  JSON
        self._waiting += 1
        try:
            with self._connections.busy(request.protocol):
                async with self._gate:
                    return await reviewed(review, webhook=request.match_info["id"])
        finally:
            self._waiting -= 1


def _closing(status: int, text: str) -> web.Response:
    answer = web.Response(status=status, text=text)
    answer.force_close()
    return answer


def _located(review: Any) -> Any:  # noqa: ANN401  JSON from anybody
    """Set the namespace in the object of a review: kopf passes only the object to the handler."""
    asked = review["request"]
    if asked.get("object"):
        asked["object"]["metadata"].setdefault("namespace", asked.get("namespace", ""))
    return review

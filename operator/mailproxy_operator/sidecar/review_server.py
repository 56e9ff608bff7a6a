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
MAX_CONCURRENT_READS = 32
"""Maximum of concurrent reads of bodies; at the limit, a new one cancels the oldest."""
MAX_CONNECTIONS = 256
"""At this limit, a new connection closes the one with the longest idle time."""
MAX_CONCURRENT_REVIEWS = 16
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
        connections: The open connections.
        waiting: The number of reviews that are being decided or wait for a decision.

    Raises:
        OSError: The address cannot be bound.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host = host.strip("[]")
        self.connections = Connections(MAX_CONNECTIONS)
        self._socket = listening_socket(self._host, port, self.connections)
        self.port = int(self._socket.getsockname()[1])
        self._context = context
        self._reviews = asyncio.Semaphore(MAX_CONCURRENT_REVIEWS)
        self.waiting = 0
        self._reading: dict[asyncio.Timeout, None] = {}
        self.is_listening = False

    @property
    def reading(self) -> int:
        """The number of request bodies that are being read."""
        return len(self._reading)

    async def __call__(self, handler: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        """Serve until the iterator is closed.

        Args:
            handler: Returns the response to a review.
        """

        async def answer(request: web.Request) -> web.Response:
            return await self._handle(request, handler)

        if self._socket.fileno() < 0:  # closed by the previous run of kopf
            self._socket = listening_socket(self._host, self.port, self.connections)
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
        new_handler = cast(web.Server, runner.server)  # not None after runner.setup()

        def new_protocol() -> asyncio.Protocol:
            return self.connections.admit(new_handler())

        loop = asyncio.get_running_loop()
        return await loop.create_server(
            new_protocol, sock=self._socket, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
        )

    async def _handle(self, request: web.Request, handler: kopf.WebhookFn) -> web.Response:
        try:
            review = _with_namespace(json.loads(await self._body(request)))
            if self.waiting >= MAX_WAITING:
                return _closing_response(503, "too many reviews at once\n")
            return web.json_response(await self._review(request, review, handler))
        except web.HTTPException:
            raise
        except TimeoutError:
            return _closing_response(408, "the body was not received in time\n")
        except Exception as error:  # clients can send anything, and kopf then raises various exceptions
            _log.warning("not an AdmissionReview for this webhook: %s", type(error).__name__)
            return web.Response(status=400, text="not an AdmissionReview for this webhook\n")

    async def _body(self, request: web.Request) -> bytes:
        """Read the body of a request.

        Raises:
            TimeoutError: ``READ_SECONDS`` have passed, or it was the oldest read at the limit.
        """
        if len(self._reading) >= MAX_CONCURRENT_READS:
            slowest = next(iter(self._reading))
            del self._reading[slowest]
            slowest.reschedule(asyncio.get_running_loop().time())
        async with asyncio.timeout(READ_SECONDS) as limit:
            self._reading[limit] = None
            try:
                return await request.read()
            finally:
                self._reading.pop(limit, None)

    async def _review(self, request: web.Request, review: Any, handler: kopf.WebhookFn) -> Any:  # noqa: ANN401  JSON
        self.waiting += 1
        try:
            with self.connections.busy(request.protocol):
                async with self._reviews:
                    return await handler(review, webhook=request.match_info["id"])
        finally:
            self.waiting -= 1


def _closing_response(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=text)
    response.force_close()
    return response


def _with_namespace(review: Any) -> Any:  # noqa: ANN401  JSON from anybody
    """Set the namespace in the object of a review: kopf passes only the object to the handler."""
    request = review["request"]
    if request.get("object"):
        request["object"]["metadata"].setdefault("namespace", request.get("namespace", ""))
    return review

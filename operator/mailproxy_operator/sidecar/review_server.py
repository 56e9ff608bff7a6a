# SPDX-License-Identifier: Apache-2.0
"""The HTTPS server of the webhook: whoever reaches its port can connect, so everything has a limit.

A body is read first, under limits of its own; only the decision takes one of
the few places at the gate.  So a client that sends slowly delays nobody else.
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

from mailproxy_operator.http_connections import HANDSHAKE_SECONDS, Connections, listening_socket
from mailproxy_operator.http_log import LOGGER

READ_SECONDS = 3.0
"""For a whole body; an API server sends it with its request."""
MAX_REVIEW_BYTES = 3 * 1024 * 1024
MAX_READ_AT_ONCE = 32
"""Bodies; one more ends the one that has been read longest."""
MAX_CONNECTIONS = 256
"""One more closes the one that has been idle longest."""
MAX_AT_ONCE = 16
"""Decisions."""
MAX_WAITING = 64
"""Reviews that have been read and wait for a decision; one more is answered with 503."""
LINGER_SECONDS = 1.0

_log = logging.getLogger(__name__)


class ReviewServer:
    """Answers AdmissionReviews over TLS, in the way that kopf wants its servers.

    Args:
        host: Where to listen.
        port: Where to listen; 0 for a free one.
        context: Whose certificate may be replaced meanwhile.

    Attributes:
        port: Where it listens.
        is_listening: Whether it answers.

    Raises:
        OSError: It cannot listen there.
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
        """Serve for as long as it is iterated over.

        Args:
            reviewed: Makes an answer of a review.
        """

        async def answer(request: web.Request) -> web.Response:
            return await self._answer(request, reviewed)

        if self._socket.fileno() < 0:  # it was closed when kopf ended, and kopf has begun again
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
        """Accept connections; aiohttp's own sites limit neither their number nor the handshakes' time."""
        handler = cast(web.Server, runner.server)  # there, once the runner is set up

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
        except Exception as error:  # whoever can connect may send anything; kopf fails in many ways at that
            _log.warning("a request that is not an AdmissionReview for us: %s", type(error).__name__)
            return web.Response(status=400, text="not an AdmissionReview for this webhook\n")

    async def _body(self, request: web.Request) -> bytes:
        """Read a body.

        Raises:
            TimeoutError: It took too long, or others wait that began later.
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
    """Write into the object in which namespace it will be: kopf hands on the object only."""
    asked = review["request"]
    if asked.get("object"):
        asked["object"]["metadata"].setdefault("namespace", asked.get("namespace", ""))
    return review

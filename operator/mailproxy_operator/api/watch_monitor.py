# SPDX-License-Identifier: Apache-2.0
"""The HTTP session of kopf, and a check for stalled watches.

kopf restarts a watch when it ends.  Two failures are not detected by kopf: a watch that is not
restarted any more (kopf#1276), and a watch that is restarted only after an hour because a response
requested that delay.  No error is raised, and no events arrive.  ``stalled`` reports such a watch,
and the process ends.

The requests are observed with the trace hooks of aiohttp.  A watch sends a request at least every
``SERVER_SECONDS``, because that is the requested timeout of a watch in the API server.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from types import SimpleNamespace
from typing import Any, Protocol

import aiohttp
import kopf
from yarl import URL

from mailproxy_operator.api.api_errors import code_class
from mailproxy_operator.api.api_tls import RENEW_SECONDS, ApiServerContext, describe_error, files_fingerprint
from mailproxy_operator.api.kinds import Kind

SERVER_SECONDS = 300.0
"""The timeout after which the API server ends a watch."""
INACTIVE_SECONDS = 90.0
"""kopf ends a watch without data after this time; API servers send a bookmark every 60 to 75 seconds."""
STALLED_SECONDS = SERVER_SECONDS + 2 * INACTIVE_SECONDS
"""Longer than any delay of kopf between two requests of a watch."""

EXPIRED, CLOSED, FAILED, INACTIVE = "expired", "closed", "error", "inactive"
GONE, UNAUTHORIZED = 410, 401
CREDENTIALS = "the API server does not accept the operator's credentials"

_log = logging.getLogger(__name__)

Login = Callable[..., kopf.ConnectionInfo | None]


class Recorder(Protocol):
    """Counts requests and watches."""

    def requested(self, verb: str, code: str, seconds: float) -> None:
        """Count a request that got a response or failed."""

    def watch_restarted(self, reason: str) -> None:
        """Count a restart of a watch: ``expired``, ``closed``, ``error`` or ``inactive``."""


def from_environment(**kwargs: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  kopf's own keywords
    """Log in with the service account in a pod, with the kubeconfig elsewhere."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


class _Response(aiohttp.ClientResponse):
    """A response whose lines end with a connection error when its session is closed."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:  # noqa: ANN401  aiohttp's own
        await super().start(connection)
        self.content = ResponseContent(self.content)  # type: ignore[assignment]
        return self


class ResponseContent:
    """The body of a response.

    kopf closes the session of refused credentials under the watches that still read from it.  aiohttp
    then raises RuntimeError if nothing was reading at that moment, and kopf would end.
    """

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  as the body has it
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield the bytes as they come.

        Raises:
            aiohttp.ClientConnectionError: The connection was closed.
        """
        try:
            async for data in self._content.iter_chunked(size):
                yield data
        except RuntimeError as error:
            raise aiohttp.ClientConnectionError(str(error)) from error


class WatchMonitor:
    """Observes the requests of kopf.

    Args:
        recorder: Counts requests and restarts of watches.
        login: Reads address and credentials.
        listed_again: Called with a kind whose watch restarts with a list.

    Attributes:
        last_error: Why the API server is unreachable or refuses the credentials; empty otherwise.
    """

    def __init__(
        self, recorder: Recorder, login: Login, *, listed_again: Callable[[Kind], None] = lambda _: None
    ) -> None:
        self.last_error = ""
        self._recorder = recorder
        self._login = login
        self._listed_again = listed_again
        self._kinds: dict[str, Kind] = {}
        self._requested_at: dict[str, float] = {}
        self._watched_since: dict[str, float] = {}
        self._started_watches: set[str] = set()
        self._keywords: dict[str, Any] = {}
        self._connection_info: kopf.ConnectionInfo | None = None
        self._read_at = -RENEW_SECONDS

    def set_watches(self, kinds: Iterable[Kind], namespaces: tuple[str, ...]) -> None:
        """Set the kinds and namespaces that kopf will watch."""
        self._kinds = {kind.path(one or None): kind for kind in kinds for one in namespaces or ("",)}
        self._requested_at = dict.fromkeys(self._kinds, _now())

    def is_synced(self) -> bool:
        """Return whether every watch has started: then kopf has read every list."""
        return bool(self._kinds) and self._started_watches >= self._kinds.keys()

    def stalled(self) -> str:
        """Return which watch has sent no request for ``STALLED_SECONDS``; empty if there is none."""
        now = _now()
        for path, at in self._requested_at.items():
            if now - at > STALLED_SECONDS:
                return f"the watch of {path} has sent no request for {now - at:.0f} seconds"
        return ""

    async def session(self, **kwargs: Any) -> kopf.AiohttpSession:  # noqa: ANN401  kopf's own keywords
        """Log in: read the credentials, and open a session with them.

        kopf calls this at start and whenever the API server has refused the credentials.  kopf would end
        if the refused credentials were returned; credentials with a new session count as new, so it retries.
        """
        self._keywords = kwargs
        while True:
            if self._read_at >= 0:
                _log.warning("watching: %s; they may have expired", CREDENTIALS)
                await asyncio.sleep(max(0.0, self._read_at + RENEW_SECONDS - _now()))
            self._read_at = _now()
            try:
                found = self._login(**kwargs)
            except Exception as error:  # the login may raise any exception: the file may be incomplete
                _log.warning("watching: no credentials: %s", type(error).__name__)
                continue
            if found is not None:
                self._connection_info = found
                return self._open(found)
            self.last_error = "there are no credentials for the API server"

    def _open(self, info: kopf.ConnectionInfo) -> kopf.AiohttpSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._on_request_start)
        trace.on_request_end.append(self._on_response)
        trace.on_request_exception.append(self._on_request_error)
        context = ApiServerContext(self._new_context, lambda: _tls_fingerprint(self._connection_info or info))
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers=info.as_http_headers(),
            proxy=info.proxy_url,
            trust_env=info.trust_env,
            trace_configs=[trace],
            response_class=_Response,
        )
        return kopf.AiohttpSession(
            server=info.server,
            default_namespace=info.default_namespace,
            expiration=info.expiration,
            aiohttp_session=session,
        )

    def _new_context(self) -> ssl.SSLContext:
        if self._connection_info is None:
            raise OSError(self.last_error)
        return self._connection_info.as_ssl_context()

    # -- trace hooks ----------------------------------------------------------

    async def _on_request_start(self, _: object, context: SimpleNamespace, request: Any) -> None:  # noqa: ANN401  aiohttp's own
        context.started_at = _now()
        context.verb = self._verb(request.url)
        path = request.url.path
        if path not in self._kinds:
            return
        self._requested_at[path] = context.started_at
        since = self._watched_since.pop(path, None)
        if since is not None:
            reason = EXPIRED if context.verb == "list" else _end_reason(context.started_at - since)
            self._recorder.watch_restarted(reason)
        if context.verb == "watch":
            self._watched_since[path] = context.started_at
            self._started_watches.add(path)
        elif path in self._started_watches:
            self._listed_again(self._kinds[path])

    async def _on_response(self, _: object, context: SimpleNamespace, request: Any) -> None:  # noqa: ANN401  aiohttp's own
        status = int(request.response.status)
        self._recorder.requested(context.verb, code_class(status), _now() - context.started_at)
        if status < 400 or status == UNAUTHORIZED:
            self.last_error = "" if status < 400 else CREDENTIALS
        if context.verb == "watch" and status >= 400:
            self._count_restart(request.url, EXPIRED if status == GONE else FAILED)

    async def _on_request_error(self, _: object, context: SimpleNamespace, request: Any) -> None:  # noqa: ANN401  aiohttp's own
        waited, error = _now() - context.started_at, request.exception
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            self._on_certificate_error(describe_error(error))
        if isinstance(error, asyncio.CancelledError) and waited < INACTIVE_SECONDS * 0.9:
            return  # kopf is ending
        self._recorder.requested(context.verb, "error", waited)
        if context.verb == "watch":
            self._count_restart(
                request.url, INACTIVE if isinstance(error, asyncio.CancelledError) else FAILED
            )

    def _count_restart(self, url: URL, reason: str) -> None:
        """Count a watch that did not start; the next request does not count it again."""
        self._recorder.watch_restarted(reason)
        self._watched_since.pop(url.path, None)

    def _on_certificate_error(self, last_error: str) -> None:
        """Log the error and read the kubeconfig again: its CA may have changed."""
        self.last_error = last_error
        if _now() - self._read_at < RENEW_SECONDS:
            return
        self._read_at = _now()
        _log.warning("watching: %s", last_error)
        try:
            self._connection_info = self._login(**self._keywords) or self._connection_info
        except Exception as error:  # the login may raise any exception: the session keeps its credentials
            _log.warning("watching: no other credentials: %s", type(error).__name__)

    def _verb(self, url: URL) -> str:
        if "watch" in url.query:
            return "watch"
        return "list" if url.path in self._kinds else "get"


def _end_reason(seconds: float) -> str:
    """Return why a watch ended without an error: ended by kopf or by the API server."""
    return INACTIVE if INACTIVE_SECONDS <= seconds < SERVER_SECONDS - 1 else CLOSED


def _tls_fingerprint(info: kopf.ConnectionInfo) -> object:
    files = files_fingerprint(info.ca_path, info.certificate_path, info.private_key_path)
    return files, info.ca_data, info.certificate_data, info.private_key_data, info.insecure


def _now() -> float:
    return asyncio.get_running_loop().time()

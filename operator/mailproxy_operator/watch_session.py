# SPDX-License-Identifier: Apache-2.0
"""The HTTP session through which kopf watches: it counts, and tells why a watch had to begin anew."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol, Self, cast

import aiohttp
import kopf
from yarl import URL

from mailproxy_operator.answers import code_class
from mailproxy_operator.api_tls import RENEW_SECONDS, ApiServerContext, described, files_mark
from mailproxy_operator.kinds import MAIL_PROXY, OWNED, POD, Kind
from mailproxy_operator.listing import Page

EXPIRED, CLOSED, FAILED, INACTIVE = "expired", "closed", "error", "inactive"
GONE = 410
UNAUTHORIZED = 401

_PLURALS = frozenset(kind.plural for kind in (*OWNED, MAIL_PROXY, POD))
_ERROR = re.compile(rb'(?:^|\n)\{"type": ?"ERROR".*?(?:"code": ?(\d+)[^\n]*)?(?:\n|$)')


_log = logging.getLogger(__name__)


class Told(Protocol):
    """Who is told what happens."""

    def requested(self, verb: str, code: str, seconds: float) -> None:
        """A request was answered, or was not."""

    def watch_restarted(self, reason: str) -> None:
        """A watch has to begin anew: ``expired``, ``closed``, ``error`` or ``inactive``."""


Listed = Callable[[Page], None]
"""Given what a watch lists."""


@dataclass(frozen=True, kw_only=True)
class Connected(kopf.AiohttpSession):
    """A session that is the same as another one if its credentials are.

    kopf compares them to see whether those that were refused came once more.
    """

    aiohttp_session: aiohttp.ClientSession = field(compare=False)
    known: kopf.ConnectionInfo = field(repr=False)


class WatchSession:
    """All that one run of kopf asks the API server.

    Args:
        told: Who is told about requests and watches.
        patience: Seconds without a sign of life after which kopf gives a watch up.
        let_in: Called with why the API server is not reached or does not accept the credentials, and with
            an empty text when it does.
        again: Reads address and credentials again.
        listed: Given what a watch lists when it begins, or begins anew: page by page.
    """

    def __init__(
        self,
        told: Told,
        *,
        patience: float,
        let_in: Callable[[str], None] = lambda _: None,
        again: Callable[[], kopf.ConnectionInfo | None] = lambda: None,
        listed: Listed | None = None,
    ) -> None:
        self._told = told
        self._let_in = let_in
        self._again = again
        self._listed = listed
        self._read_at = -RENEW_SECONDS
        self._patience = patience
        self._opened: list[aiohttp.ClientSession] = []
        self._signs: dict[str, float] = {}

    def connected(self, known: kopf.ConnectionInfo) -> Connected:
        """Open a session with these credentials; it is closed with the run at the latest."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._started)
        trace.on_request_end.append(self._answered)
        trace.on_request_exception.append(self._unanswered)
        self._known = known
        context = ApiServerContext(self._new_context, lambda: _tls_mark(self._known))
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers=known.as_http_headers(),
            proxy=known.proxy_url,
            trust_env=known.trust_env,
            trace_configs=[trace],
            response_class=self._response_class(),
        )
        self._opened = [*(one for one in self._opened if not one.closed), session]
        return Connected(
            server=known.server,
            default_namespace=known.default_namespace,
            expiration=known.expiration,
            aiohttp_session=session,
            known=known,
        )

    def _new_context(self) -> ssl.SSLContext:
        return self._known.as_ssl_context()

    async def close(self) -> None:
        """Close whatever kopf has not."""
        for session in self._opened:
            await session.close()

    def silent_for(self) -> float:
        """Tell for how many seconds nothing was heard of the watch that has been silent longest, if any."""
        now = asyncio.get_running_loop().time()
        return now - min(self._signs.values(), default=now)

    # -- what happens ---------------------------------------------------------

    async def _started(self, _: object, context: SimpleNamespace, request: Any) -> None:  # noqa: ANN401  aiohttp's own
        context.begun = asyncio.get_running_loop().time()
        context.verb = _verb(request.url)
        self._sign(request.url)

    async def _answered(self, _: object, context: SimpleNamespace, request: Any) -> None:  # noqa: ANN401  aiohttp's own
        status = int(request.response.status)
        self._told.requested(context.verb, code_class(status), self._since(context.begun))
        self._sign(request.url)
        if status < 400 or status == UNAUTHORIZED:
            self._let_in("" if status < 400 else "the API server does not accept our credentials")
        if context.verb == "watch" and status >= 400:
            self._told.watch_restarted(EXPIRED if status == GONE else FAILED)

    async def _unanswered(self, _: object, context: SimpleNamespace, request: Any) -> None:  # noqa: ANN401  aiohttp's own
        waited = self._since(context.begun)
        reason = _why(request.exception, waited, self._patience)
        if isinstance(request.exception, aiohttp.ClientConnectorCertificateError):
            self._not_accepted(described(request.exception))
        if reason:
            self._told.requested(context.verb, "error", waited)
        if reason and context.verb == "watch":
            self._told.watch_restarted(reason)

    def _not_accepted(self, trouble: str) -> None:
        """Report why, and see whether the kubeconfig names another authority by now."""
        self._let_in(trouble)
        now = asyncio.get_running_loop().time()
        if now - self._read_at < RENEW_SECONDS:
            return
        self._read_at = now
        _log.warning("watching: %s", trouble)
        try:
            self._known = self._again() or self._known
        except Exception as error:  # whatever the login raises: this one goes on with what it has
            _log.warning("watching: no other credentials: %s", type(error).__name__)

    def _since(self, begun: float) -> float:
        return asyncio.get_running_loop().time() - begun

    def _sign(self, url: URL) -> None:
        if url.path.rpartition("/")[2] in _PLURALS:
            self._signs[url.path] = asyncio.get_running_loop().time()

    def _response_class(self) -> type[aiohttp.ClientResponse]:
        owner = self

        class Response(aiohttp.ClientResponse):
            """A response whose content is looked at on its way to kopf, if it is a watch's."""

            async def start(self, connection: Any) -> Self:  # noqa: ANN401  aiohttp's own
                await super().start(connection)
                if _verb(self.url) == "watch" and self.status < 400:
                    self.content = cast(Any, _Content(self.content, owner.stream(self.url)))
                return self

            async def json(self, **more: Any) -> Any:  # noqa: ANN401  aiohttp's own
                body = await super().json(**more)
                if _verb(self.url) == "list" and self.status < 400 and isinstance(body, dict):
                    owner.page(self.url, body)
                return body

        return Response

    def page(self, url: URL, body: dict[str, Any]) -> None:
        """Hand on what is listed: whatever changed while nobody watched is found in it."""
        kind, namespace = _listed_kind(url)
        if self._listed is not None and kind is not None:
            self._listed(
                Page(
                    kind,
                    namespace,
                    list(body.get("items") or []),
                    is_first="continue" not in url.query,
                    is_last=not (body.get("metadata") or {}).get("continue"),
                )
            )

    def stream(self, url: URL) -> _Stream:
        """Begin to look at a watch."""
        return _Stream(lambda: self._sign(url), self._told.watch_restarted, self._patience)


class _Stream:
    """What is known about one watch."""

    def __init__(self, sign: Callable[[], None], ended: Callable[[str], None], patience: float) -> None:
        self._sign = sign
        self._ended = ended
        self._patience = patience
        self._is_over = False
        self._heard = asyncio.get_running_loop().time()

    def heard(self, chunk: bytes) -> None:
        """Note that something came."""
        self._sign()
        self._heard = asyncio.get_running_loop().time()
        if found := _ERROR.search(chunk):
            self.over(EXPIRED if found[1] and int(found[1]) == GONE else FAILED)

    def broken(self, error: BaseException) -> None:
        """Note that it was broken off."""
        self.over(_why(error, asyncio.get_running_loop().time() - self._heard, self._patience))

    def over(self, reason: str) -> None:
        """Tell that it is over, once."""
        if reason and not self._is_over:
            self._ended(reason)
            self._is_over = True


class _Content:
    """The content of a response: aiohttp's, with an eye on what is read piece by piece."""

    def __init__(self, content: aiohttp.StreamReader, stream: _Stream) -> None:
        self._content = content
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever it is there
        return getattr(self._content, name)

    def iter_chunked(self, size: int) -> _Chunks:
        return _Chunks(self._content.iter_chunked(size), self._stream)


class _Chunks:
    """Pieces of a content."""

    def __init__(self, chunks: Any, stream: _Stream) -> None:  # noqa: ANN401  aiohttp's iterator
        self._chunks = chunks
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await anext(self._chunks)
        except StopAsyncIteration:
            self._stream.over(CLOSED)
            raise
        except BaseException as error:
            self._stream.broken(error)
            raise
        self._stream.heard(chunk)
        return chunk


def _tls_mark(known: kopf.ConnectionInfo) -> object:
    files = files_mark(known.ca_path, known.certificate_path, known.private_key_path)
    return files, known.ca_data, known.certificate_data, known.private_key_data, known.insecure


def _listed_kind(url: URL) -> tuple[Kind | None, str]:
    """Name what a list is of, and the namespace; none where it is of all of them."""
    _, _, rest = url.path.partition("/namespaces/")
    namespace = rest.partition("/")[0]
    found = (kind for kind in (*OWNED, MAIL_PROXY, POD) if kind.path(namespace or None) == url.path)
    return next(found, None), namespace


def _verb(url: URL) -> str:
    if "watch" in url.query:
        return "watch"
    return "list" if url.path.rpartition("/")[2] in _PLURALS else "get"


def _why(error: BaseException, waited: float, patience: float) -> str:
    """Tell why a request was broken off; nothing where we are told to stop."""
    if not isinstance(error, asyncio.CancelledError):
        return FAILED
    return INACTIVE if waited >= patience * 0.9 else ""

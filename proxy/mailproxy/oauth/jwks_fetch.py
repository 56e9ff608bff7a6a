# SPDX-License-Identifier: Apache-2.0
"""One request for the keys of an issuer, in a thread, with the HTTP client of the standard library.

Redirects are not followed, the response has a maximum size, and a total timeout includes the time of a
server that sends single bytes.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTP_PORT, HTTPS_PORT
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from mailproxy.enums import JwksResult
from mailproxy.oauth.issuer_keys import MAX_JWKS, InvalidJwks, IssuerKey, parse_jwks
from mailproxy.tls.client import describe_tls_error

FETCH_SECONDS: Final = 10.0
"""Time for one request, from the name lookup to the last byte."""
STEP_SECONDS: Final = 5.0
"""Time for a connection, and for each piece of the response."""


class JwksFetchFailed(Exception):
    """The keys could not be fetched.

    Attributes:
        result: The label of the metric.
    """

    def __init__(self, result: JwksResult, message: str) -> None:
        super().__init__(message)
        self.result = result


Keys = dict[str, IssuerKey]
OnDone = Callable[[Keys | JwksFetchFailed], object]
MakeTls = Callable[[], ssl.SSLContext]


class JwksFetch:
    """One request for the keys of an issuer.

    Args:
        loop: Calls ``on_done``.
        uri: The URL of the key set.
        make_tls: For ``https`` URLs; called in the thread, since it reads the files of authorities.
        on_done: Called once with the keys or the failure, unless ``cancel`` was called.
        seconds: The total timeout.
    """

    __slots__ = ("_connection", "_loop", "_make_tls", "_on_done", "_seconds", "_timeout", "_uri", "thread")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        uri: str,
        make_tls: MakeTls | None,
        on_done: OnDone,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        self._loop = loop
        self._uri = uri
        self._make_tls = make_tls
        self._on_done: OnDone | None = on_done
        self._seconds = seconds
        self._connection: http.client.HTTPConnection | None = None
        self._timeout: asyncio.TimerHandle | None = None
        # Not of the executor's threads: a name lookup that hangs must not delay other lookups or the exit.
        self.thread = threading.Thread(target=self._run, name="jwks", daemon=True)

    def start(self) -> None:
        """Start the request."""
        self._timeout = self._loop.call_later(self._seconds, self._on_timeout)
        self.thread.start()

    def cancel(self) -> None:
        """End the request without a result."""
        self._on_done = None
        self._disarm()
        self._abort()

    # -- on the event loop

    def _on_timeout(self) -> None:
        self._abort()
        message = f"no complete response within {self._seconds:g} seconds"
        self._finish(JwksFetchFailed(JwksResult.TIMEOUT, message))

    def _finish(self, result: Keys | JwksFetchFailed) -> None:
        callback, self._on_done = self._on_done, None
        self._disarm()
        if callback is not None:
            callback(result)

    def _disarm(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _abort(self) -> None:
        """Wake up a thread that waits for the server."""
        connection = self._connection
        sock = None if connection is None else connection.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    # -- in the thread

    def _run(self) -> None:
        result: Keys | JwksFetchFailed
        try:
            result = parse_jwks(self._response())
        except JwksFetchFailed as failed:
            result = failed
        except InvalidJwks as invalid:
            kind = JwksResult.EMPTY if invalid.is_empty else JwksResult.INVALID
            result = JwksFetchFailed(kind, str(invalid))
        except Exception as error:
            result = _failure(error)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._finish, result)

    def _response(self) -> bytes:
        parts = urlsplit(self._uri)
        host = parts.hostname or ""
        connection: http.client.HTTPConnection
        if self._make_tls is None:
            connection = http.client.HTTPConnection(host, parts.port, timeout=STEP_SECONDS)
        else:
            connection = _https_connection(host, parts.port or HTTPS_PORT, self._make_tls())
        self._connection = connection
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Accept": "application/json", "User-Agent": "mailproxy", "Connection": "close"}
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                return _body(response)
        finally:
            connection.close()


def _https_connection(host: str, port: int, tls: ssl.SSLContext) -> http.client.HTTPSConnection:
    """Return a connection to a host, through the proxy of ``https_proxy`` where ``no_proxy`` allows it."""
    proxy = getproxies_environment().get("https")
    if not proxy or proxy_bypass(f"{host}:{port}"):
        return http.client.HTTPSConnection(host, port, timeout=STEP_SECONDS, context=tls)
    through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if through.scheme != "http" or not through.hostname:
        raise JwksFetchFailed(JwksResult.CONNECT, "https_proxy is not an http:// URL")
    headers = {}
    if through.username is not None:
        account = f"{unquote(through.username)}:{unquote(through.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + b64encode(account.encode()).decode()
    connection = http.client.HTTPSConnection(
        through.hostname, through.port or HTTP_PORT, timeout=STEP_SECONDS, context=tls
    )
    connection.set_tunnel(host, port, headers)
    return connection


def _body(response: http.client.HTTPResponse) -> bytes:
    if 300 <= response.status < 400:
        raise JwksFetchFailed(JwksResult.REDIRECT, f"redirects are not followed (status {response.status})")
    if response.status != 200:
        raise JwksFetchFailed(JwksResult.STATUS, f"the status is {response.status}")
    body = response.read(MAX_JWKS + 1) if (response.length or 0) <= MAX_JWKS else b""
    if len(body) > MAX_JWKS or (response.length or 0) > MAX_JWKS:
        raise JwksFetchFailed(JwksResult.TOO_LARGE, f"the response has more than {MAX_JWKS} bytes")
    return body


def _failure(error: Exception) -> JwksFetchFailed:
    """Classify what the HTTP client raised; the text has nothing that the server sent."""
    if isinstance(error, TimeoutError):
        return JwksFetchFailed(JwksResult.TIMEOUT, "the server does not respond")
    if isinstance(error, ssl.SSLError):
        return JwksFetchFailed(JwksResult.TLS, f"TLS failed: {describe_tls_error(error)}")
    if isinstance(error, OSError):
        return JwksFetchFailed(
            JwksResult.CONNECT, f"cannot connect: {error.strerror or type(error).__name__}"
        )
    return JwksFetchFailed(JwksResult.INVALID, f"the response is not valid HTTP ({type(error).__name__})")

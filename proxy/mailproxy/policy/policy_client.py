# SPDX-License-Identifier: Apache-2.0
"""The client of a policy server: its connections, its timeout, its breaker, and the queue of reports.

Responses are limited in size and time, and redirects are not followed: they would send the header with
the secret to another host.  A request is sent a second time only if its connection is closed before any
byte of a response came, as a server does with a connection that was idle for too long.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from mailproxy.context import WorkerContext
from mailproxy.enums import PolicyCommand, PolicyResult
from mailproxy.policy.policy_breaker import PolicyBreaker
from mailproxy.protocols.types import Secret
from mailproxy.tls.client import client_context
from mailproxy_config.model import LogLevel
from mailproxy_config.policy_server import AuthPolicyServer

MAX_BODY: Final = 16 * 1024
"""Bytes of a response."""
MAX_CONNECTIONS: Final = 100
"""Connections of a worker; further requests wait for one."""
MAX_REPORTS: Final = 1000
"""Reports of a worker that wait; further ones are dropped."""
SENDERS: Final = 4
"""Reports of a worker that are sent at the same time."""
MAX_WAIT: Final = 15
"""Seconds by which an answer delays a login."""
MAX_MESSAGE: Final = 200
"""Characters of ``msg`` that are kept for the log."""
IDLE_SECONDS: Final = 10.0
"""How long a connection is kept without a request, as Dovecot does."""
_READ: Final = 8 * 1024


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """The answer to ``command=allow``, or why there is none.

    ``wait`` is in seconds.  ``message`` is what the server wrote for the log; of a failure, what happened.
    """

    result: PolicyResult
    wait: int = 0
    message: str = ""


OnAnswer = Callable[[PolicyAnswer], None]


class Cancellable(Protocol):
    """A task or a timer handle."""

    def cancel(self) -> object:
        """Do not call back."""


class PolicyRequestFailed(Exception):
    """There is no usable response.

    Attributes:
        result: The label of the metric.
    """

    def __init__(self, result: PolicyResult, message: str) -> None:
        super().__init__(message)
        self.result = result


_SKIPPED: Final = PolicyAnswer(PolicyResult.SKIPPED, message="requests are suspended after failures")


class PolicyClient:
    """The client of one policy server.

    Args:
        context: The worker's shared parts.
        server: The server.
        nonce: The value of ``nonce_file``.
        header: The value of ``header_file``.
        clock: Monotonic seconds.

    Attributes:
        name: Host and port, for logs.
        nonce: The value of ``nonce_file``.
        server: The server.
    """

    __slots__ = (
        "_breaker",
        "_clock",
        "_context",
        "_headers",
        "_http",
        "_is_closed",
        "_reports",
        "_senders",
        "_tasks",
        "_urls",
        "name",
        "nonce",
        "server",
    )

    def __init__(
        self,
        context: WorkerContext,
        server: AuthPolicyServer,
        nonce: Secret,
        header: Secret | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server
        self.nonce = nonce
        self.name = urlsplit(server.url).netloc
        self._context = context
        self._clock = clock
        self._headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "MailProxy",
        }
        if header is not None:
            self._headers[server.header_name] = header.reveal().decode("utf-8", "surrogateescape")
        self._urls = {
            command: URL(command_url(server.url, command), encoded=True) for command in PolicyCommand
        }
        self._breaker = PolicyBreaker()
        self._http: aiohttp.ClientSession | None = None
        self._reports: deque[bytes] = deque()
        self._senders = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # -- questions

    def ask(self, body: bytes, on_answer: OnAnswer) -> Cancellable:
        """Ask whether a login may go on.

        Args:
            body: See ``render_policy_request``.
            on_answer: Called once, and never from here; not after the returned object was cancelled.
        """
        if not (self._breaker.is_open or self._is_closed):
            return self._start(self._ask(body, on_answer))
        self._context.metrics.policy_requests[PolicyCommand.ALLOW, PolicyResult.SKIPPED].value += 1
        if not self._is_closed and self._breaker.may_probe(self._clock()):
            self._start(self._probe(body))
        return self._context.loop.call_soon(on_answer, _SKIPPED)

    async def _ask(self, body: bytes, on_answer: OnAnswer) -> None:
        try:
            answer = parse_answer(await self._send(PolicyCommand.ALLOW, body))
        except PolicyRequestFailed as failed:
            self._on_failure(failed)
            answer = PolicyAnswer(failed.result, message=str(failed))
        else:
            self._on_success()
        self._context.metrics.policy_requests[PolicyCommand.ALLOW, answer.result].value += 1
        on_answer(answer)

    async def _probe(self, body: bytes) -> None:
        try:
            result = parse_answer(await self._send(PolicyCommand.ALLOW, body)).result
        except PolicyRequestFailed as failed:
            self._on_failure(failed, is_probe=True)
            result = failed.result
        else:
            self._on_success()
        self._context.metrics.policy_requests[PolicyCommand.ALLOW, result].value += 1

    # -- reports

    def report(self, body: bytes) -> None:
        """Report the result of a login; nothing waits for this.

        Args:
            body: See ``render_policy_report``.
        """
        if self._is_closed or self._breaker.is_open or len(self._reports) >= MAX_REPORTS:
            self._context.metrics.policy_reports_dropped.value += 1
            return
        self._reports.append(body)
        if self._senders < SENDERS:
            self._senders += 1
            self._start(self._send_reports())

    async def _send_reports(self) -> None:
        metrics = self._context.metrics
        try:
            while self._reports:
                body = self._reports.popleft()
                result = PolicyResult.OK
                try:
                    await self._send(PolicyCommand.REPORT, body)
                except PolicyRequestFailed as failed:
                    self._on_failure(failed)
                    result = failed.result
                    metrics.policy_reports_dropped.value += 1
                else:
                    self._on_success()
                metrics.policy_requests[PolicyCommand.REPORT, result].value += 1
                if self._breaker.is_open:
                    metrics.policy_reports_dropped.value += len(self._reports)
                    self._reports.clear()
        finally:
            self._senders -= 1

    # -- the end

    async def close(self) -> None:
        """Send what is in the queue, for at most ``timeout`` seconds, and close the connections."""
        self._is_closed = True
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=self.server.timeout)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
        self._context.metrics.policy_reports_dropped.value += len(self._reports)
        self._reports.clear()
        if self._breaker.on_success():
            self._context.metrics.policy_breaker_open.value -= 1
        if self._http is not None:
            await self._http.close()

    # -- requests

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._context.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send(self, command: PolicyCommand, body: bytes) -> bytes:
        """Send a request; return the body of the response."""
        started = self._clock()
        try:
            async with asyncio.timeout(self.server.timeout):
                try:
                    return await self._post(command, body)
                except aiohttp.ServerDisconnectedError:
                    return await self._post(command, body)
        except TimeoutError:
            reason = f"no response within {self.server.timeout:g} seconds"
            raise PolicyRequestFailed(PolicyResult.TIMEOUT, reason) from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            # Its text may contain the URL, never a header or the body of the request.
            reason = f"no connection ({type(error).__name__})"
            raise PolicyRequestFailed(PolicyResult.UNAVAILABLE, reason) from None
        except RuntimeError:  # of aiohttp, about a session that was closed after a reload
            raise PolicyRequestFailed(PolicyResult.UNAVAILABLE, "the client is closed") from None
        except (aiohttp.ClientError, ValueError) as error:
            reason = f"the response is not valid HTTP ({type(error).__name__})"
            raise PolicyRequestFailed(PolicyResult.INVALID, reason) from None
        finally:
            self._context.metrics.policy_seconds[command].observe(max(self._clock() - started, 0.0))

    async def _post(self, command: PolicyCommand, body: bytes) -> bytes:
        async with self._session().post(
            self._urls[command], data=body, headers=self._headers, allow_redirects=False
        ) as response:
            status = response.status
            if status >= 500:
                raise PolicyRequestFailed(PolicyResult.UNAVAILABLE, f"HTTP status {status}")
            if not 200 <= status < 300:
                raise PolicyRequestFailed(PolicyResult.INVALID, f"HTTP status {status}")
            found = b""
            while chunk := await response.content.read(_READ):
                found += chunk
                if len(found) > MAX_BODY:
                    response.close()
                    reason = f"a response of more than {MAX_BODY} bytes"
                    raise PolicyRequestFailed(PolicyResult.INVALID, reason)
            return found

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            is_tls = self.server.url.startswith("https://")
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=MAX_CONNECTIONS,
                    keepalive_timeout=IDLE_SECONDS,
                    ssl=client_context() if is_tls else False,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._http

    def _on_success(self) -> None:
        if self._breaker.on_success():
            self._context.metrics.policy_breaker_open.value -= 1
            self._context.log.event(LogLevel.NOTICE, "policy_server_recovered", service=self.name)

    def _on_failure(self, failed: PolicyRequestFailed, *, is_probe: bool = False) -> None:
        was_open = self._breaker.is_open
        is_timeout = failed.result is PolicyResult.TIMEOUT
        if self._breaker.on_failure(self._clock(), is_timeout=is_timeout, is_probe=is_probe):
            self._context.metrics.policy_breaker_open.value += 1
        if not was_open:
            self._context.log.event(
                LogLevel.ERROR,
                "policy_server_failed",
                service=self.name,
                result=failed.result,
                reason=str(failed),
                suspended=self._breaker.is_open,
            )


def command_url(url: str, command: PolicyCommand) -> str:
    """Return the URL of a command, as Dovecot makes it; behind a query with ``&`` before it."""
    if url.endswith(("&", "?")):
        return f"{url}command={command}"
    return f"{url}{'&' if '?' in url else '?'}command={command}"


def parse_answer(body: bytes) -> PolicyAnswer:
    """Read the answer to ``command=allow``.

    Raises:
        PolicyRequestFailed: It is no object with an integer ``status``.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    status = found.get("status") if isinstance(found, dict) else None
    if not isinstance(status, int) or isinstance(status, bool):
        raise PolicyRequestFailed(PolicyResult.INVALID, "the response is no object with a status")
    message = found.get("msg")
    text = message[:MAX_MESSAGE] if isinstance(message, str) else ""
    if status < 0:
        return PolicyAnswer(PolicyResult.REFUSED, message=text)
    if status:
        return PolicyAnswer(PolicyResult.DELAYED, min(status, MAX_WAIT), text)
    return PolicyAnswer(PolicyResult.OK, message=text)

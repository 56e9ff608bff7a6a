# SPDX-License-Identifier: Apache-2.0
"""The client of a policy server: its connections, its timeout, its breaker, and the queue of reports.

A request is sent a second time only if its connection had been used before, and is lost before any byte of
a response came, as a server does with a connection that was idle for too long.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final, Protocol
from urllib.parse import urlsplit

from mailproxy.context import WorkerContext
from mailproxy.enums import PolicyCommand, PolicyResult
from mailproxy.loop.timeouts import Deadlines
from mailproxy.policy.policy_breaker import PolicyBreaker
from mailproxy.policy.policy_connection import InvalidResponse, PolicyConnection, RequestRefused, ServerError
from mailproxy.protocols.types import Secret
from mailproxy.tls.client import client_context, describe_tls_error
from mailproxy_config.model import LogLevel
from mailproxy_config.policy_server import AuthPolicyServer

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
_NEXT_ADDRESS_SECONDS: Final = 0.25
"""After this time without a connection, the next address of the host is tried at the same time (RFC 8305)."""
_CLOSE_POLL_SECONDS: Final = 0.02


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
        is_of_request: Whether the server has refused this request: it responds, and others may be usable.
        result: The label of the metric.
    """

    def __init__(self, result: PolicyResult, message: str, *, is_of_request: bool = False) -> None:
        super().__init__(message)
        self.result = result
        self.is_of_request = is_of_request


OnDone = Callable[[bytes | PolicyRequestFailed], None]
_SKIPPED: Final = PolicyAnswer(PolicyResult.SKIPPED, message="requests are suspended after failures")


class PolicyRequest:
    """One request.

    Attributes:
        command: What is requested.
        connection: The connection that it is sent on; ``None`` while it waits for one.
        data: The HTTP request.
        is_repeated: Whether it was sent twice.
        on_done: Gets the body of the response, or the failure; ``None`` when the request is over.
        started: Time of the request, as of the client's clock.
        timer: The queue of its timeout; of ``Timeouts``.
    """

    __slots__ = (
        "_client",
        "command",
        "connection",
        "data",
        "is_repeated",
        "on_done",
        "started",
        "timer",
    )

    def __init__(self, client: PolicyClient, command: PolicyCommand, data: bytes, on_done: OnDone) -> None:
        self._client = client
        self.command = command
        self.data = data
        self.on_done: OnDone | None = on_done
        self.connection: PolicyConnection | None = None
        self.is_repeated = False
        self.started = 0.0
        self.timer: Deadlines | None = None

    def on_timeout(self) -> None:
        """There is no response in time."""
        self._client.on_timeout(self)

    def cancel(self) -> None:
        """Drop the request: its client has left."""
        self._client.cancel(self)


class PolicyClient:
    """The client of one policy server.

    Args:
        context: The worker's shared parts.
        server: The server.
        nonce: The value of ``nonce_file``.
        header: The value of ``header_file``, without control characters.
        clock: Monotonic seconds.

    Attributes:
        name: Host and port, for logs.
        nonce: The value of ``nonce_file``.
        server: The server.
    """

    __slots__ = (
        "_breaker",
        "_clock",
        "_connections",
        "_context",
        "_expiry",
        "_heads",
        "_host",
        "_idle",
        "_is_closed",
        "_is_retired",
        "_port",
        "_reports",
        "_senders",
        "_tasks",
        "_tls",
        "_waiting",
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
        parts = urlsplit(server.url)
        self.server = server
        self.nonce = nonce
        self.name = parts.netloc
        self._context = context
        self._clock = clock
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls: ssl.SSLContext | None = client_context() if parts.scheme == "https" else None
        self._heads = {command: _request_head(server, command, header) for command in PolicyCommand}
        self._breaker = PolicyBreaker()
        self._connections = 0
        self._idle: list[PolicyConnection] = []
        self._waiting: deque[PolicyRequest] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._reports: deque[bytes] = deque()
        self._senders = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = self._is_retired = False

    # -- questions

    def ask(self, body: bytes, on_answer: OnAnswer) -> Cancellable:
        """Ask whether a login may go on.

        Args:
            body: See ``render_policy_request``.
            on_answer: Called once, and never from here; not after the returned object was cancelled.
        """
        if not (self._breaker.is_open or self._is_closed):
            return self._send(PolicyCommand.ALLOW, body, partial(self._on_answered, on_answer))
        self._context.metrics.policy_requests[PolicyCommand.ALLOW, PolicyResult.SKIPPED].value += 1
        if not self._is_closed and self._breaker.may_probe(self._clock()):
            self._send(PolicyCommand.ALLOW, body, partial(self._on_answered, None))
        return self._context.loop.call_soon(on_answer, _SKIPPED)

    def _on_answered(self, on_answer: OnAnswer | None, response: bytes | PolicyRequestFailed) -> None:
        """There is a response, or none; without ``on_answer`` it was a probe."""
        try:
            if isinstance(response, PolicyRequestFailed):
                raise response
            answer = parse_answer(response)
        except PolicyRequestFailed as failed:
            self._on_failure(failed, is_probe=on_answer is None)
            answer = PolicyAnswer(failed.result, message=str(failed))
        else:
            self._on_success()
        self._context.metrics.policy_requests[PolicyCommand.ALLOW, answer.result].value += 1
        if on_answer is not None:
            on_answer(answer)

    # -- reports

    def report(self, body: bytes) -> None:
        """Report the result of a login; nothing waits for this.

        Args:
            body: See ``render_policy_report``.
        """
        if self._is_closed or self._breaker.is_open or len(self._reports) >= MAX_REPORTS:
            self._context.metrics.policy_reports_dropped.value += 1
        elif self._senders < SENDERS:
            self._send_report(body)
        else:
            self._reports.append(body)

    def _send_report(self, body: bytes) -> None:
        self._senders += 1
        self._send(PolicyCommand.REPORT, body, self._on_reported)

    def _on_reported(self, response: bytes | PolicyRequestFailed) -> None:
        self._senders -= 1
        metrics, result = self._context.metrics, PolicyResult.OK
        if isinstance(response, PolicyRequestFailed):
            self._on_failure(response)
            result = response.result
            metrics.policy_reports_dropped.value += 1
        else:
            self._on_success()
        metrics.policy_requests[PolicyCommand.REPORT, result].value += 1
        if self._breaker.is_open:
            self._drop_reports()
        elif self._reports:
            self._send_report(self._reports.popleft())

    def _drop_reports(self) -> None:
        self._context.metrics.policy_reports_dropped.value += len(self._reports)
        self._reports.clear()

    # -- the end

    def retire(self) -> None:
        """Leave it to sessions of an earlier configuration: the metric of suspended requests ends."""
        if self._breaker.is_open:
            self._count_open(-1)
        self._is_retired = True

    async def close(self) -> None:
        """Send what is in the queue, for at most ``timeout`` seconds, and close the connections."""
        self.retire()
        self._is_closed = True
        ends_at = time.monotonic() + self.server.timeout
        while self._senders and time.monotonic() < ends_at:  # noqa: ASYNC110 - the end of a request sets no event
            await asyncio.sleep(_CLOSE_POLL_SECONDS)
        self._drop_reports()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for connection in list(self._idle):
            connection.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # -- requests

    def _send(self, command: PolicyCommand, body: bytes, on_done: OnDone) -> PolicyRequest:
        data = b"%b%d\r\n\r\n%b" % (self._heads[command], len(body), body)
        request = PolicyRequest(self, command, data, on_done)
        request.started = self._clock()
        self._context.timers.queue(self.server.timeout).arm(request)
        self._dispatch(request)
        return request

    def _dispatch(self, request: PolicyRequest) -> None:
        """Send a request on an idle connection, on a new one, or when one is free."""
        if self._idle:
            self._idle.pop().send(request)
        elif self._connections < MAX_CONNECTIONS:
            self._connections += 1
            task = self._context.loop.create_task(self._connect(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._waiting.append(request)

    async def _connect(self, request: PolicyRequest) -> None:
        connection = PolicyConnection(self)
        is_connected = False
        try:
            async with asyncio.timeout(self.server.timeout):
                await self._context.loop.create_connection(
                    lambda: connection,
                    self._host,
                    self._port,
                    happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
            is_connected = True
            connection.leave_asyncio(self._context.epoll)
        except TimeoutError:
            pass  # the request has the same timeout
        except OSError as error:
            text = describe_tls_error(error) if isinstance(error, ssl.SSLError) else error.strerror
            reason = f"cannot connect: {text or type(error).__name__}"
            self._finish(request, PolicyRequestFailed(PolicyResult.UNAVAILABLE, reason))
        finally:
            if not connection.is_opened:  # else it is counted when it is closed
                self._connections -= 1
        if not is_connected:
            self._serve_waiting()
        elif request.on_done is None:  # it is over
            self.on_idle(connection)
        else:
            connection.send(request)

    def cancel(self, request: PolicyRequest) -> None:
        """Drop a request: its callback is not called."""
        if request.on_done is not None:
            self._finish(request, None)

    def on_timeout(self, request: PolicyRequest) -> None:
        """There is no response to a request in time."""
        reason = f"no response within {self.server.timeout:g} seconds"
        self._finish(request, PolicyRequestFailed(PolicyResult.TIMEOUT, reason))

    def _finish(self, request: PolicyRequest, result: bytes | PolicyRequestFailed | None) -> None:
        """A request is over; ``None`` where it was cancelled."""
        on_done, request.on_done = request.on_done, None
        if on_done is None:
            return
        self._context.timers.disarm(request)
        connection, request.connection = request.connection, None
        if connection is not None and connection.request is request:
            connection.close()
        elif request in self._waiting:
            self._waiting.remove(request)
        self._context.metrics.policy_seconds[request.command].observe(max(self._clock() - request.started, 0))
        if result is not None:
            on_done(result)

    # -- by connections

    def on_body(self, request: PolicyRequest, body: bytes) -> None:
        """There is a complete response."""
        self._finish(request, body)

    def on_bad_response(self, request: PolicyRequest, error: InvalidResponse | ServerError) -> None:
        """There is a response that is not usable."""
        if isinstance(error, ServerError):
            self._finish(request, PolicyRequestFailed(PolicyResult.UNAVAILABLE, str(error)))
        else:
            reason = f"the response is not usable: {error}"
            is_refused = isinstance(error, RequestRefused)
            failed = PolicyRequestFailed(PolicyResult.INVALID, reason, is_of_request=is_refused)
            self._finish(request, failed)

    def on_broken(self, request: PolicyRequest, *, is_stale: bool) -> None:
        """A connection was lost before its response was complete."""
        request.connection = None
        if is_stale and not request.is_repeated:
            request.is_repeated = True
            self._dispatch(request)
        else:
            reason = "the connection was closed before the end of the response"
            self._finish(request, PolicyRequestFailed(PolicyResult.UNAVAILABLE, reason))

    def on_idle(self, connection: PolicyConnection) -> None:
        """A connection is free: use it for a request that waits, or keep it."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        elif self._is_closed:
            connection.close()
        else:
            connection.idle_since = self._context.loop.time()
            self._idle.append(connection)
            if self._expiry is None:
                self._expiry = self._context.loop.call_later(IDLE_SECONDS, self._expire)

    def on_closed(self, connection: PolicyConnection) -> None:
        """A connection is closed: another may take its place."""
        self._connections -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        if self._waiting and self._connections < MAX_CONNECTIONS:
            self._dispatch(self._waiting.popleft())

    def _expire(self) -> None:
        """Close what has been idle for ``IDLE_SECONDS``; the connection used last is used first."""
        self._expiry = None
        before = self._context.loop.time() - IDLE_SECONDS
        for connection in [each for each in self._idle if each.idle_since <= before]:
            self._idle.remove(connection)
            connection.close()
        if self._idle:
            next_at = self._idle[0].idle_since + IDLE_SECONDS
            self._expiry = self._context.loop.call_at(next_at, self._expire)

    # -- failures

    def _count_open(self, change: int) -> None:
        if not self._is_retired:
            self._context.metrics.policy_breaker_open.value += change

    def _on_success(self) -> None:
        if self._breaker.on_success():
            self._count_open(-1)
            self._context.log.event(LogLevel.NOTICE, "policy_server_recovered", service=self.name)

    def _on_failure(self, failed: PolicyRequestFailed, *, is_probe: bool = False) -> None:
        if failed.is_of_request:  # what a client has sent must not suspend the requests of other logins
            self._on_success()
        was_open = self._breaker.is_open
        is_timeout = failed.result is PolicyResult.TIMEOUT
        if not failed.is_of_request and self._breaker.on_failure(
            self._clock(), is_timeout=is_timeout, is_probe=is_probe
        ):
            self._count_open(1)
        if not was_open:
            self._context.log.event(
                LogLevel.ERROR,
                "policy_server_failed",
                service=self.name,
                result=failed.result,
                reason=str(failed),
                suspended=self._breaker.is_open,
            )


def _request_head(server: AuthPolicyServer, command: PolicyCommand, header: Secret | None) -> bytes:
    """Return the head of all requests with a command, up to the value of ``Content-Length``."""
    parts = urlsplit(command_url(server.url, command))
    target = f"{parts.path or '/'}?{parts.query}"
    secret = b"" if header is None else b"%b: %b\r\n" % (server.header_name.encode(), header.reveal())
    return (
        b"POST %b HTTP/1.1\r\nHost: %b\r\nUser-Agent: MailProxy\r\nContent-Type: application/json\r\n"
        b"%bContent-Length: "
    ) % (target.encode(), parts.netloc.encode(), secret)


def command_url(url: str, command: PolicyCommand) -> str:
    """Return the URL of a command, as Dovecot makes it; behind a query with ``&`` before it."""
    if url.endswith(("&", "?")):
        return f"{url}command={command}"
    return f"{url}{'&' if '?' in url else '?'}command={command}"


@lru_cache(16)
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

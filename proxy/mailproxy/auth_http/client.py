# SPDX-License-Identifier: Apache-2.0
"""The client of an authentication service: its pool of connections, and the requests that wait for one.

A request is sent a second time only when a connection that had been used
before is lost before any byte of a response came, and never a third time.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from typing import Final

from mailproxy.auth_http.connection import AuthConnection
from mailproxy.auth_http.pending_request import AuthCallback, PendingRequest
from mailproxy.auth_http.response_head import ResponseHeads
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses, Target, target_text
from mailproxy.enums import AuthErrorReason, AuthOutcome
from mailproxy.errors import AuthTimedOut, AuthUnavailable
from mailproxy.loop.timeouts import TimeoutQueue
from mailproxy.protocols.types import Decision
from mailproxy.tls.client import ClientTls
from mailproxy_config.model import LogLevel

MAX_IDLE: Final = 32
"""Connections kept open between requests."""
IDLE_SECONDS: Final = 30.0
"""How long a connection is kept without a request; load balancers drop connections after 60 s and more."""
BODY_SECONDS: Final = 5.0
"""Time for the rest of a body to arrive; after that its connection is closed instead of used again."""
_RESERVED_PART: Final = 4
"""One connection of so many is reserved for client addresses that hold none of the reserved ones."""
_MAPPED: Final = bytes(10) + b"\xff\xff"


class AuthHttpClient:
    """One ``auth_http`` address: its connections, and the requests that wait for one.

    Args:
        context: The worker's shared parts.
        addresses: The addresses of the service.
        seconds: ``auth_http_timeout``.
        tls: How to verify the service, where its URL is ``https``.
        keeps: ``auth_http_keepalive``: whether connections are used again.
        maximum: ``auth_http_max_connections``; ``None`` is ``worker_connections``.
        accepts_names: ``auth_http_server_names``.

    Attributes:
        body_timeouts: Timeouts of the length ``BODY_SECONDS``.
        connections: All connections, idle ones included.
        epoll: The mail sockets of the worker.
        heads: Reads the heads of responses.
        idle: The idle connections; the last that became idle is used first.
        keeps_alive: Whether a connection may be used for another request.
        limit: The most connections; some of them are reserved.
        requests: All requests that are not over, by age.
        shared_limit: The most connections that are not reserved.
        waiting: The requests that wait for a connection.
    """

    __slots__ = (
        "_expiry",
        "_in_flight",
        "_maximum",
        "_timeout",
        "accepts_names",
        "addresses",
        "body_timeouts",
        "connections",
        "context",
        "epoll",
        "heads",
        "idle",
        "keeps_alive",
        "limit",
        "requests",
        "seconds",
        "shared_limit",
        "tls",
        "waiting",
    )

    def __init__(
        self,
        context: WorkerContext,
        addresses: HostAddresses,
        seconds: float,
        tls: ClientTls | None = None,
        *,
        keeps: bool = True,
        maximum: int | None = None,
        accepts_names: bool = False,
    ) -> None:
        self.context = context
        self.epoll = context.epoll
        self.tls = tls
        self.addresses = addresses
        self.keeps_alive = keeps
        self.accepts_names = accepts_names
        self.body_timeouts: TimeoutQueue = context.timers.queue(BODY_SECONDS)
        self.seconds = seconds
        self._in_flight = context.metrics.auth_in_flight
        self._timeout: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self.heads = ResponseHeads()
        self.idle: list[AuthConnection] = []
        self.connections: set[AuthConnection] = set()
        self.waiting = FairQueue()
        self.requests: OrderedDict[PendingRequest, None] = OrderedDict()
        self._maximum = maximum
        self.limit = self.shared_limit = 1
        self.resize(context.limit)

    def resize(self, worker_connections: int) -> None:
        """Set the number of connections; a part is reserved where requests may have to wait for one."""
        self.limit = limit = self._maximum or worker_connections
        self.shared_limit = limit if limit >= worker_connections else limit - limit // _RESERVED_PART
        self._serve_waiting()

    def send(self, request: PendingRequest) -> None:
        """Send a request, now or when a connection is free."""
        self.requests[request] = None
        self._in_flight.value += 1
        if self._timeout is None:
            self._arm_timeout(request)
        if self.idle and len(self.requests) <= self.shared_limit:
            self.idle.pop().send(request)
        else:
            self._dispatch(request)

    def cancel(self, request: PendingRequest) -> None:
        """Drop a request whose client has left."""
        if request in self.requests:
            self.finish(request)
            self._release(request)

    def close(self) -> None:
        """Close the idle connections; each of the others is closed after its response."""
        self.keeps_alive = False
        for connection in [connection for connection in self.connections if connection.request is None]:
            connection.close()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    # -- auth_http_timeout

    def _arm_timeout(self, oldest: PendingRequest) -> None:
        """Wait for the deadline of the oldest request: all have the same timeout."""
        self._timeout = self.context.loop.call_at(oldest.started + self.seconds, self.time_out_requests)

    def time_out_requests(self) -> None:
        """Fail the requests whose timeout has passed, and wait for the deadline of the next."""
        self._timeout = None
        now = time.monotonic()
        try:
            while self.requests:
                oldest = next(iter(self.requests))
                if oldest.started + self.seconds > now:
                    break
                callback = oldest.callback
                try:
                    self._time_out(oldest)
                except Exception as error:  # an entry point: the other requests time out, too
                    self.context.handle_error(callback, error)
                    self.requests.pop(oldest, None)
        finally:
            if self.requests and self._timeout is None:
                self._arm_timeout(next(iter(self.requests)))

    def _time_out(self, request: PendingRequest) -> None:
        connection, callback = request.connection, request.callback
        if connection is None or connection.target is None:
            error = AuthTimedOut("no connection was free within auth_http_timeout")
        else:
            where = target_text(connection.target)
            if connection.is_open:
                error = AuthTimedOut(f"no response from {where} within auth_http_timeout")
            else:
                reason = f"connecting to {where} timed out after auth_http_timeout"
                error = AuthTimedOut(reason, AuthErrorReason.CONNECT)
            self.on_address_failed(connection.target, error)
        self.on_failure(request, error)
        self._release(request)
        if callback is not None:
            self.deliver(callback, error)

    # -- connections

    def _dispatch(self, request: PendingRequest) -> None:
        """Send a request on a connection that its client's address may have, or let it wait for one."""
        busy = len(self.connections) - len(self.idle)
        if busy < self.shared_limit:
            self._send(request)
            return
        source = source_of(request.auth_request.client.address)
        if busy < self.limit and self.waiting.may_hold(source):
            self.waiting.hold(request, source)
            self._send(request)
        else:
            self.waiting.add(request, source)

    def _send(self, request: PendingRequest) -> None:
        if self.idle:
            self.idle.pop().send(request)
        else:
            self._connect(request)

    def _connect(self, request: PendingRequest) -> None:
        connection = AuthConnection(self)
        self.connections.add(connection)
        try:
            connection.connect(request)
        except Exception:
            connection.force_close()
            raise

    def _serve_waiting(self) -> None:
        """Give free connections to requests that wait."""
        while self.waiting.requests:
            busy = len(self.connections) - len(self.idle)
            if busy >= self.limit:
                return
            request = self.waiting.take(reserved=busy >= self.shared_limit)
            if request is None:
                return
            self._send(request)

    def on_idle(self, connection: AuthConnection) -> None:
        """A connection is free again: use it for a request that waits, or keep it."""
        if self.waiting.requests:
            busy = len(self.connections) - len(self.idle) - 1
            request = self.waiting.take(reserved=busy >= self.shared_limit) if busy < self.limit else None
            if request is not None:
                connection.send(request)
                return
        if len(self.idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = now = self.epoll.now
        self.idle.append(connection)
        if self._expiry is None:
            self._expiry = self.context.loop.call_at(now + IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        """Close what has been idle for ``IDLE_SECONDS``; the connection used last is used first."""
        self._expiry = None
        before = time.monotonic() - IDLE_SECONDS
        for connection in [connection for connection in self.idle if connection.idle_since <= before]:
            connection.close()
        if self.idle:
            self._expiry = self.context.loop.call_at(self.idle[0].idle_since + IDLE_SECONDS, self._expire)

    def on_closed(self, connection: AuthConnection) -> None:
        """A connection is closed: another may take its place."""
        if connection in self.connections:
            self.connections.remove(connection)
            if self.idle and connection in self.idle:
                self.idle.remove(connection)
            self._serve_waiting()

    def close_idle(self) -> None:
        """Close the idle connections: one died without a FIN, and these may have died with it."""
        for connection in list(self.idle):
            connection.close()

    def resend(self, lost: AuthConnection, request: PendingRequest) -> None:
        """Send a request on a new connection, which takes the place of a lost one."""
        self.connections.discard(lost)
        lost.close()
        self._connect(request)

    def on_address_failed(self, target: Target, error: AuthUnavailable) -> None:
        """An address does not work: others are tried before it for a while."""
        if self.addresses.failed(target) and len(self.addresses.targets) > 1:
            self.context.log.event(
                LogLevel.ERROR,
                "auth_http_address_failed",
                service=self.addresses.name,
                address=target_text(target),
                reason=str(error),
            )

    # -- results

    def on_failure(self, request: PendingRequest, error: AuthUnavailable) -> None:
        """Count a failure."""
        error.service = self.addresses.name
        timed_out = isinstance(error, AuthTimedOut)
        self.finish(request, AuthOutcome.TIMEOUT if timed_out else AuthOutcome.ERROR)
        self.context.metrics.auth_errors[error.failure].value += 1

    def deliver(self, callback: AuthCallback, result: Decision | AuthUnavailable) -> None:
        """Pass a result to a session; what that raises ends the session only."""
        try:
            callback(result)
        except Exception as error:  # an entry point
            self.context.handle_error(callback, error)

    def finish(self, request: PendingRequest, outcome: AuthOutcome | None = None) -> None:
        """Count a request that is over.

        Args:
            request: Ignored if it was counted before.
            outcome: ``None`` where it was cancelled.
        """
        if request.callback is None:
            return
        request.callback = None
        del self.requests[request]
        self._in_flight.value -= 1
        if outcome is not None:
            request.durations[outcome].observe(self.epoll.now - request.started)
        if self.waiting.holders and self.waiting.release(request):
            self._serve_waiting()

    def _release(self, request: PendingRequest) -> None:
        """Close the connection of a request that is over without a response, or take it out of the queue."""
        connection = request.connection
        if connection is not None and connection.request is request:
            connection.request = None
            connection.close()
        else:
            self.waiting.discard(request)


_Requests = OrderedDict[PendingRequest, None]
"""In order of arrival; unlike in a ``dict``, finding the first takes the same time after many removals."""


class FairQueue:
    """The requests that wait for a connection, served by client address in turn.

    A service delays its denials to slow down password guessing.  One client
    address with many such logins would hold every connection, and logins from
    other addresses would wait behind them.  So addresses take turns, and a part
    of the connections is reserved: of those, one address holds one at a time.

    Every operation takes constant time.  A client has one request at a time, so
    there are at most ``worker_connections`` of them.

    Attributes:
        holders: The requests that have a reserved connection, and the address of each.
        requests: The requests that wait, and the address of each.
    """

    __slots__ = ("_holding", "_parked", "_ring", "holders", "requests")

    def __init__(self) -> None:
        self._ring: OrderedDict[bytes, _Requests] = OrderedDict()
        """By address, in the order of their turns."""
        self._parked: OrderedDict[bytes, _Requests] = OrderedDict()
        """The same, for addresses that hold a reserved connection."""
        self.requests: dict[PendingRequest, bytes] = {}
        self.holders: dict[PendingRequest, bytes] = {}
        self._holding: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, request: PendingRequest, source: bytes) -> None:
        """Append a request to those of its address."""
        self.requests[request] = source
        turns = self._parked if source in self._holding else self._ring
        requests = turns.get(source)
        if requests is None:
            requests = turns[source] = OrderedDict()
        requests[request] = None

    def discard(self, request: PendingRequest) -> None:
        """Remove a request that is over, if it waits."""
        source = self.requests.pop(request, None)
        if source is None:
            return
        turns = self._parked if source in self._holding else self._ring
        requests = turns[source]
        del requests[request]
        if not requests:
            del turns[source]

    def take(self, *, reserved: bool) -> PendingRequest | None:
        """Remove and return the next request.

        Args:
            reserved: It gets a reserved connection, so its address must hold none.

        Returns:
            ``None`` where there is no such request.
        """
        turns = self._ring or (None if reserved else self._parked)
        if not turns:
            return None
        source, requests = turns.popitem(last=False)
        request, _ = requests.popitem(last=False)
        del self.requests[request]
        if requests:
            turns[source] = requests
        if reserved:
            self.hold(request, source)
        return request

    def may_hold(self, source: bytes) -> bool:
        """Return whether an address may have a reserved connection."""
        return source not in self._holding

    def hold(self, request: PendingRequest, source: bytes) -> None:
        """Record that a request has a reserved connection."""
        self.holders[request] = source
        self._holding.add(source)
        if source in self._ring:
            self._parked[source] = self._ring.pop(source)

    def release(self, request: PendingRequest) -> bool:
        """A request is over: if it had a reserved connection, its address may have another.

        Returns:
            Whether it had one.
        """
        source = self.holders.pop(request, None)
        if source is None:
            return False
        self._holding.discard(source)
        if source in self._parked:
            self._ring[source] = self._parked.pop(source)
        return True


def source_of(address: str) -> bytes:
    """Return what is taken for one client: an IPv4 address, an IPv6 network of 64 bits, or ``unix:``.

    Args:
        address: Without a port, as in ``Client.address``.
    """
    if ":" not in address:
        return address.encode("ascii", "replace")
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return b"unix:"
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:]).encode()
    return packed[:8]

# SPDX-License-Identifier: Apache-2.0
"""Asking the authentication service: one lean HTTP exchange per login, on connections that are used again.

A request is sent a second time only when a connection that had been used
before is lost before any byte of an answer came, and never a third time.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Final

from mailproxy.auth_http.connection import AuthConnection
from mailproxy.auth_http.fair_queue import FairQueue, source_of
from mailproxy.auth_http.pending_request import Asker, PendingRequest, hand_over
from mailproxy.auth_http.response import AuthResponse
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses, Target, target_text
from mailproxy.enums import AuthErrorReason, AuthOutcome
from mailproxy.errors import AuthTimedOut, AuthUnavailable
from mailproxy.loop.timeouts import TimeoutQueue
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, Decision
from mailproxy.tls.client import ClientTls
from mailproxy_config.model import LogLevel

IDLE_AT_MOST: Final = 32
"""Connections kept open between requests."""
IDLE_SECONDS: Final = 30.0
"""How long a connection is kept without a request; balancers forget connections after 60 s and more."""
DRAIN_SECONDS: Final = 5.0
"""Time that the rest of a body has to come, before its connection is closed instead of used again."""
_RESERVED_PART: Final = 4
"""One connection of so many is reserved for client addresses that hold few."""
_OUTCOMES: Final[dict[type[Decision], AuthOutcome]] = {
    AuthAllowed: AuthOutcome.OK,
    AuthDenied: AuthOutcome.DENIED,
    AuthDeferred: AuthOutcome.WAIT,
}


class AuthHttpClient:
    """One ``auth_http`` address: its connections, and the requests that wait for one.

    Args:
        engine: The worker's shared parts.
        addresses: Where to connect.
        seconds: ``auth_http_timeout``.
        tls: How to verify the service, where its address is ``https``.
        keeps: ``auth_http_keepalive``: whether connections are used again.
        maximum: ``auth_http_max_connections``; ``None`` is ``worker_connections``.

    Attributes:
        patience: For the rest of a body (``DRAIN_SECONDS``).
        reuses: Whether a connection may carry another request.
    """

    __slots__ = (
        "_by_session",
        "_connections",
        "_expiry",
        "_idle",
        "_in_flight",
        "_limit",
        "_maximum",
        "_shared",
        "_waiting",
        "_wake",
        "addresses",
        "engine",
        "patience",
        "reuses",
        "seconds",
        "tls",
    )

    def __init__(
        self,
        engine: WorkerContext,
        addresses: HostAddresses,
        seconds: float,
        tls: ClientTls | None = None,
        *,
        keeps: bool = True,
        maximum: int | None = None,
    ) -> None:
        self.engine = engine
        self.tls = tls
        self.addresses = addresses
        self.reuses = keeps
        self.patience: TimeoutQueue = engine.timers.lane(DRAIN_SECONDS)
        self.seconds = seconds
        self._in_flight = engine.metrics.auth_in_flight
        self._wake: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._idle: list[AuthConnection] = []
        self._connections: set[AuthConnection] = set()
        self._waiting = FairQueue()
        self._by_session: OrderedDict[Asker, PendingRequest] = OrderedDict()
        self._maximum = maximum
        self._limit = self._shared = 1
        self.resize(engine.limit)

    def resize(self, worker_connections: int) -> None:
        """Set the number of connections; a part is reserved where clients may have to wait for one."""
        self._limit = limit = self._maximum or worker_connections
        self._shared = limit if limit >= worker_connections else limit - limit // _RESERVED_PART
        self._serve_waiting()

    def ask(self, question: PendingRequest) -> None:
        """Send a request; its asker's ``authorized`` or ``auth_failed`` is called later, never at once."""
        asker = question.asker
        assert asker is not None  # noqa: S101 - it has one until it is settled
        self._by_session[asker] = question
        self._in_flight.value += 1
        if self._wake is None:
            self._watch(question)
        if self._idle and len(self._by_session) <= self._shared:
            self._idle.pop().carry(question)
        else:
            self._dispatch(question)

    def forget(self, asker: Asker) -> None:
        """The asker is gone: nobody waits for its answer."""
        question = self._by_session.get(asker)
        if question is not None:
            self._settled(question)
            self._abandon(question)

    def close(self) -> None:
        """Close what carries no request; what does is closed with its answer."""
        self.reuses = False
        for exchange in [exchange for exchange in self._connections if exchange.question is None]:
            exchange.drop()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    # -- deadlines

    def _watch(self, oldest: PendingRequest) -> None:
        """Come back when a request may be too old; all have the same time, so the oldest is the first."""
        self._wake = self.engine.loop.call_at(oldest.started + self.seconds, self._look_at_oldest)

    def _look_at_oldest(self) -> None:
        self._wake = None
        now = time.monotonic()
        try:
            while self._by_session:
                asker, oldest = next(iter(self._by_session.items()))
                if oldest.started + self.seconds > now:
                    break
                try:
                    self._give_up(oldest)
                except Exception as crash:  # an entry point: the others' time is over, too
                    self.engine.crashed(asker, crash)
                    self._by_session.pop(asker, None)
        finally:
            if self._by_session and self._wake is None:
                self._watch(next(iter(self._by_session.values())))

    def _give_up(self, question: PendingRequest) -> None:
        """The time for an answer is over: ``auth_http_timeout`` has passed since the login began."""
        exchange, asker = question.exchange, question.asker
        if exchange is None or exchange.target is None:
            error = AuthTimedOut("no connection was free within auth_http_timeout")
        else:
            error = _timed_out(target_text(exchange.target), is_open=exchange.is_open)
            self.address_failed(exchange.target, error)
        self.failed(question, error)
        self._abandon(question)
        if asker is not None:
            hand_over(self.engine, asker, error)

    # -- connections

    def _dispatch(self, question: PendingRequest) -> None:
        """Send a request on a connection that its address may have, or let it wait for one."""
        busy = len(self._connections) - len(self._idle)
        if busy < self._shared:
            self._carry(question)
            return
        source = source_of(question.asker.client.address) if question.asker is not None else b""
        if busy < self._limit and self._waiting.may_hold(source):
            self._waiting.hold(question, source)
            self._carry(question)
        else:
            self._waiting.add(question, source)

    def _carry(self, question: PendingRequest) -> None:
        if self._idle:
            self._idle.pop().carry(question)
        else:
            self._connect(question)

    def _connect(self, question: PendingRequest) -> None:
        exchange = AuthConnection(self)
        self._connections.add(exchange)
        try:
            exchange.connect(question)
        except Exception:
            exchange.give_up()
            raise

    def _serve_waiting(self) -> None:
        """Give free connections to requests that wait."""
        while self._waiting.requests:
            busy = len(self._connections) - len(self._idle)
            if busy >= self._limit:
                return
            question = self._waiting.take(reserved=busy >= self._shared)
            if question is None:
                return
            self._carry(question)

    def idle(self, exchange: AuthConnection) -> None:
        """A connection is free again."""
        if self._waiting.requests:
            busy = len(self._connections) - len(self._idle) - 1
            question = self._waiting.take(reserved=busy >= self._shared) if busy < self._limit else None
            if question is not None:
                exchange.carry(question)
                return
        if len(self._idle) >= IDLE_AT_MOST:
            exchange.drop()
            return
        exchange.idle_since = now = self.engine.reactor.now
        self._idle.append(exchange)
        if self._expiry is None:
            self._expiry = self.engine.loop.call_at(now + IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        """Close what has been idle for too long; the last that became idle is used first."""
        self._expiry = None
        before = time.monotonic() - IDLE_SECONDS
        for exchange in [exchange for exchange in self._idle if exchange.idle_since <= before]:
            exchange.drop()
        if self._idle:
            self._expiry = self.engine.loop.call_at(self._idle[0].idle_since + IDLE_SECONDS, self._expire)

    def gone(self, exchange: AuthConnection) -> None:
        """A connection is closed."""
        if exchange in self._connections:
            self._connections.remove(exchange)
            if self._idle and exchange in self._idle:
                self._idle.remove(exchange)
            self._serve_waiting()

    def distrust(self) -> None:
        """A connection died silently: those that were idle as long may have died with it."""
        for exchange in list(self._idle):
            exchange.drop()

    def again(self, lost: AuthConnection, question: PendingRequest) -> None:
        """Send a request on a new connection, which takes the place of the one that it lost."""
        self._connections.discard(lost)
        lost.drop()
        self._connect(question)

    def address_failed(self, target: Target, error: AuthUnavailable) -> None:
        """An address does not work: others are tried before it for a while."""
        if self.addresses.failed(target) and len(self.addresses.targets) > 1:
            self.engine.log.event(
                LogLevel.ERROR,
                "auth_http_address_failed",
                service=self.addresses.name,
                address=target_text(target),
                reason=str(error),
            )

    # -- answers

    def answered(self, question: PendingRequest, answer: AuthResponse) -> None:
        """Book an answer."""
        self._settled(question, _OUTCOMES[answer.decision.__class__])

    def failed(self, question: PendingRequest, error: AuthUnavailable) -> None:
        """Book a failure."""
        error.service = self.addresses.name
        timed_out = isinstance(error, AuthTimedOut)
        self._settled(question, AuthOutcome.TIMEOUT if timed_out else AuthOutcome.ERROR)
        self.engine.metrics.auth_errors[error.failure].value += 1

    def _abandon(self, question: PendingRequest) -> None:
        """Stop whatever is done for a request that is settled."""
        exchange = question.exchange
        if exchange is not None and exchange.question is question:
            exchange.question = None
            exchange.drop()
        else:
            self._waiting.discard(question)

    def _settled(self, question: PendingRequest, outcome: AuthOutcome | None = None) -> None:
        """Nobody waits for this request's answer any more; ``None`` is for one who left."""
        asker, question.asker = question.asker, None
        if asker is not None:
            del self._by_session[asker]
            self._in_flight.value -= 1
            if outcome is not None:
                question.seconds[outcome].observe(time.monotonic() - question.started)
            if self._waiting.holders and self._waiting.release(question):
                self._serve_waiting()


def _timed_out(where: str, *, is_open: bool) -> AuthTimedOut:
    if is_open:
        return AuthTimedOut(f"no answer from {where} within auth_http_timeout")
    return AuthTimedOut(f"connecting to {where} timed out after auth_http_timeout", AuthErrorReason.CONNECT)

# SPDX-License-Identifier: Apache-2.0
"""Asking the authorization service: one lean HTTP exchange per attempt, on connections that are used again.

A request is repeated once, and only when a connection that had been used
before turns out to be closed before any octet of an answer came.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import Final

from mailproxy.auth.response import Answer
from mailproxy.dialogue.values import Decision, Denied, Granted, Postponed
from mailproxy.errors import AuthTimedOut, AuthUnavailable
from mailproxy.events import AuthOutcome
from mailproxy.runtime.auth_exchange import Asker, Exchange, Question
from mailproxy.runtime.engine import Engine
from mailproxy.runtime.resolver import HostAddresses
from mailproxy.runtime.timers import Lane
from mailproxy.tls.towards_services import ClientTls

CONNECTIONS_AT_MOST: Final = 256
"""Connections to one authorization service; further questions wait for one, within their deadline."""
IDLE_AT_MOST: Final = 32
"""Connections kept open between questions."""
DRAIN_SECONDS: Final = 5.0
"""Time that the rest of a body has to come, before its connection is closed instead of used again."""
_OUTCOMES: Final[dict[type[Decision], AuthOutcome]] = {
    Granted: AuthOutcome.OK,
    Denied: AuthOutcome.DENIED,
    Postponed: AuthOutcome.WAIT,
}


class AuthService:
    """One ``auth_http`` address: its connections, and the questions that wait for one.

    Args:
        engine: The worker's shared parts.
        addresses: Where to connect.
        seconds: ``auth_http_timeout``.
        tls: How to make sure of the service, where its address is ``https``.

    Attributes:
        patience: For the rest of a body (``DRAIN_SECONDS``).
    """

    __slots__ = (
        "_by_session",
        "_connections",
        "_idle",
        "_in_flight",
        "_seconds",
        "_waiting",
        "_wake",
        "addresses",
        "engine",
        "is_closed",
        "patience",
        "tls",
    )

    def __init__(
        self, engine: Engine, addresses: HostAddresses, seconds: float, tls: ClientTls | None = None
    ) -> None:
        self.engine = engine
        self.tls = tls
        self.addresses = addresses
        self.is_closed = False
        self.patience: Lane = engine.timers.lane(DRAIN_SECONDS)
        self._seconds = seconds
        self._in_flight = engine.meter.auth_in_flight
        self._wake: asyncio.TimerHandle | None = None
        self._idle: list[Exchange] = []
        self._connections: set[Exchange] = set()
        self._waiting: deque[Question] = deque()
        self._by_session: dict[object, Question] = {}

    def ask(self, question: Question) -> None:
        """Put a question; its asker's ``authorized`` or ``auth_failed`` is called later, never at once."""
        self._by_session[question.asker] = question
        self._in_flight.value += 1
        if self._wake is None:
            self._watch(question)
        if self._idle:
            self._idle.pop().carry(question)
        else:
            self._dispatch(question)

    def _watch(self, oldest: Question) -> None:
        """Come back when a question may be too old; all have the same time, so the oldest is the first."""
        self._wake = self.engine.loop.call_at(oldest.started + self._seconds, self._look_at_oldest)

    def _look_at_oldest(self) -> None:
        self._wake = None
        now = time.monotonic()
        while self._by_session:
            oldest = next(iter(self._by_session.values()))
            if oldest.started + self._seconds > now:
                self._watch(oldest)
                return
            self._give_up(oldest)

    def forget(self, asker: Asker) -> None:
        """The asker is gone: nobody waits for its answer."""
        question = self._by_session.pop(asker, None)
        if question is not None:
            question.asker = None
            self._in_flight.value -= 1
            with suppress(ValueError):
                self._waiting.remove(question)
            for exchange in self._connections:
                if exchange.question is question:
                    exchange.question = None
                    exchange.drop()
                    break

    def close(self) -> None:
        """Close what carries no question; what does is closed with its answer."""
        self.is_closed = True
        for exchange in [exchange for exchange in self._connections if exchange.question is None]:
            exchange.drop()

    # -- connections

    def _dispatch(self, question: Question, *, fresh: bool = False) -> None:
        if self._idle and not fresh:
            self._idle.pop().carry(question)
        elif len(self._connections) >= CONNECTIONS_AT_MOST:
            self._waiting.append(question)
        else:
            exchange = Exchange(self)
            self._connections.add(exchange)
            exchange.connect(question)

    def idle(self, exchange: Exchange) -> None:
        """A connection is free again."""
        if self._waiting:
            exchange.carry(self._waiting.popleft())
        elif len(self._idle) < IDLE_AT_MOST:
            self._idle.append(exchange)
        else:
            exchange.drop()

    def gone(self, exchange: Exchange) -> None:
        """A connection is closed."""
        self._connections.discard(exchange)
        with suppress(ValueError):
            self._idle.remove(exchange)
        if self._waiting:
            self._dispatch(self._waiting.popleft())

    # -- answers

    def again(self, question: Question) -> None:
        """The connection had been closed meanwhile; ask on a new one."""
        self._dispatch(question, fresh=True)

    def answered(self, question: Question, answer: Answer) -> None:
        """Book an answer and hand it over."""
        decision = answer.decision
        asker = self._settled(question, _OUTCOMES[decision.__class__])
        if asker is not None:
            asker.authorized(decision)

    def failed(self, question: Question, error: AuthUnavailable) -> None:
        """Book a failure and hand it over."""
        timed_out = isinstance(error, AuthTimedOut)
        asker = self._settled(question, AuthOutcome.TIMEOUT if timed_out else AuthOutcome.ERROR)
        self.engine.meter.auth_errors[error.failure].value += 1
        if asker is not None:
            asker.auth_failed(error)

    def _give_up(self, question: Question) -> None:
        """The time for an answer is over: ``auth_http_timeout`` has passed since the question was asked."""
        with suppress(ValueError):
            self._waiting.remove(question)
        for exchange in self._connections:
            if exchange.question is question:
                exchange.question = None
                exchange.drop()
                break
        self.failed(question, AuthTimedOut("no answer within auth_http_timeout"))

    def _settled(self, question: Question, outcome: AuthOutcome) -> Asker | None:
        asker, question.asker = question.asker, None
        if asker is not None:
            del self._by_session[asker]
            self._in_flight.value -= 1
            question.seconds[outcome].observe(time.monotonic() - question.started)
        return asker

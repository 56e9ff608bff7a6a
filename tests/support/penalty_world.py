# SPDX-License-Identifier: Apache-2.0
"""Logins at a ``PenaltyAuthenticator`` whose clock a test sets, and a service that the test answers for."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.enums import Method
from mailproxy.errors import AuthUnavailable
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.penalty.block_check import BlockCheck, Exemptions
from mailproxy.penalty.penalty_authenticator import PenaltyAuthenticator
from mailproxy.penalty.pod_state import PodState
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Decision,
    Secret,
)
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import Protocol
from support.configs import server

Result = Decision | AuthUnavailable


class Timer:
    """A call at a time."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Never call it."""
        self.call = None


class Clock:
    """A clock with timers; time passes only in ``advance``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = count()

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call something when so many seconds have passed."""
        timer = Timer(call)
        heapq.heappush(self._timers, (self.now + max(seconds, 0.0), next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass, and make the calls that are due, each at its time."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._timers)
            if timer.call is not None:
                timer.call()
        self.now = end


@dataclass(eq=False)
class Login:
    """A login of a client.

    Attributes:
        done: When the session got the result.
        sent: When the service got the request.
        result: What the session got.
    """

    pending: PendingRequest
    arrived: float
    sent: float | None = None
    done: float | None = None
    result: Result | None = None

    @property
    def is_refused_for_now(self) -> bool:
        """Whether it got the temporary error."""
        return isinstance(self.result, AuthDenied) and self.result.code == b"454"


@dataclass(eq=False)
class Service:
    """What is asked after the penalty.

    Attributes:
        verdict: Decides at once about a login; without one, the test answers.
        open: The logins that it has not answered.
        peak: The most logins that were open at the same time.
    """

    world: World
    verdict: Callable[[AuthRequest], Result] | None = None
    open: list[Login] = field(default_factory=list)
    peak: int = 0
    cancelled: int = 0

    def send(self, pending: PendingRequest) -> None:
        """Take a request; answered after 10 ms, or by the test."""
        login = self.world.logins[pending]
        login.sent = self.world.clock.now
        self.open.append(login)
        self.peak = max(self.peak, len(self.open))
        if self.verdict is not None:
            result = self.verdict(pending.auth_request)
            self.world.clock.call_later(0.01, lambda: self.answer(login, result))

    def answer(self, login: Login, result: Result) -> None:
        """Answer a request."""
        if login not in self.open:
            return
        self.open.remove(login)
        callback, login.pending.callback = login.pending.callback, None
        assert callback is not None
        callback(result)

    def cancel(self, pending: PendingRequest) -> None:
        """The client has left."""
        login = self.world.logins[pending]
        if login in self.open:
            self.open.remove(login)
            self.cancelled += 1


class Events:
    """The log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def event(self, _level: object, name: str, /, **fields: Any) -> None:
        """Keep an event."""
        self.lines.append((name, fields))

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the fields of the events with a name."""
        return [fields for each, fields in self.lines if each == name]


class World:
    """One worker.

    Args:
        beside: Another worker, with the same clock and records.
        trusted: ``set_real_ip_from``.
        directives: Of the server.
    """

    def __init__(
        self,
        *,
        beside: World | None = None,
        trusted: tuple[str, ...] = (),
        protocol: Protocol = Protocol.IMAP,
        **directives: Any,
    ) -> None:
        self.clock: Clock = Clock() if beside is None else beside.clock
        self.metrics = WorkerMetrics()
        self.log = Events()
        self.logins: dict[PendingRequest, Login] = {}
        self.service = Service(self)
        self.config = server(protocol, **({"auth_penalty": True} | directives))
        self.state: PodState = PodState(SharedMemory(), self.clock) if beside is None else beside.state
        exemptions = Exemptions(TrustedPeers(self.config.auth_penalty_exempt), TrustedPeers(trusted))
        context = SimpleNamespace(loop=None, metrics=self.metrics, epoll=SimpleNamespace(now=0.0))
        self.penalty = PenaltyAuthenticator(
            cast(WorkerContext, context),
            self.service,
            self.config,
            self.state,
            exemptions=exemptions,
            log=cast(LogWriter, self.log),
            call_later=cast(Any, self.clock.call_later),
        )
        self.blocks = BlockCheck(self.state, exemptions)
        self._sessions = count(1)

    def login(
        self,
        password: str = "wrong",
        *,
        user: str = "bob",
        address: str = "192.0.2.1",
        method: Method = Method.PASSWORD,
        attempt: int = 1,
        session: str = "",
    ) -> Login:
        """Begin a login."""
        client = Client(address, session_id=session or f"s{next(self._sessions)}")
        credentials = Credentials(method, user.encode(), Secret(password.encode()))
        request = AuthRequest(credentials, attempt, client)
        pending = PendingRequest(lambda _: None, b"", request, self.config, {}, 0.0, SessionRecord())
        login = self.logins[pending] = Login(pending, self.clock.now)

        def on_result(result: Result) -> None:
            login.done, login.result = self.clock.now, result

        pending.callback = on_result
        self.penalty.send(pending)
        return login

    def fail(self, password: str = "wrong", **login: Any) -> Login:
        """Let a login fail, with all its delays."""
        failed = self.login(password, **login)
        for _ in range(100):
            if failed in self.service.open:
                self.service.answer(failed, AuthDenied(b"No"))
            if failed.done is not None:
                return failed
            self.clock.advance(0.5)
        raise AssertionError("the login does not end")

    def succeed(self, password: str = "right", **login: Any) -> Login:
        """Let a login succeed at once, at the mail server too."""
        allowed = self.login(password, **login)
        assert allowed in self.service.open
        self.service.answer(allowed, AuthAllowed("127.0.0.1", 143, b"bob"))
        self.accept(allowed)
        return allowed

    def accept(self, login: Login) -> None:
        """The mail server accepts a login that the service has allowed."""
        assert isinstance(login.result, AuthAllowed)
        assert login.result.attempt is not None
        login.result.attempt.succeeded()

    def value(self, family: str, *labels: str) -> Any:
        """Return the value of a metric, or 0."""
        for found, value in self.metrics.snapshot()["series"].get(family, []):
            if tuple(found) == labels:
                return value
        return 0

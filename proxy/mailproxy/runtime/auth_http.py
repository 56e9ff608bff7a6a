# SPDX-License-Identifier: Apache-2.0
"""Asking the authorization service: one lean HTTP exchange per attempt, on connections that are used again.

One request is in flight per connection.  A request is repeated once, and only
when a connection that had been used before turns out to be closed before any
octet of an answer came.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mailproxy.auth.response import MAX_HEAD, Answer, head_end, parse
from mailproxy.dialogue.values import Credentials, Decision, Denied, Granted, Postponed
from mailproxy.errors import AuthTimedOut, AuthUnavailable, AuthUnreachable, MalformedAnswer
from mailproxy.events import AuthErrorReason, AuthOutcome
from mailproxy.runtime.conversation import WOULD_BLOCK
from mailproxy.runtime.engine import Engine
from mailproxy.runtime.reactor import BROKEN, READ, WRITE
from mailproxy.runtime.timers import Deadlines
from mailproxy.tls.towards_services import ClientTls, tls_words

if TYPE_CHECKING:
    from mailproxy.runtime.resolver import HostAddresses
    from mailproxy.runtime.server import Server
    from mailproxy.runtime.session import Session

CONNECTIONS_AT_MOST: Final = 256
"""Connections to one authorization service; further questions wait for one, within their deadline."""
IDLE_AT_MOST: Final = 32
"""Connections kept open between questions."""
BODY_AT_MOST: Final = 64 * 1024
"""Octets of a body that are read past to use a connection again; a longer one closes it."""
DRAIN_SECONDS: Final = 5.0
_READ: Final = 16 * 1024
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_OUTCOMES: Final[dict[type[Decision], AuthOutcome]] = {
    Granted: AuthOutcome.OK,
    Denied: AuthOutcome.DENIED,
    Postponed: AuthOutcome.WAIT,
}


class Question:
    """One request, and who asked."""

    __slots__ = ("credentials", "request", "server", "session", "started")

    def __init__(
        self, session: Session, request: bytes, credentials: Credentials, server: Server, started: float
    ) -> None:
        self.session: Session | None = session
        self.request = request
        self.credentials = credentials
        self.server = server
        self.started = started


class AuthService:
    """One ``auth_http`` address: its connections, and the questions that wait for one.

    Args:
        engine: The worker's shared parts.
        addresses: Where to connect.
        seconds: ``auth_http_timeout``.
        tls: How to make sure of the service, where its address is ``https``.
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
        "tls",
    )

    def __init__(
        self, engine: Engine, addresses: HostAddresses, seconds: float, tls: ClientTls | None = None
    ) -> None:
        self.engine = engine
        self.tls = tls
        self.addresses = addresses
        self.is_closed = False
        self._seconds = seconds
        self._in_flight = engine.meter.auth_in_flight
        self._wake: asyncio.TimerHandle | None = None
        self._idle: list[Exchange] = []
        self._connections: set[Exchange] = set()
        self._waiting: deque[Question] = deque()
        self._by_session: dict[Session, Question] = {}

    def ask(self, session: Session, request: bytes, credentials: Credentials, server: Server) -> None:
        """Put a question; the session's ``authorized`` or ``auth_failed`` is called later, never at once."""
        engine = self.engine
        question = Question(session, request, credentials, server, engine.reactor.now)
        self._by_session[session] = question
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

    def forget(self, session: Session) -> None:
        """The session is gone: nobody waits for its answer."""
        question = self._by_session.pop(session, None)
        if question is not None:
            question.session = None
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
        session = self._settled(question, _OUTCOMES[decision.__class__])
        if session is not None:
            session.authorized(decision)

    def failed(self, question: Question, error: AuthUnavailable) -> None:
        """Book a failure and hand it over."""
        timed_out = isinstance(error, AuthTimedOut)
        session = self._settled(question, AuthOutcome.TIMEOUT if timed_out else AuthOutcome.ERROR)
        self.engine.meter.auth_errors[error.failure].value += 1
        if session is not None:
            session.auth_failed(error)

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

    def _settled(self, question: Question, outcome: AuthOutcome) -> Session | None:
        session, question.session = question.session, None
        if session is not None:
            del self._by_session[session]
            self._in_flight.value -= 1
            seconds = time.monotonic() - question.started
            question.server.numbers.auth_seconds[outcome].observe(seconds)
        return session


class Exchange:
    """One connection to the service, and the question it carries."""

    __slots__ = (
        "_body_left",
        "_head",
        "_is_open",
        "_shaking_hands",
        "_unsent",
        "_used",
        "fd",
        "question",
        "service",
        "sock",
        "timer",
    )

    def __init__(self, service: AuthService) -> None:
        self.service = service
        self.sock: Any = None
        self.fd = -1
        self.timer: Deadlines | None = None
        self.question: Question | None = None
        self._is_open = False
        self._shaking_hands = False
        self._used = False
        self._head = b""
        self._unsent = b""
        self._body_left = 0

    def connect(self, question: Question) -> None:
        """Open the connection; the question follows when it stands."""
        self.question = question
        target = self.service.addresses.take()
        if target is None:
            self._fail_later(AuthUnreachable("its name does not resolve", AuthErrorReason.DNS))
            return
        family, address = target
        try:
            self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            if family != socket.AF_UNIX:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.fd = self.sock.fileno()
            with suppress(BlockingIOError):
                self.sock.connect(address)
        except OSError as error:
            self._fail_later(AuthUnreachable(f"connecting failed: {error.strerror}"))
            return
        self.service.engine.reactor.add(self.fd, self, WRITE)

    def _fail_later(self, error: AuthUnavailable) -> None:
        self.service.engine.loop.call_soon(self._fail, error)

    def carry(self, question: Question) -> None:
        """Send a question on a connection that is open and idle."""
        self.question = question
        self._head = b""
        try:
            sent = self.sock.send(question.request)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self.service.engine.loop.call_soon(self._lost)
            return
        if sent < len(question.request):
            self._unsent = question.request[sent:]
            self.service.engine.reactor.want(self.fd, READ | WRITE)

    # -- readiness

    def on_event(self, mask: int) -> None:
        """Connect, write what is left of the question, read the answer."""
        try:
            if self._is_open:
                if mask & WRITE and self._unsent:
                    self._send_rest()
                elif mask & (READ | BROKEN):
                    self._receive()
            elif self._shaking_hands:
                self._shake_hands()
            else:
                self._connected(mask)
        except WOULD_BLOCK:
            pass
        except AuthUnavailable as error:
            self._fail(error)
        except OSError as error:
            self._lost(error)

    def _connected(self, mask: int) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if mask & BROKEN else 0
        if code:
            self.service.addresses.failed()
            raise AuthUnreachable(f"connecting failed: {OSError(code, '').errno}")
        if self.service.tls is not None:
            self.sock = self.service.tls.over(self.sock)
            self._shaking_hands = True
            self._shake_hands()
        else:
            self._ready()

    def _shake_hands(self) -> None:
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self.service.engine.reactor.want(self.fd, READ)
        except ssl.SSLWantWriteError:
            self.service.engine.reactor.want(self.fd, WRITE)
        except OSError as error:
            self.service.addresses.failed()
            raise AuthUnreachable(f"TLS: {tls_words(error)}", AuthErrorReason.TLS) from error
        else:
            self._shaking_hands = False
            self._ready()

    def _ready(self) -> None:
        self._is_open = True
        self.service.engine.reactor.want(self.fd, READ)
        if self.question is not None:
            self.carry(self.question)

    def _send_rest(self) -> None:
        sent = self.sock.send(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self.service.engine.reactor.want(self.fd, READ)

    def _receive(self) -> None:
        octets = self.sock.recv(_READ)
        if self.service.tls is not None:
            while self.sock.pending():
                octets += self.sock.recv(_READ)
        if self.question is None:
            self._after_answer(octets)
            return
        if not octets:
            self._lost()
            return
        seen = len(self._head)
        self._head = head = self._head + octets if seen else octets
        end = head_end(head, seen)
        if (len(head) if end < 0 else end) > MAX_HEAD:
            raise MalformedAnswer(f"a header of more than {MAX_HEAD} octets")
        if end >= 0:
            self._answered(head, end)

    def _answered(self, head: bytes, end: int) -> None:
        question = self.question
        assert question is not None  # noqa: S101 - asked before
        credentials = question.credentials
        answer = parse(
            head[:end],
            protocol=question.server.config.protocol,
            method=credentials.method,
            user=credentials.user,
            password=credentials.password,
        )
        self.question = None
        self._head = b""
        self._used = True
        self._go_on(answer, head[end:])
        self.service.answered(question, answer)

    # -- between questions

    def _go_on(self, answer: Answer, rest: bytes) -> None:
        """Use the connection again if what follows the header is known and short."""
        framing = answer.framing
        length = framing.length
        if framing.chunked and rest.endswith(_LAST_CHUNK):
            length = len(rest)
        is_usable = answer.keep_alive and length is not None and length >= len(rest)
        if length is None or not is_usable or self._unsent or self.service.is_closed:
            self.drop()
            return
        self._body_left = length - len(rest)
        if self._body_left == 0:
            self.service.idle(self)
        elif self._body_left > BODY_AT_MOST:
            self.drop()
        else:
            self.service.engine.timers.arm(self, DRAIN_SECONDS)

    def _after_answer(self, octets: bytes) -> None:
        """The rest of a body, or the end of an idle connection."""
        if not octets or len(octets) > self._body_left:
            self.drop()
            return
        self._body_left -= len(octets)
        if self._body_left == 0:
            self.service.engine.timers.disarm(self)
            self.service.idle(self)

    def on_timeout(self) -> None:
        """A body took too long to come."""
        self.drop()

    # -- the end

    def _lost(self, error: OSError | None = None) -> None:
        question = self.question
        if question is not None and self._used and not self._head:
            self.question = None
            self.drop()
            self.service.again(question)
        else:
            reason = type(error).__name__ if error else "closed before the header ended"
            self._fail(AuthUnreachable(f"the connection broke off: {reason}"))

    def _fail(self, error: AuthUnavailable) -> None:
        question, self.question = self.question, None
        self.drop()
        if question is not None:
            self.service.failed(question, error)

    def drop(self) -> None:
        """Close the connection."""
        self.service.engine.timers.disarm(self)
        if self.fd >= 0:
            self.service.engine.reactor.forget(self.fd)
            self.fd = -1
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self.service.gone(self)

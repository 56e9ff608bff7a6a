# SPDX-License-Identifier: Apache-2.0
"""One connection to an authorization service: connect, ask, read the answer, be used again.

One request is in flight per connection.  What becomes of an answer, and of a
connection that is free again, its owner decides.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from mailproxy.auth.response import MAX_HEAD, Answer, head_end, parse
from mailproxy.dialogue.values import Credentials, Decision
from mailproxy.errors import AuthUnavailable, AuthUnreachable, MalformedAnswer
from mailproxy.events import AuthErrorReason, AuthOutcome
from mailproxy.observe.meter import Histogram
from mailproxy.runtime.engine import Engine
from mailproxy.runtime.nonblocking import WOULD_BLOCK
from mailproxy.runtime.reactor import BROKEN, READ, WRITE
from mailproxy.runtime.resolver import HostAddresses
from mailproxy.runtime.timers import Deadlines, Lane
from mailproxy.tls.towards_services import ClientTls, tls_words
from mailproxy_config import model

BODY_AT_MOST: Final = 64 * 1024
"""Octets of a body that are read past to use a connection again; a longer one closes it."""
_READ: Final = 16 * 1024
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


class Asker(Protocol):
    """Whoever waits for an answer: told once, later, and never while it asks."""

    def authorized(self, decision: Decision) -> None:
        """The service answered."""
        ...

    def auth_failed(self, error: AuthUnavailable) -> None:
        """The service gave no usable answer."""
        ...


class Question:
    """One request, and who asked.

    Attributes:
        asker: Who waits for the answer; ``None`` when nobody does any more.
        protocol: What the client speaks: an answer's words depend on it.
        seconds: Where the time until the answer is counted, by what it is.
        started: When it was asked, by the reactor's clock.
    """

    __slots__ = ("asker", "credentials", "protocol", "request", "seconds", "started")

    def __init__(
        self,
        asker: Asker,
        request: bytes,
        credentials: Credentials,
        protocol: model.Protocol,
        seconds: Mapping[AuthOutcome, Histogram],
        started: float,
    ) -> None:
        self.asker: Asker | None = asker
        self.request = request
        self.credentials = credentials
        self.protocol = protocol
        self.seconds = seconds
        self.started = started


class Owner(Protocol):
    """Whose connection it is: what it knows of the service, and what it is told."""

    addresses: HostAddresses
    engine: Engine
    is_closed: bool
    patience: Lane
    tls: ClientTls | None

    def idle(self, exchange: Exchange) -> None:
        """A connection is free again."""
        ...

    def gone(self, exchange: Exchange) -> None:
        """A connection is closed."""
        ...

    def again(self, question: Question) -> None:
        """A connection that had been used before was closed before any octet of an answer came."""
        ...

    def answered(self, question: Question, answer: Answer) -> None:
        """The answer is there."""
        ...

    def failed(self, question: Question, error: AuthUnavailable) -> None:
        """There will be no answer."""
        ...


class Exchange:
    """One connection to the service, and the question it carries."""

    __slots__ = (
        "_body_left",
        "_head",
        "_is_open",
        "_is_put",
        "_shaking_hands",
        "_unsent",
        "_used",
        "fd",
        "question",
        "service",
        "sock",
        "timer",
    )

    def __init__(self, service: Owner) -> None:
        self.service = service
        self.sock: Any = None
        self.fd = -1
        self.timer: Deadlines | None = None
        self.question: Question | None = None
        self._is_open = False
        self._is_put = False
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
        self.service.engine.reactor.at_end(partial(self._fail, error))

    def carry(self, question: Question) -> None:
        """Send a question on a connection that is open and idle, when the turn ends."""
        self.question = question
        self._head = b""
        self._is_put = False
        self.service.engine.reactor.at_end(self._ask)

    def _ask(self) -> None:
        question = self.question
        if question is None:
            return  # nobody waits for the answer any more
        self._is_put = True
        try:
            sent = self.sock.send(question.request)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self._lost()
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
        if not octets or not self._is_put:  # what nobody asked for is a goodbye, too
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
            protocol=question.protocol,
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
        if not answer.keep_alive or self._unsent or self.service.is_closed:
            self.drop()
            return
        framing = answer.framing
        length = len(rest) if framing.chunked and rest.endswith(_LAST_CHUNK) else framing.length
        left = -1 if length is None else length - len(rest)
        if left == 0:
            self.service.idle(self)
        elif 0 < left <= BODY_AT_MOST:
            self._body_left = left
            self.service.patience.arm(self)
        else:
            self.drop()

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

# SPDX-License-Identifier: Apache-2.0
"""One connection to an authentication service: connect, ask, read the answer, be used again.

One request is in flight per connection.  What becomes of an answer, and of a
connection that is free again, its owner decides.

An answer must not be taken for another's.  So a connection is used again only
where the end of the answer is certain, and nothing has arrived behind it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import termios
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from mailproxy.auth_http.body import BadBody, Body, body_of
from mailproxy.auth_http.pending_request import PendingRequest, hand_over
from mailproxy.auth_http.response import MAX_HEAD, AuthResponse, InterimAnswer, head_end, parse
from mailproxy.closing import close_now
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses, Target, target_text
from mailproxy.enums import AuthErrorReason
from mailproxy.errors import AuthUnavailable, AuthUnreachable, InvalidAuthResponse
from mailproxy.loop.epoll import BROKEN, READ, WRITE
from mailproxy.loop.timeouts import Deadlines, TimeoutQueue
from mailproxy.net.nonblocking import WOULD_BLOCK
from mailproxy.tls.client import ClientTls, describe_tls_error

CONNECT_SECONDS: Final = 4.0
"""The most that one address may take to be connected to, TLS included, while there are others to try.

The kernel repeats an unanswered connection request after 1 and 3 s (tcp(7), ``tcp_syn_retries``).
"""
UNACKNOWLEDGED_MS: Final = 3000
"""Milliseconds after which bytes that the service's host does not acknowledge end a kept connection."""
_PROBE_AFTER: Final = 10
_PROBE_EVERY: Final = 5
"""Seconds without traffic after which the kernel probes a kept connection, and between two probes."""
_UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})
_READ: Final = 16 * 1024
_NOTHING: Final = bytes(4)
"""What ``FIONREAD`` gives where no byte is unread."""
_REQUEST_TIMEOUT: Final = 408


class Owner(Protocol):
    """The owner of connections: what it knows of the service, and what it is called for."""

    addresses: HostAddresses
    engine: WorkerContext
    patience: TimeoutQueue
    reuses: bool
    seconds: float
    tls: ClientTls | None

    def idle(self, exchange: AuthConnection) -> None:
        """A connection is free again."""
        ...

    def gone(self, exchange: AuthConnection) -> None:
        """A connection is closed."""
        ...

    def again(self, lost: AuthConnection, question: PendingRequest) -> None:
        """A connection that had been used before was lost before any byte of an answer came."""
        ...

    def distrust(self) -> None:
        """A connection died silently."""
        ...

    def address_failed(self, target: Target, error: AuthUnavailable) -> None:
        """An address does not work."""
        ...

    def answered(self, question: PendingRequest, answer: AuthResponse) -> None:
        """The answer is there: book it."""
        ...

    def failed(self, question: PendingRequest, error: AuthUnavailable) -> None:
        """There will be no answer: book it."""
        ...


class AuthConnection:
    """One connection to the service, and the request that it carries.

    Attributes:
        idle_since: When it became free, by the reactor's clock.
        is_open: Whether a request can be sent; false while it connects.
        target: The address that it is connected to, or tries.
    """

    __slots__ = (
        "_body",
        "_error",
        "_head",
        "_is_put",
        "_shaking_hands",
        "_skipped",
        "_unsent",
        "_used",
        "fd",
        "idle_since",
        "is_open",
        "question",
        "service",
        "sock",
        "target",
        "timer",
    )

    idle_since: float
    """Set when it becomes free."""

    def __init__(self, service: Owner) -> None:
        self.service = service
        self.sock: Any = None
        self.fd = -1
        self.target: Target | None = None
        self.timer: Deadlines | None = None
        self.question: PendingRequest | None = None
        self.is_open = False
        self._is_put = False
        self._shaking_hands = False
        self._used = False
        self._head = b""
        self._skipped = 0
        self._unsent = b""
        self._body: Body | None = None
        self._error: AuthUnreachable | None = None

    # -- connecting

    def connect(self, question: PendingRequest) -> None:
        """Open the connection; the request follows when it is established."""
        self.question = question
        question.exchange = self
        self._connect()

    def _connect(self) -> None:
        """Connect to the next address that this request has not tried."""
        question = self.question
        if question is None:
            return  # nobody waits for the answer any more
        addresses = self.service.addresses
        self.target = target = addresses.take(question.tried)
        if target is None:
            error = self._error or AuthUnreachable("its name does not resolve", AuthErrorReason.DNS)
            self._at_end(partial(self._fail, error))
            return
        family, address = target
        try:
            self.sock = sock = socket.socket(
                family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
        except OSError as error:  # no descriptors: no address would be better
            self._at_end(partial(self._fail, AuthUnreachable(f"no socket: {error.strerror}")))
            return
        self.fd = sock.fileno()
        try:
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address)
        except OSError as error:  # not an address of this system
            self._try_next(_connecting(target, error.strerror or str(error)))
            return
        if code not in _UNDER_WAY:  # EAGAIN too: a UNIX socket whose queue is full
            self._try_next(_connecting(target, os.strerror(code)))
            return
        self.service.engine.reactor.add(self.fd, self, WRITE)
        others = len(addresses.targets) - len(question.tried) - 1
        if others > 0:
            self._limit_connecting(question, others)

    def _limit_connecting(self, question: PendingRequest, others: int) -> None:
        """Give this address its share of the time, so that the others have theirs."""
        engine = self.service.engine
        left = question.started + self.service.seconds - engine.reactor.now
        engine.timers.arm(self, max(min(left / (others + 1), CONNECT_SECONDS), 0.0))

    def _try_next(self, error: AuthUnreachable) -> None:
        """This address does not work: go on with the next at the end of this event loop iteration."""
        self._close()
        target, question = self.target, self.question
        if target is not None:
            self.service.address_failed(target, error)
            if question is not None:
                question.tried += (target,)
        self._error = error
        self._at_end(self._connect)

    def _at_end(self, call: Callable[[], object]) -> None:
        self.service.engine.reactor.at_end(call)

    def _connected(self, mask: int) -> None:
        if self.sock is None:
            return  # an event of the connection that was tried before
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if mask & BROKEN else 0
        if code:
            self._try_next(_connecting(self.target, os.strerror(code)))
        elif self.service.tls is not None:
            self.sock = self.service.tls.wrap(self.sock)
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
            where = _where(self.target)
            self._try_next(
                AuthUnreachable(f"TLS with {where}: {describe_tls_error(error)}", AuthErrorReason.TLS)
            )
        else:
            self._shaking_hands = False
            self._ready()

    def _ready(self) -> None:
        self.is_open = True
        if self.timer is not None:
            self.service.engine.timers.disarm(self)
        if self.target is not None:
            self.service.addresses.works(self.target)
        self.service.engine.reactor.want(self.fd, READ)
        if self.question is not None:
            self.carry(self.question)

    # -- asking

    def carry(self, question: PendingRequest) -> None:
        """Send a request on an idle connection at the end of this event loop iteration."""
        self.question = question
        question.exchange = self
        self._head = b""
        self._skipped = 0
        self._is_put = False
        self.service.engine.reactor.at_end(self._ask)

    def _ask(self) -> None:
        question = self.question
        if question is None:
            return  # nobody waits for the answer any more
        if self._used and fcntl.ioctl(self.fd, termios.FIONREAD, _NOTHING) != _NOTHING:
            self._lost()  # what is there already cannot be the answer
            return
        self._is_put = True
        try:
            sent = self.sock.send(question.request)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self._lost(error)
            return
        if sent < len(question.request):
            self._unsent = question.request[sent:]
            self.service.engine.reactor.want(self.fd, READ | WRITE)

    # -- readiness

    def on_event(self, mask: int) -> None:
        """Connect, write what is left of the request, read the answer."""
        try:
            if self.is_open:
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

    def _send_rest(self) -> None:
        sent = self.sock.send(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self.service.engine.reactor.want(self.fd, READ)

    def _receive(self) -> None:
        data = self.sock.recv(_READ)
        if self.service.tls is not None:
            while self.sock.pending():
                data += self.sock.recv(_READ)
        if self.question is None:
            self._after_answer(data) if data else self.drop()
        elif not data or not self._is_put:  # what arrives before the request is not its answer
            self._lost()
        else:
            seen = len(self._head)
            self._read_head(self._head + data if seen else data, seen)

    def _read_head(self, head: bytes, seen: int) -> None:
        """Read the answer's head once it is complete, and pass over interim answers before it."""
        while True:
            end = head_end(head, seen)
            if self._skipped + (len(head) if end < 0 else end) > MAX_HEAD:
                raise InvalidAuthResponse(f"a header of more than {MAX_HEAD} bytes")
            if end < 0:
                self._head = head
                return
            try:
                self._read_answer(head, end)
            except InterimAnswer:
                self._skipped += end
                head, seen = head[end:], 0
            else:
                return

    def _read_answer(self, head: bytes, end: int) -> None:
        question = self.question
        assert question is not None  # noqa: S101 - asked before
        try:
            credentials = question.credentials
            answer = parse(
                head[:end],
                protocol=question.protocol,
                method=credentials.method,
                user=credentials.user,
                password=credentials.password,
            )
        except InvalidAuthResponse as error:
            if error.status != _REQUEST_TIMEOUT or not self._may_repeat(question):
                raise
            self._repeat(question)
            return
        if answer.status == _REQUEST_TIMEOUT and self._may_repeat(question):
            self._repeat(question)  # the service closes a connection that was idle for too long
        else:
            self._answered(question, answer, head[end:])

    def _answered(self, question: PendingRequest, answer: AuthResponse, rest: bytes) -> None:
        asker = question.asker
        self.question = None
        self._head = b""
        try:
            self.service.answered(question, answer)
            self._go_on(answer, rest)
        except Exception as crash:  # an entry point: this is no longer known to carry a request
            self.service.engine.crashed(asker, crash)
            self.drop()
            return
        try:
            if asker is not None:
                asker.authorized(answer.decision)
        except Exception as crash:  # the outer edge of a session: this may carry another request by now
            self.service.engine.crashed(asker, crash)

    # -- between requests

    def _go_on(self, answer: AuthResponse, rest: bytes) -> None:
        """Use the connection again if what follows the header is known and short."""
        if not answer.keep_alive or self._unsent or not self.service.reuses:
            self.drop()
            return
        if not self._used:
            self._used = True
            self._keep()
        if rest == answer.framing.empty:
            self.service.idle(self)
            return
        self._body = body_of(answer.framing)
        self._after_answer(rest)

    def _keep(self) -> None:
        """Let the kernel find out when a connection that is kept is dead."""
        if self.target is None or self.target[0] == socket.AF_UNIX:
            return
        option = self.sock.setsockopt
        with suppress(OSError):
            option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER)
            option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY)
            option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)

    def _after_answer(self, data: bytes) -> None:
        """The rest of a body, whose connection is free where it ends; anything else ends the connection."""
        body = self._body
        try:
            if body is None or body.feed(data) < len(data):
                raise BadBody("more than the body")
        except BadBody:
            self.drop()
            return
        if body.is_complete:
            self._body = None
            self.service.engine.timers.disarm(self)
            self.service.idle(self)
        elif self.timer is None:
            self.service.patience.arm(self)

    def on_timeout(self) -> None:
        """An address took too long to be connected to, or a body to come."""
        if self.is_open:
            self.drop()
        else:
            self._try_next(_connecting(self.target, "timed out"))

    # -- the end

    def _may_repeat(self, question: PendingRequest) -> bool:
        return self._used and not self._skipped and not question.is_repeated

    def _repeat(self, question: PendingRequest) -> None:
        question.is_repeated = True
        self.question = None
        self.service.again(self, question)

    def _lost(self, error: OSError | None = None) -> None:
        """The connection is over; a request that was sent may be sent once more, one that was not must be."""
        question = self.question
        if isinstance(error, TimeoutError):
            self.service.distrust()
        if question is None:
            self.drop()
        elif self._used and not self._is_put:
            self.question = None
            self.service.again(self, question)
        elif not self._head and self._may_repeat(question):
            self._repeat(question)
        else:
            reason = (error.strerror or str(error)) if error else "closed before the header ended"
            where = _where(self.target)
            self._fail(AuthUnreachable(f"the connection to {where} was lost: {reason}"))

    def _fail(self, error: AuthUnavailable) -> None:
        question, self.question = self.question, None
        asker = None if question is None else question.asker
        try:
            if question is not None:
                self.service.failed(question, error)
        except Exception as crash:  # an entry point: this is no longer known to carry a request
            self.service.engine.crashed(asker, crash)
            asker = None
        self.drop()
        if asker is not None:
            hand_over(self.service.engine, asker, error)

    def crashed(self) -> None:
        """An exception of our own: whoever waits for an answer from here gets none."""
        self._fail(AuthUnavailable("internal error"))

    def give_up(self) -> None:
        """Close in whatever state it is."""
        self.question = None
        with suppress(Exception):
            self.drop()

    def _close(self) -> None:
        self.service.engine.timers.disarm(self)
        self._shaking_hands = self.is_open = False
        if self.sock is not None:
            close_now(self.service.engine, self.sock, self.fd)
            self.sock, self.fd = None, -1

    def drop(self) -> None:
        """Close the connection."""
        self._close()
        self.service.gone(self)


def _where(target: Target | None) -> str:
    return "?" if target is None else target_text(target)


def _connecting(target: Target | None, reason: str) -> AuthUnreachable:
    return AuthUnreachable(f"connecting to {_where(target)} failed: {reason}")

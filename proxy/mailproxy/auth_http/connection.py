# SPDX-License-Identifier: Apache-2.0
"""One connection to an authentication service: connect, send a request, read the response, be used again.

A connection carries one request at a time.  A response must not be taken for
that of another request.  So a connection is used again only where the end of
the response is certain, and nothing has arrived after it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import termios
from array import array
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mailproxy.auth_http.overrides import set_overrides
from mailproxy.auth_http.response import decide
from mailproxy.auth_http.response_body import BadBody, Body, body_of
from mailproxy.auth_http.response_head import MAX_HEAD, InterimResponse, ResponseHead, head_end
from mailproxy.auth_http.server_group import check_group
from mailproxy.dns import Target, target_text
from mailproxy.enums import AuthErrorReason, AuthOutcome
from mailproxy.errors import AuthUnavailable, AuthUnreachable, InvalidAuthResponse
from mailproxy.loop.epoll import BROKEN, READ, WRITE
from mailproxy.loop.timeouts import Deadlines
from mailproxy.net.nonblocking import WOULD_BLOCK
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, Decision
from mailproxy.tls.client import describe_tls_error

if TYPE_CHECKING:
    from mailproxy.auth_http.client import AuthHttpClient
    from mailproxy.auth_http.pending_request import PendingRequest

CONNECT_SECONDS: Final = 4.0
"""Limit for connecting to one address, TLS included, while there are others to try.

The kernel sends an unanswered SYN again after 1 and 3 s (tcp(7), ``tcp_syn_retries``).
"""
UNACKNOWLEDGED_MS: Final = 3000
"""``TCP_USER_TIMEOUT`` of a kept connection: milliseconds until unacknowledged bytes end it."""
_KEEPIDLE: Final = 10
_KEEPINTVL: Final = 5
"""``TCP_KEEPIDLE`` and ``TCP_KEEPINTVL`` of a kept connection, in seconds."""
_IN_PROGRESS: Final = frozenset({0, errno.EINPROGRESS})
_READ: Final = 16 * 1024
_UNREAD: Final = array("i", [0])
"""Gets the result of ``FIONREAD``, the number of unread bytes; with ``bytes`` ``ioctl`` takes far longer."""
_REQUEST_TIMEOUT: Final = 408
_READABLE: Final = READ | BROKEN
_OUTCOMES: Final[dict[type[Decision], AuthOutcome]] = {
    AuthAllowed: AuthOutcome.OK,
    AuthDenied: AuthOutcome.DENIED,
    AuthDeferred: AuthOutcome.WAIT,
}


class AuthConnection:
    """One connection to the service, and the request that it carries.

    Attributes:
        idle_since: When it became free, as in ``Epoll.now``.
        is_open: Whether a request can be sent; false while it connects.
        request: The request that it carries.
        target: The address that it is connected, or connecting to.
    """

    __slots__ = (
        "_body",
        "_head",
        "_interim_bytes",
        "_is_in_handshake",
        "_is_sent",
        "_last_error",
        "_unsent",
        "_was_used",
        "fd",
        "http_client",
        "idle_since",
        "is_open",
        "request",
        "sock",
        "target",
        "timer",
    )

    idle_since: float
    """Set when it becomes free."""

    def __init__(self, http_client: AuthHttpClient) -> None:
        self.http_client = http_client
        self.sock: Any = None
        self.fd = -1
        self.target: Target | None = None
        self.timer: Deadlines | None = None
        self.request: PendingRequest | None = None
        self.is_open = False
        self._is_sent = False
        self._is_in_handshake = False
        self._was_used = False
        self._head = b""
        self._interim_bytes = 0
        self._unsent = b""
        self._body: Body | None = None
        self._last_error: AuthUnreachable | None = None

    # -- connecting

    def connect(self, request: PendingRequest) -> None:
        """Open the connection; the request follows when it is established."""
        self.request = request
        request.connection = self
        self._connect()

    def _connect(self) -> None:
        """Connect to the next address that was not tried for this request."""
        request = self.request
        if request is None:
            return  # the request is over
        addresses = self.http_client.addresses
        self.target = target = addresses.take(request.tried)
        if target is None:
            error = self._last_error or AuthUnreachable("its name does not resolve", AuthErrorReason.DNS)
            self.http_client.epoll.defer(partial(self._fail, error))
            return
        family, address = target
        try:
            self.sock = sock = socket.socket(
                family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
        except OSError as error:  # no descriptors: no address would be better
            self.http_client.epoll.defer(partial(self._fail, AuthUnreachable(f"no socket: {error.strerror}")))
            return
        self.fd = sock.fileno()
        try:
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address)
        except OSError as error:  # not an address of this system
            self._try_next(_connect_error(target, error.strerror or str(error)))
            return
        if code not in _IN_PROGRESS:  # EAGAIN too: a UNIX socket whose queue is full
            self._try_next(_connect_error(target, os.strerror(code)))
            return
        self.http_client.epoll.add(self.fd, self, WRITE)
        others = len(addresses.targets) - len(request.tried) - 1
        if others > 0:
            context = self.http_client.context
            left = request.started + self.http_client.seconds - self.http_client.epoll.now
            context.timers.arm(self, max(min(left / (others + 1), CONNECT_SECONDS), 0.0))

    def _try_next(self, error: AuthUnreachable) -> None:
        """This address does not work: try the next at the end of the event loop iteration."""
        self._close()
        target, request = self.target, self.request
        if target is not None:
            self.http_client.on_address_failed(target, error)
            if request is not None:
                request.tried += (target,)
        self._last_error = error
        self.http_client.epoll.defer(self._connect)

    def _on_connected(self, mask: int) -> None:
        if self.sock is None:
            return  # an event of the connection that was tried before
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if mask & BROKEN else 0
        if code:
            self._try_next(_connect_error(self.target, os.strerror(code)))
        elif self.http_client.tls is not None:
            self.sock = self.http_client.tls.wrap(self.sock)
            self._is_in_handshake = True
            self._do_handshake()
        else:
            self._on_open()

    def _do_handshake(self) -> None:
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self.http_client.epoll.modify(self.fd, READ)
        except ssl.SSLWantWriteError:
            self.http_client.epoll.modify(self.fd, WRITE)
        except OSError as error:
            where = _address_text(self.target)
            self._try_next(
                AuthUnreachable(f"TLS with {where}: {describe_tls_error(error)}", AuthErrorReason.TLS)
            )
        else:
            self._is_in_handshake = False
            self._on_open()

    def _on_open(self) -> None:
        self.is_open = True
        if self.timer is not None:
            self.http_client.context.timers.disarm(self)
        if self.target is not None:
            self.http_client.addresses.works(self.target)
        self.http_client.epoll.modify(self.fd, READ)
        if self.request is not None:
            self.send(self.request)

    # -- sending the request

    def send(self, request: PendingRequest) -> None:
        """Send a request on an idle connection at the end of the event loop iteration."""
        self.request = request
        request.connection = self
        self._is_sent = False
        self.http_client.epoll.defer(self.send_request)

    def send_request(self) -> None:
        """Send the request, after all events of the poll in which the connection was chosen."""
        request = self.request
        if request is None:
            return  # the request is over
        if self._was_used:
            fcntl.ioctl(self.fd, termios.FIONREAD, _UNREAD)
            if _UNREAD[0]:
                self._on_lost()  # what has arrived before the request is not its response
                return
        self._is_sent = True
        try:
            sent = self.sock.send(request.data)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self._on_lost(error)
            return
        if sent < len(request.data):
            self._unsent = request.data[sent:]
            self.http_client.epoll.modify(self.fd, READ | WRITE)

    # -- readiness

    def on_event(self, mask: int) -> None:
        """Connect, send the rest of the request, read the response."""
        try:
            if self.is_open:
                if self._unsent and mask & WRITE:
                    self._send_unsent()
                elif mask & _READABLE:
                    self._receive()
            elif self._is_in_handshake:
                self._do_handshake()
            else:
                self._on_connected(mask)
        except WOULD_BLOCK:
            pass
        except AuthUnavailable as error:
            self._fail(error)
        except OSError as error:
            self._on_lost(error)

    def _send_unsent(self) -> None:
        sent = self.sock.send(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self.http_client.epoll.modify(self.fd, READ)

    def _receive(self) -> None:
        data, http_client, request = self.sock.recv(_READ), self.http_client, self.request
        if http_client.tls is not None:
            while self.sock.pending():
                data += self.sock.recv(_READ)
        if request is None:
            self._read_body(data) if data else self.close()
        elif not data or not self._is_sent:  # what arrives before the request is not its response
            self._on_lost()
        elif self._head or self._interim_bytes or (known := http_client.heads.find(data)) is None:
            self._read_head(request, self._head + data)
        else:
            request.head = data
            head, password = known
            self._read_response(request, head, password, b"")

    def _read_head(self, request: PendingRequest, data: bytes) -> None:
        """Read the response's head when it is complete, and skip interim responses before it."""
        seen = len(self._head)
        while True:
            end = head_end(data, seen)
            if self._interim_bytes + (len(data) if end < 0 else end) > MAX_HEAD:
                raise InvalidAuthResponse(f"a header of more than {MAX_HEAD} bytes")
            if end < 0:
                self._head = data
                return
            request.head, rest = data[:end], data[end:]
            heads = self.http_client.heads
            known = heads.find(request.head) if rest else None  # a head alone was searched for before
            try:
                head, password = known or heads.read(request.head)
            except InterimResponse:
                self._interim_bytes += end
                data, seen = rest, 0
            else:
                self._read_response(request, head, password, rest)
                return

    def _read_response(
        self, request: PendingRequest, head: ResponseHead, sent: bytes | None, rest: bytes
    ) -> None:
        """Make the decision from a response.

        Args:
            request: What it answers.
            head: The head of the response.
            sent: The password in it.
            rest: What was received after the head.
        """
        server, credentials = request.server, request.auth_request.credentials
        try:
            decision = decide(head, sent, server.protocol, credentials, self.http_client.accepts_names)
            if head.address is None and isinstance(decision, AuthAllowed) and decision.upstream_group:
                check_group(decision, server, credentials.password)
            if server.auth_http_overrides:
                set_overrides(decision, request.head, server, credentials.password)
        except InvalidAuthResponse as error:
            if error.status != _REQUEST_TIMEOUT or not self._may_resend(request):
                raise
            self._resend(request)
            return
        if head.status == _REQUEST_TIMEOUT and self._may_resend(request):
            self._resend(request)  # the service closes a connection that was idle for too long
        else:
            self._on_response(request, decision, head, rest)

    def _on_response(
        self, request: PendingRequest, decision: Decision, head: ResponseHead, rest: bytes
    ) -> None:
        callback = request.callback
        self.request = None
        self._head = b""
        self._interim_bytes = 0
        try:
            self.http_client.finish(request, _OUTCOMES[decision.__class__])
            self._reuse(head, rest)
        except Exception as error:  # an entry point: this is no longer known to carry a request
            self.http_client.context.handle_error(callback, error)
            self.close()
            return
        try:
            if callback is not None:
                callback(decision)
        except Exception as error:  # an entry point: this may carry another request by now
            self.http_client.context.handle_error(callback, error)

    # -- between requests

    def _reuse(self, head: ResponseHead, rest: bytes) -> None:
        """Keep the connection for other requests, if the body ends soon."""
        if not head.keep_alive or self._unsent or not self.http_client.keeps_alive:
            self.close()
            return
        if not self._was_used:
            self._was_used = True
            self._keep_alive()
        if rest == head.framing.empty:
            self.http_client.on_idle(self)
            return
        self._body = body_of(head.framing)
        self._read_body(rest)

    def _keep_alive(self) -> None:
        """Let the kernel detect that a kept connection is dead."""
        if self.target is None or self.target[0] == socket.AF_UNIX:
            return
        option = self.sock.setsockopt
        with suppress(OSError):
            option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPIDLE)
            option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPINTVL)
            option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)

    def _read_body(self, data: bytes) -> None:
        """Skip the rest of a body; the connection is free at its end, and is closed on anything else."""
        body = self._body
        try:
            if body is None or body.feed(data) < len(data):
                raise BadBody("more than the body")
        except BadBody:
            self.close()
            return
        if body.is_complete:
            self._body = None
            self.http_client.context.timers.disarm(self)
            self.http_client.on_idle(self)
        elif self.timer is None:
            self.http_client.body_timeouts.arm(self)

    def on_timeout(self) -> None:
        """Connecting to an address, or a body, took too long."""
        if self.is_open:
            self.close()
        else:
            self._try_next(_connect_error(self.target, "timed out"))

    # -- the end

    def _may_resend(self, request: PendingRequest) -> bool:
        return self._was_used and not self._interim_bytes and not request.is_repeated

    def _resend(self, request: PendingRequest) -> None:
        request.is_repeated = True
        self.request = None
        self.http_client.resend(self, request)

    def _on_lost(self, error: OSError | None = None) -> None:
        """The connection is broken: send its request on another, if it was not sent, or may be sent twice."""
        request = self.request
        if isinstance(error, TimeoutError):
            self.http_client.close_idle()
        if request is None:
            self.close()
        elif self._was_used and not self._is_sent:
            self.request = None
            self.http_client.resend(self, request)
        elif not self._head and self._may_resend(request):
            self._resend(request)
        else:
            reason = (error.strerror or str(error)) if error else "closed before the header ended"
            where = _address_text(self.target)
            self._fail(AuthUnreachable(f"the connection to {where} was lost: {reason}"))

    def _fail(self, error: AuthUnavailable) -> None:
        request, self.request = self.request, None
        callback = None if request is None else request.callback
        try:
            if request is not None:
                self.http_client.on_failure(request, error)
        except Exception as crash:  # an entry point: this is no longer known to carry a request
            self.http_client.context.handle_error(callback, crash)
            callback = None
        self.close()
        if callback is not None:
            self.http_client.deliver(callback, error)

    def on_internal_error(self) -> None:
        """Fail the request, and close the connection."""
        self._fail(AuthUnavailable("internal error"))

    def force_close(self) -> None:
        """Close in whatever state it is."""
        self.request = None
        with suppress(Exception):
            self.close()

    def _close(self) -> None:
        self.http_client.context.timers.disarm(self)
        self._is_in_handshake = self.is_open = False
        if self.sock is not None:
            self.http_client.epoll.close_socket(self.sock, self.fd)
            self.sock, self.fd = None, -1

    def close(self) -> None:
        """Close the connection."""
        self._close()
        self.http_client.on_closed(self)


def _address_text(target: Target | None) -> str:
    return "?" if target is None else target_text(target)


def _connect_error(target: Target | None, reason: str) -> AuthUnreachable:
    return AuthUnreachable(f"connecting to {_address_text(target)} failed: {reason}")

# SPDX-License-Identifier: Apache-2.0
"""The connection to an upstream: connect, log in on the client's behalf."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mailproxy.enums import ProtocolErrorKind, UpstreamStage, UpstreamTlsFailure
from mailproxy.errors import PeerDisconnected, PeerTimedOut, UpstreamError, UpstreamTlsError
from mailproxy.loop.epoll import BROKEN, READ, WRITE
from mailproxy.protocols import sansio
from mailproxy.protocols.sansio import Effect
from mailproxy.protocols.types import UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import reason_of
from mailproxy.protocols.upstream_tls import injected
from mailproxy.session.driver import PENDING, READING, DriverState, ProtocolDriver
from mailproxy.tls.connection import HandshakeStep
from mailproxy.tls.upstream_connection import UpstreamTlsConnection
from mailproxy.tls.upstream_context import Peer

if TYPE_CHECKING:
    from mailproxy.session.session import Session

Target = str | tuple[str, int]
"""The path of a UNIX socket, or an address and a port."""

_IN_PROGRESS: Final = frozenset({errno.EINPROGRESS, errno.EAGAIN})
_CONNECTED_ERRNOS: Final = frozenset({0, errno.ECONNRESET, errno.EPIPE})
"""``SO_ERROR`` of a connection that was established, even if it is broken by now."""
_TCP_INFO: Final = struct.Struct("=68x I 28x I")
"""Of ``struct tcp_info``: ``tcpi_rtt`` in microseconds, and ``tcpi_total_retrans``."""
# As plain numbers: enums of the socket module take longer than the connection.
_IPV4, _IPV6, _UNIX = int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)
_TYPE: Final = int(socket.SOCK_STREAM) | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_TCP, _NODELAY = int(socket.IPPROTO_TCP), int(socket.TCP_NODELAY)


class UpstreamConnection(ProtocolDriver):
    """One login at an upstream, from connecting to the last reply.

    The whole of it is limited by one deadline, the directive ``timeout``.  In
    every protocol the server sends first, so its greeting is polled for at
    once; it also shows that the connection is established.

    Either ``Session.on_upstream_login`` or ``Session.on_upstream_error`` is
    called once, but neither where ``__init__`` raises.

    Attributes:
        owner: The session that an internal error ends, also after the login.
    """

    __slots__ = ("_handshake_started", "_is_connecting", "_name", "_session", "_started", "_target", "owner")

    def __init__(self, session: Session, login: UpstreamLogin, name: str = "") -> None:
        """Connect at the end of this event loop iteration.

        Args:
            session: Waits for the login.
            login: Where, and what to log in with.
            name: The host name that was resolved to the address; its certificate must have it.

        Raises:
            UpstreamError: No socket can be made, for lack of descriptors perhaps.
        """
        context, server, grant = session.context, session.server, login.grant
        upstream = server.upstream
        seconds = upstream.server.timeout
        address, port = grant.address, grant.port
        self._target = target = address.removeprefix("unix:") if port == 0 else (address, port)
        generator = upstream.log_in(session.client, login)
        sock = open_socket(target)
        ProtocolDriver.__init__(self, context, sock, sock.fileno(), seconds)
        self.owner = session
        self._session: Session | None = session
        self._generator = generator
        self._name = name
        self._is_connecting = True
        self._handshake_started = 0.0  # monotonic, in seconds, while TLS is started
        self._started = started = context.epoll.now
        self._deadline = started + seconds
        server.login_timeouts.arm(self)
        context.epoll.defer(self._connect)

    # -- connecting

    def _connect(self) -> None:
        session = self._session
        if session is None:
            return  # the client has left meanwhile
        code = self._connect_socket()
        if code != 0 and code not in _IN_PROGRESS:
            self._on_connect_failed(session, code)
            return
        if code != 0 and session.server.upstream.has_preamble:
            self._events = READ | WRITE  # the PROXY header or a ClientHello is sent before the greeting comes
        self.context.epoll.add(self.fd, self, self._events)
        if code == 0:
            self._on_connected(session, time.monotonic() - self._started)

    def _connect_socket(self) -> int | None:
        """Return the error number of connect(2), 0 when connected, ``None`` for an invalid address."""
        target, sock = self._target, self.sock
        try:
            if isinstance(target, str):
                # A UNIX socket whose queue is full: EAGAIN, and no event when there is room again.
                code = sock.connect_ex(target)
                return errno.ECONNREFUSED if code == errno.EAGAIN else code
            sock.setsockopt(_TCP, _NODELAY, 1)
            return sock.connect_ex(target)
        except (OSError, OverflowError) as error:
            return getattr(error, "errno", None)

    def _on_other_event(self, mask: int) -> None:
        session = self._session
        if not self._is_connecting:
            if self._handshake_started and session is not None:
                self._continue_handshake(session)
            else:
                super()._on_other_event(mask)
            return
        if session is None:
            return
        if mask & BROKEN:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code not in _CONNECTED_ERRNOS:
                self._on_connect_failed(session, code)
                return
        self._on_connected(session, self._connect_seconds())
        self.set_events(READ)
        if self.state is READING:
            self.on_event(mask)

    def _on_connected(self, session: Session, seconds: float) -> None:
        self._is_connecting = False
        session.protocol_metrics.upstream_connect[True].observe(seconds)
        self._run(None)

    def _on_connect_failed(self, session: Session, code: int | None) -> None:
        self._is_connecting = False
        session.protocol_metrics.upstream_connect[False].observe(time.monotonic() - self._started)
        self.release()
        self._on_error(_connect_error(code))

    def _connect_seconds(self) -> float:
        """Return how long connecting took: one round trip, as measured by the kernel (tcp(7), ``TCP_INFO``).

        After a retransmission, or without that measurement: the time until now.
        """
        try:
            info = self.sock.getsockopt(_TCP, socket.TCP_INFO, _TCP_INFO.size)
            microseconds, retransmissions = _TCP_INFO.unpack(info)
        except (OSError, struct.error):
            microseconds, retransmissions = 0, 0
        if microseconds and not retransmissions:
            return microseconds * 1e-6  # type: ignore[no-any-return]
        return self.context.epoll.now - self._started

    # -- TLS

    def _start_tls(self, _effect: sansio.UpgradeToTls) -> object:
        session = self._session
        if session is None:
            return PENDING
        server, target = session.server, self._target
        assert server.upstream_tls is not None  # noqa: S101 - the application builds it with proxy_ssl
        if server.upstream.starts_tls and _has_unread(self.sock):
            raise injected("STARTTLS")
        peer = Peer(target, 0) if isinstance(target, str) else Peer(*target, self._name)
        self.sock = self.tls = UpstreamTlsConnection.start(self.sock, server.upstream_tls, peer)
        self._handshake_started = time.monotonic()
        self.context.epoll.defer(partial(self._continue_handshake, session))
        return PENDING

    def _continue_handshake(self, session: Session) -> None:
        """Perform one step of the TLS handshake."""
        connection = self.tls
        if not isinstance(connection, UpstreamTlsConnection) or not self._handshake_started:
            return
        try:
            step = connection.handshake()
        except UpstreamTlsError as error:
            self._handshake_started = 0.0
            self.throw(error)
            return
        if step is not HandshakeStep.DONE:
            self.set_events(WRITE if step is HandshakeStep.WANT_WRITE else READ)
            return
        seconds = time.monotonic() - self._handshake_started
        self._handshake_started = 0.0
        session.protocol_metrics.upstream_tls_seconds[connection.is_resumed].observe(seconds)
        session.server.record_upstream_tls(session.record)
        if not connection.is_resumed and (expiry := connection.certificate_expiry()) is not None:
            self.context.metrics.upstream_certificate_seen(session.server.config.name, expiry)
        self.set_events(READ)
        self.resume(None)

    def _remember_tls_session(self) -> None:
        if isinstance(self.tls, UpstreamTlsConnection):
            self.tls.remember_session()

    # -- the login

    def on_timeout(self) -> None:
        """``timeout`` has passed, in whatever state the login is."""
        session = self._session
        if self._is_connecting and session is not None:
            if not _is_connected(self.sock):
                self._on_connect_failed(session, errno.ETIMEDOUT)
                return
            self._on_connected(session, self._connect_seconds())
        if self._handshake_started:
            self._handshake_started = 0.0
            self.throw(UpstreamTlsError(UpstreamTlsFailure.TIMEOUT, "TLS handshake timed out"))
        elif self.state is DriverState.IDLE:
            self.release()
            self._on_error(PeerTimedOut())
        else:
            super().on_timeout()

    def _on_result(self, result: UpstreamLoginResult) -> None:
        session, self._session = self._session, None
        if session is not None:
            self.context.timers.disarm(self)
            if self.tls is not None:
                self._remember_tls_session()
            session.on_upstream_login(self, result)

    def _on_error(self, error: Exception) -> None:
        session, self._session = self._session, None
        self.close()
        if session is None:
            return
        if isinstance(error, PeerDisconnected):
            kind = None if isinstance(error, PeerTimedOut) else ProtocolErrorKind.OTHER
            error = UpstreamError(reason_of(error), stage=UpstreamStage.LOGIN, kind=kind)
        self._on_failed(session, error)

    def _on_failed(self, session: Session, error: Exception) -> None:
        """The login failed; the connection is closed."""
        session.on_upstream_error(error)

    # -- the end

    def cancel(self) -> None:
        """Close without calling the session: the client has left."""
        self._session = None
        self.release()
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._handshake_started = 0.0
        if self.fd >= 0:
            self.context.epoll.close_socket(self.sock, self.fd)
            self.fd = -1
            self._events = READ  # so that ``set_events(READ)`` of a caller has no effect

    @property
    def unsent(self) -> bytes:
        """Bytes that the upstream has not accepted yet."""
        return self._outgoing

    _EFFECTS: ClassVar[Mapping[type[Effect], Callable[[Any, Any], object]]] = {
        sansio.SetDeadline: ProtocolDriver.set_deadline,
        sansio.UpgradeToTls: _start_tls,
        sansio.Wait: ProtocolDriver.wait,
    }


def open_socket(target: Target) -> socket.SocketType:
    """Make a socket for a target.

    Raises:
        UpstreamError: There are no descriptors, or no IPv6.
    """
    family = _UNIX if isinstance(target, str) else _IPV6 if ":" in target[0] else _IPV4
    try:
        return socket.SocketType(family, _TYPE)
    except OSError as error:
        raise _connect_error(error.errno) from error


def _has_unread(sock: socket.SocketType) -> bool:
    """Whether bytes in clear text wait to be read, or the connection has ended."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _is_connected(sock: socket.SocketType) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _connect_error(code: int | None) -> UpstreamError:
    reason = os.strerror(code) if code else "not an address to connect to"
    return UpstreamError(f"connecting failed: {reason}", stage=UpstreamStage.CONNECT)

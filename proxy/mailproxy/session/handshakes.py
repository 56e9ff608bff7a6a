# SPDX-License-Identifier: Apache-2.0
"""What may come before the greeting: the PROXY header and the TLS handshake; STARTTLS uses the latter, too.

While it lasts, it is the handler of the session's descriptor; ``detach`` ends that.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from mailproxy.enums import CloseReason, Limit, ProtocolErrorKind, ProxyHeaderResult, TlsFailure, TlsMode
from mailproxy.errors import PeerClosed, PeerTimedOut, SessionError, TlsFailed
from mailproxy.loop.epoll import READ, WRITE
from mailproxy.loop.timeouts import Deadlines
from mailproxy.protocols import proxy_protocol, real_ip
from mailproxy.protocols.frontend import UNEXPECTED_PROXY_HEADER
from mailproxy.protocols.types import TlsInfo
from mailproxy.tls.connection import HandshakeStep, TlsConnection, TlsHandshakeFailed, cork
from mailproxy_config.model import LogLevel

if TYPE_CHECKING:
    from mailproxy.session.session import Session
    from mailproxy.session.virtual_server import VirtualServer

_MAX_HEADER: Final = 4096 + 16
"""Bytes that are read for a PROXY header at a time: the longest of version 2."""


class ProxyHeaderFailed(SessionError):
    """The client sent no PROXY header, or an invalid one, to a listener with ``proxy_protocol``."""

    reason = CloseReason.PROXY_PROTOCOL_FAILED


class TooManyConnections(SessionError):
    """An address has too many connections that have not logged in (``limit_preauth``)."""

    reason = CloseReason.LIMIT


class AddressBlocked(SessionError):
    """The address in the PROXY header is blocked (``auth_block``)."""

    reason = CloseReason.LIMIT


class ProxyHeaderReader:
    """Reads the PROXY header, and not one byte more (``listen ... proxy_protocol``).

    Attributes:
        owner: The session that an internal error ends, before and after ``detach``.
        session: The same; ``None`` after ``detach``.
    """

    __slots__ = ("_seen", "_then_tls", "owner", "session", "timer")

    def __init__(self, session: Session, *, then_tls: bool) -> None:
        self.owner = session
        self.session: Session | None = session
        self.timer: Deadlines | None = None
        self._then_tls = then_tls
        self._seen = b""

    @property
    def can_reply(self) -> bool:
        """Whether the client can read a reply in clear: not where it begins with TLS."""
        return not self._then_tls

    def begin(self) -> None:
        """Wait for the header, at most for ``timeout``."""
        session = self.session
        assert session is not None  # noqa: S101 - fresh
        session.context.epoll.set_handler(session.fd, self)
        session.context.timers.arm(self, session.server.config.timeout)

    def on_event(self, mask: int) -> None:
        """Peek at what came, and read as much of it as the header has."""
        del mask
        session = self.session
        if session is None:
            return
        try:
            header = self._read(session.sock)
        except BlockingIOError:
            return
        except proxy_protocol.BadHeader as bad:
            self._failed(bad.result)
        except OSError:
            self._failed(ProxyHeaderResult.MISSING)
        else:
            if header is not None:
                self._done(header)

    def _read(self, sock: socket.SocketType) -> proxy_protocol.Header | None:
        chunk = sock.recv(_MAX_HEADER, socket.MSG_PEEK)
        if not chunk:
            raise proxy_protocol.BadHeader(
                ProxyHeaderResult.INVALID if self._seen else ProxyHeaderResult.MISSING
            )
        header = proxy_protocol.read_header(self._seen + chunk)
        if header is None:
            self._seen += sock.recv(len(chunk))
        else:
            sock.recv(header.consumed - len(self._seen))
        return header

    def _done(self, header: proxy_protocol.Header) -> None:
        session = self.detach()
        if session is None:
            return
        client, server = session.client, session.server
        result = header.result
        client.proxied = header.addresses
        if header.addresses is not None and server.trusted:
            if real_ip.apply_real_ip(client, server.trusted):
                record = session.record
                record.client, record.client_port, record.proxied = client.address, client.port, True
            else:
                result = ProxyHeaderResult.UNTRUSTED
        server.metrics.proxy_headers[result].value += 1
        if server.blocks is not None and server.blocks.is_blocked(client.address):
            server.metrics.limit_rejections[Limit.BLOCKED].value += 1
            session.on_handshake_failed(AddressBlocked())
            return
        if server.preauth is not None:
            session.record.held = server.preauth.admit(client.address, server.metrics)
            if session.record.held is None:
                session.on_handshake_failed(TooManyConnections())
                return
        session.on_proxy_header(then_tls=self._then_tls)

    def on_timeout(self) -> None:
        """There was no header within ``timeout``."""
        self._failed(ProxyHeaderResult.TIMEOUT)

    def _failed(self, result: ProxyHeaderResult) -> None:
        session = self.detach()
        if session is None:
            return
        session.server.metrics.proxy_headers[result].value += 1
        received = self._seen + _peek(session.sock)
        if received or result is ProxyHeaderResult.TIMEOUT:
            level = LogLevel.INFO if result is ProxyHeaderResult.TIMEOUT else LogLevel.ERROR
            excerpt = proxy_protocol.excerpt(received)
            session.log_event(level, "proxy_protocol_failed", result=result, received=excerpt)
        else:
            session.record.is_silent = True
        session.on_handshake_failed(ProxyHeaderFailed(result))

    def detach(self) -> Session | None:
        """Stop, and return the session; ``None`` after the first call.  The caller sets the next handler."""
        session, self.session = self.session, None
        if session is not None:
            session.context.timers.disarm(self)
        return session


class TlsHandshake:
    """Performs a TLS handshake on the session's connection, within ``timeout``.

    What OpenSSL sends in the last step, session tickets above all, is corked
    (tcp(7), ``TCP_CORK``) until the end of the event loop iteration, and sent
    together with the greeting.

    Attributes:
        can_reply: Whether the client can read a reply: when the handshake is complete.
        owner: The session that an internal error ends, before and after ``detach``.
        session: The same; ``None`` after ``detach``.
    """

    __slots__ = (
        "_has_begun",
        "_is_corked",
        "_mode",
        "_started",
        "_then",
        "can_reply",
        "owner",
        "session",
        "timer",
    )

    def __init__(self, session: Session, mode: TlsMode, then: Callable[[TlsInfo], None]) -> None:
        self.owner = session
        self.session: Session | None = session
        self.can_reply = False
        self.timer: Deadlines | None = None
        self._is_corked = False
        self._has_begun = False
        self._mode = mode
        self._then = then
        self._started = time.monotonic()

    def begin(self, seconds: float) -> None:
        """Wrap the session's socket and wait for the ClientHello."""
        session = self.session
        assert session is not None  # noqa: S101 - fresh
        tls = session.server.tls
        assert tls is not None  # noqa: S101 - the loader demands certificates where TLS is used
        session.sock = session.tls = tls.accept(session.sock)
        session.context.epoll.set_handler(session.fd, self)
        session.context.timers.arm(self, seconds)
        session.set_events(READ)

    def on_event(self, mask: int) -> None:
        """Perform one step of the handshake."""
        del mask
        session = self.session
        if session is None:
            return
        sock = session.sock
        assert isinstance(sock, TlsConnection)  # noqa: S101 - begin() wrapped it
        if self._has_begun:
            self._is_corked = cork(sock, 1)
        elif session.server.suspects_proxy_header:
            _check_for_proxy_header(session)
        try:
            step = sock.handshake()
        except TlsHandshakeFailed as error:
            self._failed(error.failure, error.detail)
            return
        if step is HandshakeStep.DONE:
            self._done(sock)
            if self._is_corked:
                session.context.epoll.defer(partial(self._uncork, sock))
            return
        if self._is_corked:
            cork(sock, 0)  # it was not the last step
        self._has_begun = True
        session.set_events(WRITE if step is HandshakeStep.WANT_WRITE else READ)

    def _uncork(self, sock: TlsConnection) -> None:
        cork(sock, 0)

    def _done(self, sock: TlsConnection) -> None:
        session = self.detach()
        if session is None:
            return
        self.can_reply = True
        info = sock.info()
        metrics = session.context.metrics
        metrics.tls_handshakes[self._mode, info.version].value += 1
        metrics.tls_seconds[self._mode].observe(time.monotonic() - self._started)
        if info.resumed:
            metrics.tls_resumed[self._mode].value += 1
        if session.server.choices is not None:
            enter_server(session, session.server.choices[sock.server])
        session.record.tls = info.version
        session.record.cipher = info.cipher
        session.record.server_name = info.server_name
        session.context.epoll.set_handler(session.fd, session)
        session.set_events(READ)
        self._then(info)

    def on_timeout(self) -> None:
        """The handshake took longer than ``timeout``."""
        self._failed(TlsFailure.TIMEOUT, "timed out")

    def _failed(self, failure: TlsFailure, detail: str) -> None:
        session = self.detach()
        if session is None:
            return
        session.context.metrics.tls_failures[self._mode, failure].value += 1
        if failure is TlsFailure.NOT_TLS:
            session.server.suspects_proxy_header = True
        elif failure is TlsFailure.EOF and not self._has_begun and self._mode is TlsMode.IMPLICIT:
            session.record.is_silent = True
        if failure is TlsFailure.ALPN_MISMATCH:
            session.server.protocol_metrics.errors[ProtocolErrorKind.ALPN_MISMATCH].value += 1
        if failure is TlsFailure.TIMEOUT:
            session.on_handshake_failed(PeerTimedOut())
        elif failure is TlsFailure.EOF:
            session.on_handshake_failed(PeerClosed())
        else:
            session.log_event(LogLevel.INFO, "tls_handshake_failed", reason=failure, detail=detail)
            session.on_handshake_failed(TlsFailed(failure))

    def detach(self) -> Session | None:
        """Stop, and return the session; ``None`` after the first call.  The caller sets the next handler."""
        session, self.session = self.session, None
        if session is not None:
            session.context.timers.disarm(self)
        return session


def enter_server(session: Session, server: VirtualServer) -> None:
    """Continue a session in the ``server`` block that its ClientHello has chosen."""
    session.server.metrics.active.value -= 1
    server.metrics.accepted.value += 1
    server.metrics.active.value += 1
    session.server = server
    session.protocol_metrics = server.protocol_metrics
    session._enter(server.protocol_metrics.starting)  # noqa: SLF001 - a step of the session, like those above
    session._send_seconds = server.config.timeout  # noqa: SLF001
    session.record.server = server.log_fields


def _peek(sock: socket.SocketType) -> bytes:
    """Return the first unread bytes, and leave them unread; those of a TLS connection are not decrypted."""
    try:
        return socket.SocketType.recv(sock, _MAX_HEADER, socket.MSG_PEEK)
    except OSError:
        return b""


def _check_for_proxy_header(session: Session) -> None:
    """Report an unexpected PROXY header, the likely reason why handshakes fail behind a load balancer.

    OpenSSL does not return bytes that are not TLS, so this is checked on the
    connection after one that failed.
    """
    if not proxy_protocol.begins_header(_peek(session.sock)):
        session.server.suspects_proxy_header = False
        return
    session.server.protocol_metrics.errors[ProtocolErrorKind.PROXY_HEADER].value += 1
    session.record.error = ProtocolErrorKind.PROXY_HEADER
    session.record.errors += 1
    session.log_event(LogLevel.ERROR, UNEXPECTED_PROXY_HEADER)

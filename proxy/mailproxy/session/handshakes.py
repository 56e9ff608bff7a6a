# SPDX-License-Identifier: Apache-2.0
"""What may come before a conversation: the PROXY header, and the TLS handshake.

A stage owns the descriptor while it lasts, and hands it back to the session.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason, ProtocolErrorKind, ProxyHeaderResult, TlsFailure, TlsMode
from mailproxy.errors import PeerClosed, PeerTimedOut, SessionError, TlsFailed
from mailproxy.loop.epoll import READ, WRITE, Handler
from mailproxy.loop.timeouts import Deadlines
from mailproxy.protocols import proxy_protocol, real_ip
from mailproxy.protocols.frontend import UNEXPECTED_PROXY_HEADER
from mailproxy.protocols.types import Client, TlsInfo
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import Field, SessionRecord
from mailproxy.tls.connection import HandshakeStep, TlsConnection, TlsHandshakeFailed, cork
from mailproxy_config.model import LogLevel

_LOOK: Final = 4096 + 16


class ProxyHeaderFailed(SessionError):
    """The PROXY header that the listener asks for did not come, or is none."""

    reason = CloseReason.PROXY_PROTOCOL_FAILED


class Staged(Handler, Protocol):
    """A session, as far as what precedes its conversation deals with it."""

    client: Client
    engine: WorkerContext
    fd: int
    record: SessionRecord
    server: VirtualServer
    sock: socket.SocketType
    tls: TlsConnection | None

    def watch(self, mask: int) -> None:
        """Change what the socket is watched for."""
        ...

    def header_done(self, *, then_tls: bool) -> None:
        """The PROXY header was read; go on with TLS or the greeting."""
        ...

    def client_changed(self) -> None:
        """``set_real_ip_from`` replaced the client's address."""
        ...

    def stage_failed(self, error: SessionError) -> None:
        """The stage did not work out; there is nobody to tell."""
        ...

    def tell(self, level: LogLevel, event: str, **fields: Field) -> None:
        """Log something about this session."""
        ...


class ProxyHeaderReader:
    """Reads the PROXY header, and not one byte more (``listen ... proxy_protocol``).

    Attributes:
        owner: The session that ends with an exception of our own, before and after ``leave``.
        session: The same, until the descriptor is given back.
    """

    __slots__ = ("_seen", "_then_tls", "owner", "session", "timer")

    def __init__(self, session: Staged, *, then_tls: bool) -> None:
        self.owner = session
        self.session: Staged | None = session
        self.timer: Deadlines | None = None
        self._then_tls = then_tls
        self._seen = b""

    @property
    def can_reply(self) -> bool:
        """Whether the client understands a reply of its protocol: not where it begins with TLS."""
        return not self._then_tls

    def begin(self) -> None:
        """Wait for the header, at most ``timeout``."""
        session = self.session
        assert session is not None  # noqa: S101 - fresh
        session.engine.reactor.hand_over(session.fd, self)
        session.engine.timers.arm(self, session.server.config.timeout)

    def on_event(self, mask: int) -> None:
        """Look at what came; take it only as far as the header goes."""
        del mask
        session = self.session
        if session is None:
            return
        try:
            header = self._take(session.sock)
        except BlockingIOError:
            return
        except proxy_protocol.BadHeader as bad:
            self._failed(bad.result)
        except OSError:
            self._failed(ProxyHeaderResult.MISSING)
        else:
            if header is not None:
                self._done(header)

    def _take(self, sock: socket.SocketType) -> proxy_protocol.Header | None:
        chunk = sock.recv(_LOOK, socket.MSG_PEEK)
        if not chunk:
            raise proxy_protocol.BadHeader(
                ProxyHeaderResult.INVALID if self._seen else ProxyHeaderResult.MISSING
            )
        header = proxy_protocol.read(self._seen + chunk)
        if header is None:
            self._seen += sock.recv(len(chunk))
        else:
            sock.recv(header.consumed - len(self._seen))
        return header

    def _done(self, header: proxy_protocol.Header) -> None:
        session = self.leave()
        if session is None:
            return
        client, server = session.client, session.server
        result = header.result
        client.proxied = header.addresses
        if header.addresses is not None and server.trusted:
            if real_ip.apply(client, server.trusted):
                session.client_changed()
            else:
                result = ProxyHeaderResult.UNTRUSTED
        server.metrics.proxy_headers[result].value += 1
        session.header_done(then_tls=self._then_tls)

    def on_timeout(self) -> None:
        """No header within ``timeout``."""
        self._failed(ProxyHeaderResult.TIMEOUT)

    def _failed(self, result: ProxyHeaderResult) -> None:
        session = self.leave()
        if session is None:
            return
        session.server.metrics.proxy_headers[result].value += 1
        came = self._seen + _peek(session.sock)
        if came or result is ProxyHeaderResult.TIMEOUT:
            level = LogLevel.INFO if result is ProxyHeaderResult.TIMEOUT else LogLevel.ERROR
            received = proxy_protocol.excerpt(came)
            session.tell(level, "proxy_protocol_failed", result=result, received=received)
        else:
            session.record.is_silent = True
        session.stage_failed(ProxyHeaderFailed(result))

    def leave(self) -> Staged | None:
        """Give the descriptor back; ``None`` if that was done before."""
        session, self.session = self.session, None
        if session is not None:
            session.engine.timers.disarm(self)
        return session


class TlsHandshake:
    """Takes a TLS connection through its handshake, within ``timeout``.

    What the handshake's last step says, a ticket most of all, is held back
    (tcp(7), ``TCP_CORK``) until the turn ends, to leave with the greeting.

    Attributes:
        is_done: Whether the handshake is complete: from then on the client can be sent a reply.
        owner: The session that ends with an exception of our own, before and after ``leave``.
        session: The same, until the descriptor is given back.
    """

    __slots__ = (
        "_is_corked",
        "_is_halfway",
        "_mode",
        "_started",
        "_then",
        "is_done",
        "owner",
        "session",
        "timer",
    )

    def __init__(self, session: Staged, mode: TlsMode, then: Callable[[TlsInfo], None]) -> None:
        self.owner = session
        self.session: Staged | None = session
        self.is_done = False
        self.timer: Deadlines | None = None
        self._is_corked = False
        self._is_halfway = False
        self._mode = mode
        self._then = then
        self._started = time.monotonic()

    @property
    def can_reply(self) -> bool:
        """Whether the client can read a reply: once the handshake is complete."""
        return self.is_done

    def begin(self, seconds: float) -> None:
        """Wrap the session's socket and wait for the ClientHello."""
        session = self.session
        assert session is not None  # noqa: S101 - fresh
        tls = session.server.tls
        assert tls is not None  # noqa: S101 - the loader demands certificates where TLS is used
        session.sock = session.tls = tls.accept(session.sock)
        session.engine.reactor.hand_over(session.fd, self)
        session.engine.timers.arm(self, seconds)
        session.watch(READ)

    def on_event(self, mask: int) -> None:
        """Take the handshake one step on."""
        del mask
        session = self.session
        if session is None:
            return
        sock = session.sock
        assert isinstance(sock, TlsConnection)  # noqa: S101 - begin() wrapped it
        if self._is_halfway:
            self._is_corked = cork(sock, 1)
        elif session.server.suspects_proxy_header:
            _look_for_header(session)
        try:
            step = sock.handshake()
        except TlsHandshakeFailed as error:
            self._failed(error.failure, error.detail)
            return
        if step is HandshakeStep.DONE:
            self._done(sock)
            if self._is_corked:
                session.engine.reactor.at_end(partial(self._uncork, sock))
            return
        if self._is_corked:
            cork(sock, 0)  # it was not the last step
        self._is_halfway = True
        session.watch(WRITE if step is HandshakeStep.WANT_WRITE else READ)

    def _uncork(self, sock: TlsConnection) -> None:
        cork(sock, 0)

    def _done(self, sock: TlsConnection) -> None:
        session = self.leave()
        if session is None:
            return
        self.is_done = True
        info = sock.info()
        metrics = session.engine.metrics
        metrics.tls_handshakes[self._mode, info.version].value += 1
        metrics.tls_seconds[self._mode].observe(time.monotonic() - self._started)
        if info.resumed:
            metrics.tls_resumed[self._mode].value += 1
        session.record.tls = info.version
        session.record.cipher = info.cipher
        session.engine.reactor.hand_over(session.fd, session)
        session.watch(READ)
        self._then(info)

    def on_timeout(self) -> None:
        """The handshake took longer than ``timeout``."""
        self._failed(TlsFailure.TIMEOUT, "timed out")

    def _failed(self, failure: TlsFailure, detail: str) -> None:
        session = self.leave()
        if session is None:
            return
        session.engine.metrics.tls_failures[self._mode, failure].value += 1
        if failure is TlsFailure.NOT_TLS:
            session.server.suspects_proxy_header = True
        elif failure is TlsFailure.EOF and not self._is_halfway and self._mode is TlsMode.IMPLICIT:
            session.record.is_silent = True
        if failure is TlsFailure.ALPN_MISMATCH:
            session.server.numbers.errors[ProtocolErrorKind.ALPN_MISMATCH].value += 1
        if failure is TlsFailure.TIMEOUT:
            session.stage_failed(PeerTimedOut())
        elif failure is TlsFailure.EOF:
            session.stage_failed(PeerClosed())
        else:
            session.tell(LogLevel.INFO, "tls_handshake_failed", reason=failure, detail=detail)
            session.stage_failed(TlsFailed(failure))

    def leave(self) -> Staged | None:
        """Give the descriptor back; ``None`` if that was done before."""
        session, self.session = self.session, None
        if session is not None:
            session.engine.timers.disarm(self)
        return session


def _peek(sock: socket.SocketType) -> bytes:
    """The first bytes that are there, left where they are; a TLS connection's as they came."""
    try:
        return socket.SocketType.recv(sock, _LOOK, socket.MSG_PEEK)
    except OSError:
        return b""


def _look_for_header(session: Staged) -> None:
    """Name the likely reason why handshakes fail here: a balancer sends a PROXY header that nobody expects.

    OpenSSL does not give back what was no TLS, so a connection before this one has to have failed.
    """
    if not proxy_protocol.begins(_peek(session.sock)):
        session.server.suspects_proxy_header = False
        return
    session.server.numbers.errors[ProtocolErrorKind.PROXY_HEADER].value += 1
    session.record.error = ProtocolErrorKind.PROXY_HEADER
    session.record.errors += 1
    session.tell(LogLevel.ERROR, UNEXPECTED_PROXY_HEADER)

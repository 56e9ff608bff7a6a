# SPDX-License-Identifier: Apache-2.0
"""The other side: connecting to an upstream, and performing the login there."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Protocol

from mailproxy.closing import close_now
from mailproxy.context import WorkerContext
from mailproxy.enums import ProtocolErrorKind, UpstreamStage
from mailproxy.errors import PeerDisconnected, PeerTimedOut, UpstreamError
from mailproxy.loop.epoll import BROKEN, READ, WRITE
from mailproxy.protocols import sansio
from mailproxy.protocols.sansio import Action, ProtocolGenerator
from mailproxy.protocols.types import Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.session.driver import ASIDE, READING, ProtocolDriver
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.metrics import ProtocolMetrics
from mailproxy_config.model import SendProxyProtocol

Target = str | tuple[str, int]
"""The path of a UNIX socket, or an address and a port."""

_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EAGAIN})
_STOOD: Final = frozenset({0, errno.ECONNRESET, errno.EPIPE})
"""What is wrong with a connection that stood, if anything."""
_TOLD: Final = struct.Struct("=68x I 28x I")
"""Of ``tcp_info``: the round trip in microseconds, and how much was sent again."""
_DISABLED: Final = SendProxyProtocol.DISABLED
_CONNECTING: Final = READ | WRITE
# As plain numbers: a connection is made faster than an enumeration is asked.
_IPV4, _IPV6, _UNIX = int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)
_TYPE: Final = int(socket.SOCK_STREAM) | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_TCP, _NODELAY = int(socket.IPPROTO_TCP), int(socket.TCP_NODELAY)


class Principal(Protocol):
    """On whose behalf a login is made: told once how it went, but not where it cannot even begin."""

    client: Client
    engine: WorkerContext
    numbers: ProtocolMetrics
    server: VirtualServer

    def logged_in(self, link: UpstreamConnection, result: UpstreamLoginResult) -> None:
        """The upstream accepted; the connection is the principal's from here on."""
        ...

    def upstream_failed(self, error: Exception) -> None:
        """The upstream refused, could not be reached, or spoke nonsense."""
        ...


class UpstreamConnection(ProtocolDriver):
    """One login at an upstream, from the connect call to the last reply.

    One deadline, the directive ``timeout``, covers it all; progress does not
    extend it.  An upstream speaks first, in every protocol: so its greeting is
    awaited at once, and tells that the connection stands.

    Attributes:
        owner: The session that ends with an exception of our own, also when the login is over.
    """

    __slots__ = ("_is_connecting", "_session", "_started", "_target", "owner")

    def __init__(
        self,
        session: Principal,
        sock: socket.SocketType,
        target: Target,
        dialogue: ProtocolGenerator[UpstreamLoginResult],
    ) -> None:
        engine, server = session.engine, session.server
        seconds = server.config.timeout
        super().__init__(engine, sock, sock.fileno(), seconds)
        self.owner = session
        self._session: Principal | None = session
        self._dialogue = dialogue
        self._target = target
        self._is_connecting = True
        self._started = started = engine.reactor.now
        self._deadline = started + seconds
        server.patience.arm(self)
        engine.reactor.at_end(self._dial)

    @classmethod
    def connect(cls, session: Principal, identified: UpstreamLogin) -> UpstreamConnection:
        """Connect when the turn ends; the session is told how it went.

        Raises:
            UpstreamError: There is no way even to begin (no descriptors, say).
        """
        address, port = identified.grant.address, identified.grant.port
        path = address.removeprefix("unix:") if port == 0 else ""
        family = _UNIX if path else _IPV6 if ":" in address else _IPV4
        dialogue = session.server.upstream.log_in(session.client, identified)
        try:
            sock = socket.SocketType(family, _TYPE)
        except OSError as error:
            raise _failure(error.errno) from error
        return cls(session, sock, path or (address, port), dialogue)

    def _dial(self) -> None:
        """The turn ends: begin to connect."""
        session = self._session
        if session is None:
            return  # the client has left meanwhile
        code = self._call()
        if code != 0 and code not in _UNDER_WAY:
            self._refused(session, code)
            return
        if code != 0 and session.server.config.proxy_protocol is not _DISABLED:
            self._mask = _CONNECTING  # here it is we who speak first
        self.engine.reactor.add(self.fd, self, self._mask)
        if code == 0:
            self._stands(session, time.monotonic() - self._started)

    def _call(self) -> int | None:
        """Call; give the error number, 0 for a connection, ``None`` for what cannot be called."""
        target, sock = self._target, self.sock
        try:
            if isinstance(target, str):
                # One whose queue is full says EAGAIN, and nothing more when there is room again.
                code = sock.connect_ex(target)
                return errno.ECONNREFUSED if code == errno.EAGAIN else code
            sock.setsockopt(_TCP, _NODELAY, 1)
            return sock.connect_ex(target)
        except (OSError, OverflowError) as error:
            return getattr(error, "errno", None)

    def _on_other_event(self, mask: int) -> None:
        """The connection stands, or failed; after that, as any conversation."""
        if self._is_connecting:
            self._connected(mask)
        else:
            super()._on_other_event(mask)

    def _connected(self, mask: int) -> None:
        session = self._session
        if session is None:
            return
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if mask & BROKEN else 0
        if code not in _STOOD:
            self._refused(session, code)
            return
        self._stands(session, self._seconds_connecting())
        self._watch(READ)
        if self._state == READING:
            self.on_event(mask)

    def _stands(self, session: Principal, seconds: float) -> None:
        """The connection stands: book it, and begin the dialogue."""
        self._is_connecting = False
        session.numbers.upstream_connect[True].observe(seconds)
        self._run(None)

    def _refused(self, session: Principal, code: int | None) -> None:
        self._is_connecting = False
        session.numbers.upstream_connect[False].observe(time.monotonic() - self._started)
        self.release()
        self._failed(_failure(code))

    def _seconds_connecting(self) -> float:
        """How long it took to connect: one round trip, which the kernel has measured (tcp(7), ``TCP_INFO``).

        Where it had to try again, or does not tell, the time until now.
        """
        try:
            told = self.sock.getsockopt(_TCP, socket.TCP_INFO, _TOLD.size)
            microseconds, repeated = _TOLD.unpack(told)
        except (OSError, struct.error):
            microseconds, repeated = 0, 0
        if microseconds and not repeated:
            return microseconds * 1e-6  # type: ignore[no-any-return]
        return self.engine.reactor.now - self._started

    def on_timeout(self) -> None:
        """The upstream was too slow, whatever it was doing."""
        session = self._session
        if self._is_connecting and session is not None:
            if not _has_peer(self.sock):
                self._refused(session, errno.ETIMEDOUT)
                return
            self._stands(session, self._seconds_connecting())
        if self._state == ASIDE:
            self.release()
            self._failed(PeerTimedOut())
        else:
            super().on_timeout()

    def _finished(self, result: UpstreamLoginResult) -> None:
        session, self._session = self._session, None
        if session is not None:
            self.engine.timers.disarm(self)
            session.logged_in(self, result)

    def _failed(self, error: Exception) -> None:
        session, self._session = self._session, None
        self.drop()
        if session is not None:
            if isinstance(error, PeerDisconnected):
                error = self._gone(error)
            session.upstream_failed(error)

    def _gone(self, error: PeerDisconnected) -> UpstreamError:
        return UpstreamError(
            "upstream timed out" if isinstance(error, PeerTimedOut) else "upstream closed the connection",
            stage=UpstreamStage.LOGIN,
            kind=None if isinstance(error, PeerTimedOut) else ProtocolErrorKind.OTHER,
        )

    def abandon(self) -> None:
        """The client is gone: so is the reason for this connection."""
        self._session = None
        self.release()
        self.drop()

    def drop(self) -> None:
        """Close the connection."""
        if self.fd >= 0:
            close_now(self.engine, self.sock, self.fd)
            self.fd = -1

    def unsent(self) -> bytes:
        """What the upstream has not taken yet of what it was told."""
        return self._outgoing

    _PERFORM: ClassVar[Mapping[type[Action], Callable[[Any, Any], object]]] = {
        sansio.Deadline: ProtocolDriver.set_deadline,
        sansio.Wait: ProtocolDriver.wait,
    }


def _has_peer(sock: socket.SocketType) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _failure(code: int | None) -> UpstreamError:
    words = os.strerror(code) if code else "not an address to connect to"
    return UpstreamError(f"connecting failed: {words}", stage=UpstreamStage.CONNECT)

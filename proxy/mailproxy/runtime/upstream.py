# SPDX-License-Identifier: Apache-2.0
"""The other side: connecting to an upstream, and performing the login there."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Protocol

from mailproxy.dialogue import actions
from mailproxy.dialogue.actions import Action, Dialogue
from mailproxy.dialogue.values import Client, Identified, LoggedIn
from mailproxy.errors import PeerGone, PeerTimedOut, UpstreamError
from mailproxy.events import ProtocolErrorKind, UpstreamStage
from mailproxy.observe.meter import ProtocolMeter
from mailproxy.runtime.conversation import ASIDE, Conversation
from mailproxy.runtime.engine import Engine
from mailproxy.runtime.reactor import BROKEN, READ, WRITE
from mailproxy.runtime.server import Server

_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EAGAIN})
_CONNECTING: Final = READ | WRITE
# As plain numbers: a connection is made faster than an enumeration is asked.
_IPV4, _IPV6, _UNIX = int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)
_TYPE: Final = int(socket.SOCK_STREAM) | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_TCP, _NODELAY = int(socket.IPPROTO_TCP), int(socket.TCP_NODELAY)


class Principal(Protocol):
    """On whose behalf a login is made: told once how it went, but not where it cannot even begin."""

    client: Client
    engine: Engine
    numbers: ProtocolMeter
    server: Server

    def logged_in(self, link: UpstreamLink, result: LoggedIn) -> None:
        """The upstream accepted; the connection is the principal's from here on."""
        ...

    def upstream_failed(self, error: Exception) -> None:
        """The upstream refused, could not be reached, or spoke nonsense."""
        ...


class UpstreamLink(Conversation):
    """One login at an upstream, from the connect call to the last reply.

    One deadline, the directive ``timeout``, covers it all; progress does not
    extend it.
    """

    __slots__ = ("_connecting", "_session", "_started")

    def __init__(self, session: Principal, sock: socket.SocketType, dialogue: Dialogue[LoggedIn]) -> None:
        engine, seconds = session.engine, session.server.config.timeout
        super().__init__(engine, sock, sock.fileno(), seconds)
        self._session: Principal | None = session
        self._dialogue = dialogue
        self._connecting = True
        self._started = started = engine.reactor.now
        self._deadline = started + seconds
        self._mask = _CONNECTING
        engine.reactor.add(self.fd, self, _CONNECTING)
        session.server.patience.arm(self)

    @classmethod
    def connect(cls, session: Principal, identified: Identified) -> UpstreamLink:
        """Begin to connect; the session is told how it went.

        Raises:
            UpstreamError: There is no way even to begin (no route, no descriptors).
        """
        address, port = identified.grant.address, identified.grant.port
        path = address.removeprefix("unix:") if port == 0 else ""
        family = _UNIX if path else _IPV6 if ":" in address else _IPV4
        try:
            sock = socket.SocketType(family, _TYPE)
        except OSError as error:
            raise _failure(error.errno) from error
        try:
            if path:
                code = sock.connect_ex(path)
            else:
                sock.setsockopt(_TCP, _NODELAY, 1)
                code = sock.connect_ex((address, port))
        except (OSError, OverflowError) as error:
            sock.close()
            raise _failure(getattr(error, "errno", None)) from error
        # A UNIX socket whose queue is full says EAGAIN, and nothing more when there is room again.
        if code and (path or code not in _UNDER_WAY):
            sock.close()
            raise _failure(code)
        return cls(session, sock, session.server.upstream.log_in(session.client, identified))

    def _on_other_event(self, mask: int) -> None:
        """The connection stands, or failed; after that, as any conversation."""
        if self._connecting:
            self._connected(mask)
        else:
            super()._on_other_event(mask)

    def _connected(self, mask: int) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if mask & BROKEN else 0
        self._connecting = False
        session = self._session
        if session is None:
            return
        session.numbers.upstream_connect[code == 0].observe(self.engine.reactor.now - self._started)
        if code:
            self.release()
            self._failed(_failure(code))
        else:
            self._watch(READ)
            self._run(None)

    def on_timeout(self) -> None:
        """The upstream was too slow, whatever it was doing."""
        if self._connecting:
            self._connecting = False
            session = self._session
            if session is not None:
                session.numbers.upstream_connect[False].observe(time.monotonic() - self._started)
            self.release()
            self._failed(UpstreamError("connecting timed out", stage=UpstreamStage.CONNECT))
        elif self._state == ASIDE:
            self.release()
            self._failed(PeerTimedOut())
        else:
            super().on_timeout()

    def _finished(self, result: LoggedIn) -> None:
        session, self._session = self._session, None
        if session is not None:
            self.engine.timers.disarm(self)
            session.logged_in(self, result)

    def _failed(self, error: Exception) -> None:
        session, self._session = self._session, None
        self.drop()
        if session is not None:
            if isinstance(error, PeerGone):
                error = self._gone(error)
            session.upstream_failed(error)

    def _gone(self, error: PeerGone) -> UpstreamError:
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
            self.engine.reactor.forget(self.fd)
            self.sock.close()
            self.fd = -1

    def unsent(self) -> bytes:
        """What the upstream has not taken yet of what it was told."""
        return self._outgoing

    _PERFORM: ClassVar[Mapping[type[Action], Callable[[Any, Any], object]]] = {
        actions.Deadline: Conversation.set_deadline,
        actions.Wait: Conversation.wait,
    }


def _failure(code: int | None) -> UpstreamError:
    words = os.strerror(code) if code else "not an address to connect to"
    return UpstreamError(f"connecting failed: {words}", stage=UpstreamStage.CONNECT)

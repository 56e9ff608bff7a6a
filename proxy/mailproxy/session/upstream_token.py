# SPDX-License-Identifier: Apache-2.0
"""The connection to an upstream where the proxy logs in with an access token (``proxy_auth_token``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mailproxy.errors import TokenUnavailable, UpstreamError, UpstreamTokenRefused
from mailproxy.loop.epoll import READ
from mailproxy.protocols import sansio
from mailproxy.protocols.sansio import Effect
from mailproxy.protocols.types import Secret, UpstreamLogin
from mailproxy.session.driver import PENDING, DriverState
from mailproxy.session.upstream import UpstreamConnection, open_socket
from mailproxy_config.model import LogLevel

if TYPE_CHECKING:
    from mailproxy.session.session import Session


class TokenUpstreamConnection(UpstreamConnection):
    """One login with an access token.

    When the upstream refuses the token, a new one is requested, and the login is repeated once on a new
    connection.  All of it is limited by the one deadline of the login.
    """

    __slots__ = ("_has_retried", "_waits_for_token", "login")

    def __init__(self, session: Session, login: UpstreamLogin, name: str = "") -> None:
        super().__init__(session, login, name)
        self.login = login
        self._has_retried = False
        self._waits_for_token = False

    # -- the token

    def _get_token(self, _effect: sansio.GetToken) -> object:
        session = self._session
        if session is None:
            return PENDING  # the client has left meanwhile
        source = session.server.tokens
        assert source is not None  # noqa: S101 - the application makes it with proxy_auth_token
        token = source.get(self)
        if token is None:
            self._waits_for_token = True
            return PENDING
        return token

    def on_token(self, token: Secret | TokenUnavailable) -> None:
        """The token is there, or the request failed."""
        self._waits_for_token = False
        if isinstance(token, TokenUnavailable):
            self.throw(token)
        else:
            self.resume(token)

    def on_timeout(self) -> None:
        """``timeout`` has passed, in whatever state the login is."""
        if self._waits_for_token:
            self._forget_token_request()
            self.throw(TokenUnavailable("no access token within the timeout of the login"))
        else:
            super().on_timeout()

    def cancel(self) -> None:
        """Close without calling the session: the client has left."""
        self._forget_token_request()
        super().cancel()

    def _forget_token_request(self) -> None:
        session = self._session
        self._waits_for_token = False
        if session is not None and session.server.tokens is not None:
            session.server.tokens.cancel(self)

    # -- once more, with a new token

    def _on_error(self, error: Exception) -> None:
        session = self._session
        if session is not None:
            self._forget_token_request()
            if isinstance(error, UpstreamTokenRefused) and self._is_worth_retrying(session, error):
                try:
                    self._reconnect(session)
                except UpstreamError as failed:
                    error = failed
                else:
                    return
        super()._on_error(error)

    def _is_worth_retrying(self, session: Session, error: UpstreamTokenRefused) -> bool:
        source = session.server.tokens
        if self._has_retried or source is None or not source.refuse(error.token):
            return False
        session.log_event(LogLevel.WARN, "token_refused", reason="a new access token is requested")
        return True

    def _reconnect(self, session: Session) -> None:
        """Begin again on a new connection; the deadline stays."""
        self._has_retried = True
        self.close()
        self.sock = open_socket(self._target)
        self.fd = self.sock.fileno()
        self.tls = None
        self.state = DriverState.IDLE
        self._events = READ
        self._outgoing = b""
        self._pending_error = None
        self._is_connecting = True
        self._started = self.context.epoll.now
        self._generator = session.server.upstream.log_in(session.client, self.login)
        self.context.timers.arm(self, max(self._deadline - time.monotonic(), 0.0))
        self.context.epoll.defer(self._connect)

    _EFFECTS: ClassVar[Mapping[type[Effect], Callable[[Any, Any], object]]] = {
        **UpstreamConnection._EFFECTS,  # noqa: SLF001 - of its base
        sansio.GetToken: _get_token,
    }

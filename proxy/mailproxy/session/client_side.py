# SPDX-License-Identifier: Apache-2.0
"""The client's side of a session: PROXY header, TLS handshake, conversation, and the accounts of it all.

What the conversation asks for is performed here: the authorization service,
the resolver and the TLS handshake are asked, and what is told aside is booked.
Where it leads, to an upstream or to its end, is the session's business.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.dns import Cancel
from mailproxy.enums import LoginDenied, LoginRefused, LoginResult, Method, ProtocolViolation, TlsMode
from mailproxy.errors import AuthTimedOut, AuthUnavailable, InvalidAuthResponse, PeerClosed, SessionError
from mailproxy.loop.epoll import hung_up
from mailproxy.protocols import sansio
from mailproxy.protocols.sansio import Action
from mailproxy.protocols.types import (
    TEMPUNAVAIL,
    UNAVAILABLE,
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Client,
    Decision,
    TlsInfo,
)
from mailproxy.session.driver import PENDING, ProtocolDriver
from mailproxy.session.handshakes import ProxyHeaderReader, TlsHandshake
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import Field, SessionRecord
from mailproxy.telemetry.metrics import Gauge, ProtocolMetrics
from mailproxy_config.model import LogLevel

AUTH_STAGE: Final = "auth"
"""Where a login failed that never got to an upstream."""
_SUCCESS: Final = LoginResult.SUCCESS
_GIVE_UP: Final[Mapping[type[AuthUnavailable], LoginResult]] = {
    AuthTimedOut: LoginResult.TIMEOUT,
    InvalidAuthResponse: LoginResult.INVALID_RESPONSE,
}


class ClientSide(ProtocolDriver):
    """The conversation with one client, and all that precedes it.

    Who derives from this sets its attributes: an ``__init__`` here would cost
    one more call per client.

    Attributes:
        client: Who it is.
        numbers: What is counted for its protocol.
        record: What the session's line in the log will tell.
        server: The ``server`` block that it came to.
    """

    __slots__ = (
        "_asked",
        "_cancel",
        "_host",
        "_login_seconds",
        "_method",
        "_stage",
        "_state_gauge",
        "client",
        "numbers",
        "record",
        "server",
    )

    client: Client
    numbers: ProtocolMetrics
    record: SessionRecord
    server: VirtualServer
    _asked: float
    _cancel: Cancel | None
    _host: bytes | None
    _login_seconds: float
    _method: Method | None
    _stage: ProxyHeaderReader | TlsHandshake | None
    _state_gauge: Gauge

    @abstractmethod
    def crashed(self) -> None:
        """End with the protocol's internal error: an exception of our own belongs to this session."""

    # -- the way to the conversation

    def start(self, *, proxy_header: bool, tls: bool) -> None:
        """Begin with whatever the listener asks for first."""
        if proxy_header or tls:
            self._enter(self.numbers.starting)
            self._begin_stage(proxy_header=proxy_header, tls=tls)
        else:
            self.begin(self.server.frontend.converse(self.client))

    def _begin_stage(self, *, proxy_header: bool, tls: bool) -> None:
        if proxy_header:
            self._stage = ProxyHeaderReader(self, then_tls=tls)
            self._stage.begin()
        elif tls:
            self._shake_hands()
        else:
            self._enter(self.numbers.preauth)
            self.begin(self.server.frontend.converse(self.client))

    def _shake_hands(self) -> None:
        self._stage = stage = TlsHandshake(self, TlsMode.IMPLICIT, self._handshake_done)
        stage.begin(self.server.config.timeout)

    def header_done(self, *, then_tls: bool) -> None:
        """The PROXY header was read; go on with TLS or the greeting."""
        self._stage = None
        self.engine.reactor.hand_over(self.fd, self)
        self._begin_stage(proxy_header=False, tls=then_tls)

    def client_changed(self) -> None:
        """``set_real_ip_from`` replaced the client's address."""
        self.record.client = self.client.address
        self.record.client_port = self.client.port
        self.record.proxied = True

    def _handshake_done(self, info: TlsInfo) -> None:
        self._stage = None
        self.client.tls = info
        self._begin_stage(proxy_header=False, tls=False)

    def stage_failed(self, error: SessionError) -> None:
        """What comes before the conversation did not work out; there is nobody to tell."""
        self._stage = None
        self._failed(error)

    def watch(self, mask: int) -> None:
        """Change what the socket is watched for."""
        self._watch(mask)

    # -- what the conversation asks for

    def _authorize(self, action: sansio.Authorize) -> object:
        request: AuthRequest = action.request
        credentials = request.credentials
        record = self.record
        if request.attempt == record.attempts and hung_up(self.fd, ended=True):
            raise PeerClosed  # nobody waits any more for what was postponed
        record.user = credentials.user
        record.method = self._method = credentials.method
        record.attempts = request.attempt
        self._enter(self.numbers.auth)
        self._asked = time.monotonic()
        self._deadline = 0.0  # with its credentials complete, a client has kept it
        self.engine.timers.disarm(self)
        server = self.server
        server.auth.ask(
            PendingRequest(
                self,
                server.template.render(request),
                credentials,
                server.config.protocol,
                self.numbers.auth_seconds,
                self.engine.reactor.now,
            )
        )
        return PENDING

    def authorized(self, decision: Decision) -> None:
        """The authorization service answered."""
        try:
            self._spent_on_auth()
            if decision.__class__ is not AuthAllowed:
                if isinstance(decision, AuthDenied):
                    code = decision.code
                    is_temporary = code is not None and code.startswith(b"4")
                    self._count_login(LoginResult.TEMPORARY if is_temporary else LoginResult.DENIED)
                self._enter(self.numbers.preauth)
            self.resume(decision)
        except Exception as crash:  # an entry point: the connection to the service goes on
            self.engine.crashed(self, crash)

    def auth_failed(self, error: AuthUnavailable) -> None:
        """The authorization service gave no usable answer."""
        try:
            self._spent_on_auth()
            self._count_login(_GIVE_UP.get(type(error), LoginResult.UNAVAILABLE))
            self.throw(error)
        except Exception as crash:  # an entry point: the connection to the service goes on
            self.engine.crashed(self, crash)

    def _spent_on_auth(self) -> None:
        seconds = time.monotonic() - self._asked
        self._login_seconds += seconds
        self.record.auth_seconds = (self.record.auth_seconds or 0.0) + seconds

    def _start_tls(self, _action: sansio.StartTls) -> object:
        self._stage = stage = TlsHandshake(self, TlsMode.STARTTLS, self._tls_started)
        left = self._deadline - time.monotonic() if self._deadline else self.server.config.timeout
        self.engine.timers.disarm(self)
        stage.begin(max(left, 0.0))
        return PENDING

    def _tls_started(self, info: TlsInfo) -> None:
        self._stage = None
        self._rearm()
        self.resume(info)

    def _resolve_client(self, _action: sansio.ResolveClient) -> object:
        resolver = self.server.resolver
        if resolver is None:
            return UNAVAILABLE
        if self.client.address.startswith("unix:"):
            return TEMPUNAVAIL
        self._host = None
        self._cancel = resolver.look_up(self.client.address, self._named)
        if self._host is not None:
            self._cancel = None
            return self._host
        return PENDING

    def _named(self, host: bytes) -> None:
        """The look-up is over; at once, where the resolver knew the answer already."""
        if self._cancel is None:
            self._host = host
        else:
            self._cancel = None
            self.resume(host)

    def _make_challenge(self, action: sansio.MakeChallenge) -> object:
        return self.engine.challenge(action.server_name)

    def _note(self, action: sansio.Note) -> object:
        event = action.event
        if isinstance(event, ProtocolViolation):
            self.record.errors += 1
            self.record.error = event.kind
            self.numbers.errors[event.kind].value += 1
        elif isinstance(event, LoginRefused):
            self.record.method, self.record.result = event.method, event.result
            self.numbers.logins[event.method, event.result].value += 1
        elif isinstance(event, LoginDenied):
            self.record.stage, self.record.reply = AUTH_STAGE, event.text
            self.tell(LogLevel.INFO, "login_denied", user=self.record.user, reply=event.text, code=event.code)
        else:
            self.tell(LogLevel.ERROR if event.is_ours else LogLevel.INFO, event.event, text=event.text)
        return None

    # -- accounts

    def tell(self, level: LogLevel, event: str, **fields: Field) -> None:
        """Log something about this session, in its server's logs."""
        self.server.log.event(
            level,
            event,
            session=self.record.session,
            client=self.client.address,
            **fields,
        )

    def _enter(self, gauge: Gauge) -> None:
        self._state_gauge.value -= 1
        gauge.value += 1
        self._state_gauge = gauge

    def _count_login(self, result: LoginResult) -> None:
        method, self._method = self._method, None
        if method is None:
            return
        numbers = self.numbers
        numbers.logins[method, result].value += 1
        numbers.login_seconds[result is _SUCCESS].observe(self._login_seconds)
        self.record.result = result
        self.record.login_seconds = self._login_seconds
        self._login_seconds = 0.0

    def _aborted(self) -> None:
        """Count an attempt that nobody waits for any more."""
        if self._method is not None:
            self._count_login(LoginResult.ABORTED)

    _PERFORM: ClassVar[Mapping[type[Action], Callable[[Any, Any], object]]] = {
        sansio.Deadline: ProtocolDriver.set_deadline,
        sansio.Peek: ProtocolDriver.overhear,
        sansio.Wait: ProtocolDriver.wait,
        sansio.Authorize: _authorize,
        sansio.StartTls: _start_tls,
        sansio.ResolveClient: _resolve_client,
        sansio.MakeChallenge: _make_challenge,
        sansio.Note: _note,
    }

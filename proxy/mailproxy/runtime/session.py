# SPDX-License-Identifier: Apache-2.0
"""One client, from its first octet to the start of the relay."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from mailproxy.dialogue import actions
from mailproxy.dialogue.actions import Action
from mailproxy.dialogue.values import (
    TEMPUNAVAIL,
    UNAVAILABLE,
    AuthRequest,
    Client,
    Decision,
    Denied,
    Ended,
    Granted,
    Identified,
    LoggedIn,
    TlsInfo,
)
from mailproxy.errors import (
    AuthTimedOut,
    AuthUnavailable,
    MalformedAnswer,
    PeerClosed,
    SessionError,
    ShuttingDown,
    UpstreamError,
    UpstreamRefused,
)
from mailproxy.events import (
    ClientErred,
    CloseReason,
    LoginRefused,
    LoginResult,
    Method,
    TlsMode,
)
from mailproxy.observe.lines import Field
from mailproxy.observe.meter import Gauge
from mailproxy.observe.record import SessionRecord
from mailproxy.runtime.accounts import book_end
from mailproxy.runtime.auth_exchange import Question
from mailproxy.runtime.carrying import End
from mailproxy.runtime.closing import close_now, close_politely, end_writing
from mailproxy.runtime.conversation import PENDING, Conversation
from mailproxy.runtime.engine import Engine
from mailproxy.runtime.reactor import READ, hung_up
from mailproxy.runtime.relay import Relay, start_relay
from mailproxy.runtime.resolver import Cancel
from mailproxy.runtime.server import Server
from mailproxy.runtime.stages import HandshakeStage, HeaderStage
from mailproxy.runtime.upstream import UpstreamLink
from mailproxy_config.model import LogLevel

_SAY_NOTHING: Final = frozenset(
    {CloseReason.CLIENT_CLOSED, CloseReason.CLIENT_RESET, CloseReason.PREAUTH_TIMEOUT}
)
_SUCCESS: Final = LoginResult.SUCCESS
_GIVE_UP: Final[Mapping[type[AuthUnavailable], LoginResult]] = {
    AuthTimedOut: LoginResult.TIMEOUT,
    MalformedAnswer: LoginResult.INVALID_RESPONSE,
}


class Session(Conversation):
    """The conversation with one client, and all that it takes to get it to its upstream."""

    __slots__ = (
        "_asked",
        "_cancel",
        "_host",
        "_identified",
        "_link",
        "_login_seconds",
        "_method",
        "_reason",
        "_stage",
        "_state_gauge",
        "client",
        "numbers",
        "record",
        "server",
    )

    def __init__(
        self, engine: Engine, server: Server, sock: socket.SocketType, client: Client, record: SessionRecord
    ) -> None:
        super().__init__(engine, sock, sock.fileno(), server.config.timeout)
        self.server = server
        self.numbers = numbers = server.numbers
        self.client = client
        self.record = record
        self._asked = 0.0
        self._cancel: Cancel | None = None
        self._host: bytes | None = None
        self._login_seconds = 0.0
        self._method: Method | None = None
        self._identified: Identified | None = None
        self._link: UpstreamLink | None = None
        self._reason: CloseReason | None = None
        self._stage: HeaderStage | HandshakeStage | None = None
        self._state_gauge = gauge = numbers.preauth
        gauge.value += 1
        engine.live.add(self)

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
            self._stage = HeaderStage(self, then_tls=tls)
            self._stage.begin()
        elif tls:
            self._shake_hands()
        else:
            self._enter(self.numbers.preauth)
            self.begin(self.server.frontend.converse(self.client))

    def _shake_hands(self) -> None:
        self._stage = stage = HandshakeStage(self, TlsMode.IMPLICIT, self._handshake_done)
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

    def _authorize(self, action: actions.Authorize) -> object:
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
            Question(
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
        self._spent_on_auth()
        if decision.__class__ is not Granted:
            if isinstance(decision, Denied):
                code = decision.code
                is_temporary = code is not None and code.startswith(b"4")
                self._count_login(LoginResult.TEMPORARY if is_temporary else LoginResult.DENIED)
            self._enter(self.numbers.preauth)
        self.resume(decision)

    def auth_failed(self, error: AuthUnavailable) -> None:
        """The authorization service gave no usable answer."""
        self._spent_on_auth()
        self._count_login(_GIVE_UP.get(type(error), LoginResult.UNAVAILABLE))
        self.throw(error)

    def _spent_on_auth(self) -> None:
        seconds = time.monotonic() - self._asked
        self._login_seconds += seconds
        self.record.auth_seconds = (self.record.auth_seconds or 0.0) + seconds

    def _start_tls(self, _action: actions.StartTls) -> object:
        self._stage = stage = HandshakeStage(self, TlsMode.STARTTLS, self._tls_started)
        left = self._deadline - time.monotonic() if self._deadline else self.server.config.timeout
        self.engine.timers.disarm(self)
        stage.begin(max(left, 0.0))
        return PENDING

    def _tls_started(self, info: TlsInfo) -> None:
        self._stage = None
        self._rearm()
        self.resume(info)

    def _resolve_client(self, _action: actions.ResolveClient) -> object:
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

    def _make_challenge(self, action: actions.MakeChallenge) -> object:
        return self.engine.challenge(action.server_name)

    def _note(self, action: actions.Note) -> object:
        event = action.event
        if isinstance(event, ClientErred):
            self.record.errors += 1
            self.numbers.errors[event.kind].value += 1
        elif isinstance(event, LoginRefused):
            self.record.method, self.record.result = event.method, event.result
            self.numbers.logins[event.method, event.result].value += 1
        else:
            self.tell(LogLevel.INFO, event.event, text=event.text)
        return None

    # -- the upstream

    def _connect(self, identified: Identified) -> None:
        self._identified = identified
        self._enter(self.numbers.upstream)
        record, grant = self.record, identified.grant
        record.upstream, record.upstream_port = grant.address, grant.port
        if grant.user:
            record.user = grant.user
        self._asked = time.monotonic()
        try:
            self._link = UpstreamLink.connect(self, identified)
        except UpstreamError as error:
            self.upstream_failed(error)

    def logged_in(self, link: UpstreamLink, result: LoggedIn) -> None:
        """The upstream accepted: from here on octets are copied."""
        identified = self._identified
        assert identified is not None  # noqa: S101 - set before connecting
        engine, numbers = self.engine, self.numbers
        self._spent_on_upstream()
        self._count_login(_SUCCESS)
        self._enter(numbers.relay)
        engine.live.discard(self)
        if self.timer is not None:
            engine.timers.disarm(self)
        self._link = self._identified = None
        start_relay(
            Relay(engine, self.server, self.record, self._state_gauge),
            client=End(self.sock, self.fd, self._mask, numbers.bytes_to_upstream, self.tls),
            upstream=End(link.sock, link.fd, READ, numbers.bytes_to_client),
            to_client=self._outgoing + result.reply,
            to_upstream=link.unsent() + identified.unread,
        )

    def upstream_failed(self, error: Exception) -> None:
        """The upstream refused, could not be reached, or spoke nonsense."""
        self._link = None
        self._spent_on_upstream()
        numbers = self.numbers
        reply = self.server.protocol.internal_error
        if isinstance(error, UpstreamError):
            numbers.upstream_errors[error.stage].value += 1
            if error.kind is not None:
                numbers.errors[error.kind].value += 1
        else:
            self.engine.report_crash("upstream", error)
        if isinstance(error, UpstreamRefused):
            self._count_login(LoginResult.UPSTREAM_DENIED)
            if self.server.config.proxy_pass_error_message:
                reply = error.reply
        else:
            self._count_login(LoginResult.UPSTREAM_FAILED)
        if not isinstance(error, UpstreamRefused):
            self.tell(LogLevel.ERROR, "upstream_failed", upstream=self.record.upstream, reason=str(error))
        known = isinstance(error, UpstreamError)
        self._say_and_leave(reply, CloseReason.UPSTREAM_ERROR if known else CloseReason.INTERNAL_ERROR)

    def _spent_on_upstream(self) -> None:
        seconds = time.monotonic() - self._asked
        self._login_seconds += seconds
        self.record.upstream_seconds = seconds

    # -- the end

    def _finished(self, result: Identified | Ended) -> None:
        if isinstance(result, Identified):
            self._connect(result)
        else:
            self._say_and_leave(b"", result.reason)

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, AuthUnavailable):
            self._aborted()
        else:
            self._count_login(LoginResult.UNAVAILABLE)
            self.tell(LogLevel.ERROR, "authorization_failed", reason=str(error) or error.failure)
        if isinstance(error, ShuttingDown):
            self._say_and_leave(self.server.protocol.shutdown, CloseReason.DRAIN)
        elif not isinstance(error, SessionError):
            self.engine.report_crash("session", error)
            self._say_and_leave(self.server.protocol.internal_error, CloseReason.INTERNAL_ERROR)
        elif error.reason is CloseReason.AUTH_UNAVAILABLE:
            self._say_and_leave(self.server.protocol.internal_error, error.reason)
        else:
            self._leave(error.reason)

    def _aborted(self) -> None:
        """Count an attempt that nobody waits for any more."""
        if self._method is not None:
            self._count_login(LoginResult.ABORTED)

    def _say_and_leave(self, octets: bytes, reason: CloseReason) -> None:
        self._reason = reason
        self._outgoing += octets
        try:
            if self._outgoing and not self._flush():
                self._hold(None)
                return
        except OSError:
            self._outgoing = b""
        self._leave(reason)

    def _flushed(self, held: Action | None) -> None:
        if self._reason is not None:
            self._leave(self._reason)
        else:
            super()._flushed(held)

    def on_timeout(self) -> None:
        """The deadline is over; or the last words were not taken in time."""
        if self._reason is not None:
            self._leave(self._reason)
        else:
            super().on_timeout()

    def throw(self, error: Exception) -> None:
        """Fail what is awaited; a client that does not take its last words is left."""
        if self._reason is not None:
            self._leave(self._reason)
        else:
            super().throw(error)

    def _broken(self) -> None:
        if self._reason is not None:
            self._leave(self._reason)
        else:
            super()._broken()

    def _leave(self, reason: CloseReason) -> None:
        if self.fd < 0:
            return
        self._give_up_helpers()
        self.release()
        fd, self.fd = self.fd, -1
        self.engine.live.discard(self)
        book_end(self.engine, self.server, self.record, self._state_gauge, reason)
        if reason in _SAY_NOTHING:
            close_now(self.engine, self.sock, fd)
        elif reason is CloseReason.CLIENT_QUIT:
            if self.client.tls is not None:
                end_writing(self.sock)
            close_now(self.engine, self.sock, fd)
        else:
            close_politely(self.engine, self.sock, fd)

    def _give_up_helpers(self) -> None:
        if self._stage is not None:
            self._stage.leave()
            self._stage = None
        if self._link is not None:
            self._link.abandon()
            self._link = None
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        self.server.auth.forget(self)

    # -- draining

    def say_goodbye(self) -> None:
        """Tell the client that we leave, unless its login is under way; then it is told after that."""
        if self._stage is not None:
            self._leave(CloseReason.DRAIN)
        elif self.is_listening or self._cancel is not None or self._wake is not None:
            self.throw(ShuttingDown())
        else:
            self._doom = ShuttingDown()

    def cut(self) -> None:
        """Leave at once."""
        if self.fd >= 0:
            self.release()
            self._aborted()
            self._leave(CloseReason.DRAIN)

    # -- accounts

    def tell(self, level: LogLevel, event: str, **fields: Field) -> None:
        """Log something about this session, at its server's ``error_log`` level."""
        self.engine.log.event(
            level,
            event,
            least=self.server.config.error_log,
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

    _PERFORM: ClassVar[Mapping[type[Action], Callable[[Any, Any], object]]] = {
        actions.Deadline: Conversation.set_deadline,
        actions.Overhear: Conversation.overhear,
        actions.Wait: Conversation.wait,
        actions.Authorize: _authorize,
        actions.StartTls: _start_tls,
        actions.ResolveClient: _resolve_client,
        actions.MakeChallenge: _make_challenge,
        actions.Note: _note,
    }

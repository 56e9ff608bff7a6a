# SPDX-License-Identifier: Apache-2.0
"""The session of one client, from accept until its relay starts or its connection is closed.

The life of a client, with the function of each step (a method of ``Session`` where no other class is named):

1. ``Listener`` accepts the client and calls ``start``.
2. ``ProxyHeaderReader`` reads the PROXY header (``proxy_protocol``) and calls ``on_proxy_header``.
3. ``TlsHandshake`` performs the TLS handshake, where the listener has ``ssl``.
4. The frontend of the protocol runs: greeting, commands, SASL.  Its effects are
   ``_resolve_client``, ``_make_challenge``, ``_start_tls``, ``note_event``, ``_authorize``.
5. ``_authorize`` sends a request to the authentication service; ``on_auth_result`` gets the decision.
6. The frontend returns: ``_on_result`` gets the end of the session, or the upstream to log in at.
7. ``_on_result`` connects and logs in there; then ``on_upstream_login`` or ``on_upstream_error``.
8. ``on_upstream_login`` passes both connections to a ``Relay``.  The ``Session`` object is done.
   ``on_upstream_error`` may run the frontend again, after an outage (``UpstreamLogin.resume``) or
   after a refusal (``UpstreamLogin.pass_on``): step 4.
9. Any other end is ``_close_with``: it sends the last reply, and ``_close`` ends the session.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Final

from mailproxy import enums, errors
from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.dns import Cancel
from mailproxy.enums import CloseReason, LoginResult
from mailproxy.errors import AuthUnavailable, SessionError, UpstreamError
from mailproxy.loop.epoll import READ, hung_up
from mailproxy.protocols import sansio, types
from mailproxy.protocols.sansio import Effect
from mailproxy.session.driver import PENDING, ProtocolDriver
from mailproxy.session.handshakes import ProxyHeaderReader, TlsHandshake
from mailproxy.session.lingering_close import end_writing, lingering_close
from mailproxy.session.login_end import end_login
from mailproxy.session.noted_events import note_event
from mailproxy.session.refusal_times import wait_to_refuse
from mailproxy.session.relay import Relay
from mailproxy.session.relay_end import RelayEnd
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.upstream_failure import report_upstream_failure
from mailproxy.session.upstream_lookup import Connecting
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import Field, SessionRecord
from mailproxy.telemetry.metrics import Gauge
from mailproxy_config.model import ListenConfig, LogLevel

_SUCCESS: Final = LoginResult.SUCCESS  # saves 900 instructions per access on Python 3.11
_NO_REPLY: Final = frozenset(
    {CloseReason.CLIENT_CLOSED, CloseReason.CLIENT_RESET, CloseReason.PREAUTH_TIMEOUT}
)
_AUTH_FAILURES: Final[Mapping[type[AuthUnavailable], LoginResult]] = {
    errors.AuthTimedOut: LoginResult.TIMEOUT,
    errors.InvalidAuthResponse: LoginResult.INVALID_RESPONSE,
}


class Session(ProtocolDriver):
    """One client, and what works for it: a handshake, a name look-up, an auth request, an upstream login.

    Attributes:
        client: Its addresses, TLS and host name.
        protocol_metrics: The metrics of its protocol.
        record: What its log line will contain.
        seconds_to_check: How long the last login waited before it was checked.
        server: The ``server`` block that it connected to.
    """

    __slots__ = (
        "_auth_request",
        "_cancel_lookup",
        "_handshake",
        "_host",
        "_logging_in",
        "_login",
        "_login_seconds",
        "_reason",
        "_state_gauge",
        "_step_started",
        "_upstream",
        "client",
        "protocol_metrics",
        "record",
        "seconds_to_check",
        "server",
    )

    # Set before they are read, so not in ``__init__``.
    _host: bytes | None
    _login: types.UpstreamLogin
    _step_started: float  # when the auth request or the upstream login began

    def __init__(
        self,
        context: WorkerContext,
        server: VirtualServer,
        sock: socket.SocketType,
        client: types.Client,
        record: SessionRecord,
    ) -> None:
        ProtocolDriver.__init__(self, context, sock, sock.fileno(), server.config.timeout)
        self.server = server
        self.protocol_metrics = protocol_metrics = server.protocol_metrics
        self.client = client
        self.record = record
        self._auth_request: PendingRequest | None = None
        self._cancel_lookup: Cancel | None = None
        self._handshake: ProxyHeaderReader | TlsHandshake | None = None
        self._login_seconds = 0.0
        self._logging_in: types.AuthRequest | None = None
        self._reason: CloseReason | None = None
        self.seconds_to_check = 0.0
        self._upstream: Connecting | None = None
        self._state_gauge = gauge = protocol_metrics.preauth
        gauge.value += 1
        context.live.add(self)

    # -- before the greeting: PROXY header and TLS

    def start(self, listen: ListenConfig) -> None:
        """Begin with what the listener expects: PROXY header, TLS handshake, or neither."""
        if not (listen.proxy_protocol or listen.ssl):
            self.begin(self.server.frontend(self.client).run())
            return
        self._enter(self.protocol_metrics.starting)
        if listen.proxy_protocol:
            self._handshake = ProxyHeaderReader(self, then_tls=listen.ssl)
            self._handshake.begin()
        else:
            self._start_implicit_tls()

    def on_proxy_header(self, *, then_tls: bool) -> None:
        """The PROXY header was read: go on with TLS or the greeting."""
        self._handshake = None
        self.context.epoll.set_handler(self.fd, self)
        if then_tls:
            self._start_implicit_tls()
        else:
            self._greet()

    def _start_implicit_tls(self) -> None:
        self._handshake = TlsHandshake(self, enums.TlsMode.IMPLICIT, self._on_implicit_tls)
        self._handshake.begin(self.server.config.timeout)

    def _on_implicit_tls(self, info: types.TlsInfo) -> None:
        self._handshake = None
        self.client.tls = info
        self._greet()

    def on_handshake_failed(self, error: SessionError) -> None:
        """The PROXY header or the TLS handshake failed: the client cannot read a reply."""
        self._handshake = None
        self._on_error(error)

    # -- the frontend and its effects

    def _greet(self) -> None:
        self._enter(self.protocol_metrics.preauth)
        self.begin(self.server.frontend(self.client).run())

    def _resolve_client(self, _effect: sansio.ResolveClient) -> object:
        resolver = self.server.resolver
        if resolver is None:
            return types.UNAVAILABLE
        if self.client.address.startswith("unix:"):
            return types.TEMPUNAVAIL
        self._host = None
        self._cancel_lookup = resolver.look_up(self.client.address, self._on_host)
        if self._host is not None:
            self._cancel_lookup = None
            return self._host
        return PENDING

    def _on_host(self, host: bytes) -> None:
        """The look-up is over: before ``look_up`` returns, where the name was in the cache."""
        if self._cancel_lookup is None:
            self._host = host
        else:
            self._cancel_lookup = None
            self.resume(host)

    def _make_challenge(self, effect: sansio.MakeChallenge) -> object:
        return self.context.make_challenge(effect.server_name)

    def _start_tls(self, _effect: sansio.UpgradeToTls) -> object:
        self._handshake = handshake = TlsHandshake(self, enums.TlsMode.STARTTLS, self._on_starttls)
        left = self._deadline - time.monotonic() if self._deadline else self.server.config.timeout
        self.context.timers.disarm(self)
        handshake.begin(max(left, 0.0))
        return PENDING

    def _on_starttls(self, info: types.TlsInfo) -> None:
        self._handshake = None
        self._arm_deadline()
        self.resume(info)

    # -- the authentication service

    def _authorize(self, request: types.AuthRequest) -> object:
        record, server = self.record, self.server
        context, protocol_metrics = self.context, self.protocol_metrics
        credentials = request.credentials
        if request.attempt == record.attempts and hung_up(self.fd, half_closed=True):
            raise errors.PeerClosed  # the client left while its login was deferred
        record.user, record.attempts = credentials.user, request.attempt
        record.method, self._logging_in = credentials.method, request
        self._enter(protocol_metrics.auth)
        self._step_started = now = context.epoll.now
        self._deadline = 0.0  # kept, as the credentials are complete
        context.timers.disarm(self)
        self._auth_request = pending = PendingRequest(
            self.on_auth_result,
            server.template.render(request),
            request,
            server.config,
            protocol_metrics.auth_seconds,
            now,
            record,
        )
        server.auth.send(pending)
        return PENDING

    def on_auth_result(self, result: types.Decision | AuthUnavailable) -> None:
        """The authentication service decided, or gave no usable response."""
        if self._auth_request is not None:
            self.seconds_to_check = self._auth_request.started - self._step_started
            self._auth_request = None
        self.record.auth_seconds = (self.record.auth_seconds or 0.0) + self._end_step()
        if isinstance(result, types.AuthAllowed):
            self.resume(result)
        elif isinstance(result, AuthUnavailable):
            self.count_login(_AUTH_FAILURES.get(type(result), LoginResult.UNAVAILABLE))
            self.throw(result)
        else:
            if isinstance(result, types.AuthDenied):
                is_temporary = result.code is not None and result.code.startswith(b"4")
                denied = LoginResult.TEMPORARY if is_temporary else LoginResult.DENIED
                self.count_login(result.limit or denied)
            self._enter(self.protocol_metrics.preauth)
            self.resume(result)

    def _report_auth_failure(self, effect: sansio.ReportAuthFailure) -> object:
        self._log_auth_failure(effect.error)
        self._enter(self.protocol_metrics.preauth)
        return None

    def _log_auth_failure(self, error: AuthUnavailable) -> None:
        self.count_login(LoginResult.UNAVAILABLE)  # unless it is counted with its cause
        self.record.stage, self.record.reply = "auth", None
        reason = str(error) or error.failure
        self.log_event(LogLevel.ERROR, "authorization_failed", reason=reason, service=error.service)

    # -- the upstream

    def _on_result(self, result: types.UpstreamLogin | types.SessionEnd) -> None:
        """Log in at the upstream, or close."""
        if isinstance(result, types.SessionEnd):
            self._close_with(b"", result.reason)
            return
        self._login = result
        self._enter(self.protocol_metrics.upstream)
        record, grant = self.record, result.grant
        record.upstream, record.upstream_port = grant.address, grant.port
        if grant.user:
            record.user = grant.user
        self._step_started = self.context.epoll.now
        try:
            self._upstream = self.server.connect(self, result)
        except UpstreamError as error:
            self.on_upstream_error(error)

    def on_upstream_login(self, upstream: UpstreamConnection, reply: types.UpstreamLoginResult) -> None:
        """The upstream accepted the login: pass both connections to a relay."""
        context, server, record, login = self.context, self.server, self.record, self._login
        metrics = self.protocol_metrics
        if (attempt := login.grant.attempt) is not None:
            attempt.succeeded()
        if record.held is not None:
            record.held.login_succeeded()
        record.upstream_seconds = self._end_step()
        self.count_login(_SUCCESS)
        self._enter(metrics.relay)
        if self.timer is not None:
            context.timers.disarm(self)
        relay = Relay(
            context,
            server,
            record,
            RelayEnd(self.sock, self.fd, self._events, metrics.bytes_to_upstream, self.tls),
            server.upstream_end(upstream.sock, upstream.fd, READ, metrics.bytes_to_client, upstream.tls),
        )
        relay.start(self._outgoing + reply, upstream.unsent + login.unread)
        context.live.discard(self)
        self.fd = upstream.fd = -1
        self._upstream = None
        del self._login

    def on_upstream_error(self, error: Exception, delay: float = 0.0) -> None:
        """The login at the upstream failed.  Called again after ``delay`` if the reply to it is delayed."""
        attempt = self._login.grant.attempt
        self._upstream = None if attempt is None else attempt.failed(self, error)
        if self._upstream is not None:
            return
        self._step_started = min(self._step_started + delay, self.context.epoll.now)
        self.record.upstream_seconds = self._end_step()
        if not isinstance(error, UpstreamError):
            self.context.log_internal_error(self, error, "UpstreamConnection")
            self.count_login(LoginResult.UPSTREAM_FAILED)
            self._close_with(self.server.protocol.internal_error, CloseReason.INTERNAL_ERROR)
            return
        login = self._login
        next_steps = login.resume(error)
        last_reply = report_upstream_failure(self, login.grant, error, is_outage=next_steps is not None)
        next_steps = next_steps or login.pass_on(error, last_reply)
        if next_steps is None:
            self._close_with(last_reply, CloseReason.UPSTREAM_ERROR)
            return
        if self.record.held is not None:
            self.record.held.login_failed()
        del self._login
        self._enter(self.protocol_metrics.preauth)
        self.begin(next_steps)

    # -- the end

    def _on_error(self, error: Exception) -> None:
        """The frontend raised, or the client's connection broke."""
        protocol = self.server.protocol
        if isinstance(error, AuthUnavailable):
            self._log_auth_failure(error)
        self.count_login(LoginResult.ABORTED)  # unless it is counted
        if isinstance(error, errors.ShuttingDown):
            self._close_with(protocol.shutdown, CloseReason.DRAIN)
        elif not isinstance(error, SessionError):
            self.context.log_internal_error(self, error, "Session")
            self._close_with(protocol.internal_error, CloseReason.INTERNAL_ERROR)
        elif error.reason is CloseReason.AUTH_UNAVAILABLE:
            self._close_with(protocol.internal_error, error.reason)
        else:
            if isinstance(error, errors.PeerDisconnected) and error.is_silent_end:
                self.record.is_silent = True
            self._close(error.reason)

    def _close_with(self, reply: bytes, reason: CloseReason) -> None:
        """Close after the last reply."""
        self._reason = reason
        self._send_last(reply)

    def _on_last_sent(self) -> None:
        assert self._reason is not None  # noqa: S101 - set before the last reply
        self._close(self._reason)

    def _close(self, reason: CloseReason, *, immediately: bool = False) -> None:
        """Close the connection as the reason demands, update the metrics, log the session."""
        if self.fd < 0:
            return
        self._cancel_pending()
        self.release()
        context = self.context
        if immediately or reason in _NO_REPLY:
            context.epoll.close_socket(self.sock, self.fd)
        elif reason is CloseReason.CLIENT_QUIT:
            if self.client.tls is not None:
                end_writing(self.sock)
            context.epoll.close_socket(self.sock, self.fd)
        else:
            lingering_close(context, self.sock, self.fd)
        self.fd = -1
        self.server.record_end(context, self.record, self._state_gauge, reason)
        context.live.discard(self)

    def _cancel_pending(self) -> None:
        """Cancel what works for this session."""
        for cancel in self._pending():
            cancel()
        self._handshake = self._upstream = self._cancel_lookup = self._auth_request = None

    def _pending(self) -> list[Callable[[], object]]:
        """Return the calls that cancel what works for this session."""
        pending: list[Callable[[], object]] = []
        if self._handshake is not None:
            pending.append(self._handshake.detach)
        if self._upstream is not None:
            pending.append(self._upstream.cancel)
        if self._cancel_lookup is not None:
            pending.append(self._cancel_lookup)
        if self._auth_request is not None:
            pending.append(partial(self.server.auth.cancel, self._auth_request))
        if hasattr(self, "_login") and self._login.grant.attempt is not None:
            pending.append(self._login.grant.attempt.abandoned)
        return pending

    def drain(self) -> None:
        """Send the protocol's shutdown reply; after a login in progress, if there is one."""
        if self._handshake is not None:
            self._close(CloseReason.DRAIN)
        elif self.is_reading or self._cancel_lookup is not None or self._wait_timer is not None:
            self.throw(errors.ShuttingDown())
        else:
            self._pending_error = errors.ShuttingDown()

    def abort(self) -> None:
        """Close now: the time for draining is over."""
        if self.fd >= 0:
            self.release()
            self.count_login(LoginResult.ABORTED)
            self._close(CloseReason.DRAIN)

    def on_internal_error(self) -> None:
        """Close with the internal error reply, where the client can read one and got no last reply yet."""
        if self not in self.context.live:
            return  # its connections are closed, or belong to a relay
        if self.fd < 0:  # it was being closed
            self.force_close()
            return
        can_reply = self._reason is None and (self._handshake is None or self._handshake.can_reply)
        self.count_login(LoginResult.ABORTED)
        self._cancel_pending()
        self.release()
        if can_reply:
            self.context.epoll.set_handler(self.fd, self)
            self._close_with(self.server.protocol.internal_error, CloseReason.INTERNAL_ERROR)
        else:
            self._close(CloseReason.INTERNAL_ERROR, immediately=True)

    def force_close(self) -> None:
        """Close everything in whatever state it is; never raises."""
        context = self.context
        close_upstream = () if self._upstream is None else (self._upstream.close,)
        for cancel in (*self._pending(), self.release, *close_upstream):
            with suppress(Exception):
                cancel()
        if self.fd >= 0:
            context.epoll.close_socket(self.sock, self.fd)
            self.fd = -1
        if self in context.live:
            context.live.discard(self)
            if self.record.reason is None:
                reason = CloseReason.INTERNAL_ERROR
                with suppress(Exception):
                    self.server.record_end(context, self.record, self._state_gauge, reason)

    # -- metrics and log

    def log_event(self, level: LogLevel, event: str, **fields: Field) -> None:
        """Log an event of this session, in its server's log."""
        self.server.log.event(level, event, session=self.record.session, client=self.client.address, **fields)

    def _enter(self, gauge: Gauge) -> None:
        """Count the session in another state."""
        self._state_gauge.value -= 1
        gauge.value += 1
        self._state_gauge = gauge

    def _end_step(self) -> float:
        """Return the seconds that the auth request or upstream login took, and add them to the login's."""
        seconds = self.context.epoll.now - self._step_started
        self._login_seconds += seconds
        return seconds

    def count_login(self, result: LoginResult) -> None:
        """Count the login in progress, if there is one."""
        request, self._logging_in = self._logging_in, None
        if request is None:
            return
        seconds, self._login_seconds = self._login_seconds, 0.0
        metrics, record = self.protocol_metrics, self.record
        metrics.logins[request.credentials.method][result].value += 1
        metrics.login_seconds[result is _SUCCESS].observe(seconds)
        record.result, record.login_seconds = result, seconds
        if result is not _SUCCESS or self.server.report_login is not None:
            end_login(self, request, result)

    _EFFECTS: ClassVar[Mapping[type[Effect], Callable[[Any, Any], object]]] = {
        sansio.SetDeadline: ProtocolDriver.set_deadline,
        sansio.Peek: ProtocolDriver.peek,
        sansio.Wait: ProtocolDriver.wait,
        types.AuthRequest: _authorize,
        sansio.UpgradeToTls: _start_tls,
        sansio.ResolveClient: _resolve_client,
        sansio.MakeChallenge: _make_challenge,
        sansio.WaitToRefuse: wait_to_refuse,
        sansio.Note: note_event,
        sansio.ReportAuthFailure: _report_auth_failure,
    }

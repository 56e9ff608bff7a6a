# SPDX-License-Identifier: Apache-2.0
"""One client from accept to relay: its side of it, its upstream, and its end."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Final

from mailproxy.closing import close_now, end_writing, lingering_close
from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason, LoginResult
from mailproxy.errors import (
    AuthUnavailable,
    PeerDisconnected,
    SessionError,
    ShuttingDown,
    UpstreamError,
    UpstreamRefused,
)
from mailproxy.loop.epoll import READ
from mailproxy.protocols.redaction import reply_for_log
from mailproxy.protocols.sansio import Action
from mailproxy.protocols.types import Client, SessionEnd, UpstreamLogin, UpstreamLoginResult
from mailproxy.session.client_side import AUTH_STAGE, ClientSide
from mailproxy.session.relay import Relay, start_relay
from mailproxy.session.relay_end import RelayEnd
from mailproxy.session.session_end import book_end
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import Field
from mailproxy.telemetry.session_record import SessionRecord
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import LogLevel

_SAY_NOTHING: Final = frozenset(
    {CloseReason.CLIENT_CLOSED, CloseReason.CLIENT_RESET, CloseReason.PREAUTH_TIMEOUT}
)
_SUCCESS: Final = LoginResult.SUCCESS


class Session(ClientSide):
    """The conversation with one client, and all that it takes to get it to its upstream."""

    __slots__ = ("_identified", "_link", "_reason")

    _identified: UpstreamLogin
    """Set before connecting."""

    def __init__(
        self,
        engine: WorkerContext,
        server: VirtualServer,
        sock: socket.SocketType,
        client: Client,
        record: SessionRecord,
    ) -> None:
        super().__init__(engine, sock, sock.fileno(), server.config.timeout)
        self.server = server
        self.numbers = numbers = server.numbers
        self.client = client
        self.record = record
        self._cancel = None
        self._login_seconds = 0.0
        self._method = None
        self._link: UpstreamConnection | None = None
        self._reason: CloseReason | None = None
        self._stage = None
        self._state_gauge = gauge = numbers.preauth
        gauge.value += 1
        engine.live.add(self)

    # -- the upstream

    def _connect(self, identified: UpstreamLogin) -> None:
        self._identified = identified
        self._enter(self.numbers.upstream)
        record, grant = self.record, identified.grant
        record.upstream, record.upstream_port = grant.address, grant.port
        if grant.user:
            record.user = grant.user
        self._asked = time.monotonic()
        try:
            self._link = UpstreamConnection.connect(self, identified)
        except UpstreamError as error:
            self.upstream_failed(error)

    def logged_in(self, link: UpstreamConnection, result: UpstreamLoginResult) -> None:
        """The upstream accepted: from here on bytes are copied."""
        identified = self._identified
        engine, numbers = self.engine, self.numbers
        self._spent_on_upstream()
        self._count_login(_SUCCESS)
        self._enter(numbers.relay)
        if self.timer is not None:
            engine.timers.disarm(self)
        start_relay(
            Relay(engine, self.server, self.record, self._state_gauge),
            client=RelayEnd(self.sock, self.fd, self._mask, numbers.bytes_to_upstream, self.tls),
            upstream=RelayEnd(link.sock, link.fd, READ, numbers.bytes_to_client),
            to_client=self._outgoing + result.reply,
            to_upstream=link.unsent() + identified.unread,
        )
        engine.live.discard(self)
        self.fd = link.fd = -1
        self._link = None
        del self._identified

    def upstream_failed(self, error: Exception) -> None:
        """The upstream refused, could not be reached, or spoke nonsense."""
        self._link = None
        self._spent_on_upstream()
        apology = self.server.protocol.internal_error
        if not isinstance(error, UpstreamError):
            self.engine.report_crash(self, error, "UpstreamLink")
            self._count_login(LoginResult.UPSTREAM_FAILED)
            self._say_and_leave(apology, CloseReason.INTERNAL_ERROR)
            return
        numbers = self.numbers
        numbers.upstream_errors[error.stage].value += 1
        if error.kind is not None:
            numbers.errors[error.kind].value += 1
        is_shown = isinstance(error, UpstreamRefused) and self.server.config.proxy_pass_error_message
        self._count_login(_result(error))
        self._log_upstream_failure(error, is_shown=is_shown)
        self._say_and_leave(error.reply if is_shown else apology, CloseReason.UPSTREAM_ERROR)

    def _log_upstream_failure(self, error: UpstreamError, *, is_shown: bool) -> None:
        """Log where a login failed, and what the upstream replied.

        A denial that the client gets to see is logged at ``info``, as in nginx.
        """
        record, grant = self.record, self._identified.grant
        record.stage = error.stage
        fields: dict[str, Field] = {"stage": error.stage, "reason": str(error)}
        if error.kind is not None:
            fields["kind"] = error.kind
        if error.reply:
            record.reply = reply_for_log(error.reply, grant.user, grant.password)
            fields["reply"] = record.reply
        is_denial = isinstance(error, UpstreamRefused) and error.is_denial
        level = LogLevel.INFO if is_denial and is_shown else LogLevel.ERROR
        self.tell(
            level,
            "upstream_failed",
            upstream=format_host_port(record.upstream, record.upstream_port),
            **fields,
        )

    def _spent_on_upstream(self) -> None:
        seconds = time.monotonic() - self._asked
        self._login_seconds += seconds
        self.record.upstream_seconds = seconds

    # -- the end

    def _finished(self, result: UpstreamLogin | SessionEnd) -> None:
        if isinstance(result, UpstreamLogin):
            self._connect(result)
        else:
            self._say_and_leave(b"", result.reason)

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, AuthUnavailable):
            self._aborted()
        else:
            self._count_login(LoginResult.UNAVAILABLE)
            self.record.stage = AUTH_STAGE
            reason = str(error) or error.failure
            self.tell(LogLevel.ERROR, "authorization_failed", reason=reason, service=error.service)
        if isinstance(error, ShuttingDown):
            self._say_and_leave(self.server.protocol.shutdown, CloseReason.DRAIN)
        elif not isinstance(error, SessionError):
            self.engine.report_crash(self, error, "Session")
            self._say_and_leave(self.server.protocol.internal_error, CloseReason.INTERNAL_ERROR)
        elif error.reason is CloseReason.AUTH_UNAVAILABLE:
            self._say_and_leave(self.server.protocol.internal_error, error.reason)
        else:
            if isinstance(error, PeerDisconnected) and error.is_silent_end:
                self.record.is_silent = True
            self._leave(error.reason)

    def _say_and_leave(self, data: bytes, reason: CloseReason) -> None:
        self._reason = reason
        self._outgoing += data
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

    def _leave(self, reason: CloseReason, *, at_once: bool = False) -> None:
        if self.fd < 0:
            return
        self._give_up_helpers()
        self.release()
        engine = self.engine
        if at_once or reason in _SAY_NOTHING:
            close_now(engine, self.sock, self.fd)
        elif reason is CloseReason.CLIENT_QUIT:
            if self.client.tls is not None:
                end_writing(self.sock)
            close_now(engine, self.sock, self.fd)
        else:
            lingering_close(engine, self.sock, self.fd)
        self.fd = -1
        book_end(engine, self.server, self.record, self._state_gauge, reason)
        engine.live.discard(self)

    def _give_up_helpers(self) -> None:
        self._give_up_stage()
        self._give_up_link()
        self._give_up_questions()

    def _give_up_stage(self) -> None:
        if self._stage is not None:
            self._stage.leave()
            self._stage = None

    def _give_up_link(self) -> None:
        if self._link is not None:
            self._link.abandon()
            self._link = None

    def _give_up_questions(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        self.server.auth.forget(self)

    # -- exceptions of our own

    def crashed(self) -> None:
        """End with the protocol's internal error where the client can still read one, else at once."""
        if self not in self.engine.live:
            return  # its connections are a relay's, or closed
        if self.fd < 0:  # it was being closed
            self.give_up()
            return
        can_reply = self._reason is None and (self._stage is None or self._stage.can_reply)
        self._aborted()
        self._give_up_helpers()
        self.release()
        if can_reply:
            self.engine.reactor.hand_over(self.fd, self)
            self._say_and_leave(self.server.protocol.internal_error, CloseReason.INTERNAL_ERROR)
        else:
            self._leave(CloseReason.INTERNAL_ERROR, at_once=True)

    def give_up(self) -> None:
        """Close everything in whatever state it is."""
        engine = self.engine
        for part in (self._give_up_stage, self._give_up_link, self._give_up_questions, self.release):
            with suppress(Exception):
                part()
        if self._link is not None:
            with suppress(Exception):
                self._link.drop()
        if self.fd >= 0:
            close_now(engine, self.sock, self.fd)
            self.fd = -1
        if self in engine.live:
            engine.live.discard(self)
            if self.record.reason is None:
                with suppress(Exception):
                    book_end(engine, self.server, self.record, self._state_gauge, CloseReason.INTERNAL_ERROR)

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


def _result(error: UpstreamError) -> LoginResult:
    """What a login came to: denied is about this client, refused is about all of them."""
    if not isinstance(error, UpstreamRefused):
        return LoginResult.UPSTREAM_FAILED
    return LoginResult.UPSTREAM_DENIED if error.is_denial else LoginResult.UPSTREAM_REFUSED

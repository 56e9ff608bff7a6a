# SPDX-License-Identifier: Apache-2.0
"""Logins within limits: of their rate before they are authenticated, of sessions after that.

A login above a limit gets a reply that is no verdict on its credentials, and the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mailproxy.auth_http.pending_request import AuthCallback, Authenticator, PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.enums import Limit, LoginResult
from mailproxy.errors import AuthUnavailable
from mailproxy.limits.keys import MAX_KEY, KeyFunction, KeyTooLong, check_length
from mailproxy.limits.request_zone import ReqZone
from mailproxy.limits.session_limits import SessionLimits, session_limits
from mailproxy.limits.table import Key, LimitTable
from mailproxy.limits.zones import ConnZone
from mailproxy.protocols.types import AuthAllowed, AuthDenied, Decision
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy.telemetry.metrics import ServerMetrics
from mailproxy_config.limits import LimitLogLevel, LimitWords
from mailproxy_config.model import AuthMode, LogLevel, Protocol, ServerConfig

TEXTS: Final = {
    LoginResult.LIMIT_CONN: b"Too many connections",
    LoginResult.LIMIT_REQ: b"Too many requests",
}
_CODES: Final = {
    LimitWords.FREENGINX: {Protocol.IMAP: b"[UNAVAILABLE] ", Protocol.POP3: b"[SYS/TEMP] "},
    LimitWords.DOVECOT: {Protocol.IMAP: b"[LIMIT] ", Protocol.POP3: b"[IN-USE] "},
}
_SMTP_CODES: Final = {LimitWords.FREENGINX: b"454 4.7.0", LimitWords.DOVECOT: b"421 4.7.0"}
_LEVELS: Final = {
    LimitLogLevel.INFO: LogLevel.INFO,
    LimitLogLevel.NOTICE: LogLevel.NOTICE,
    LimitLogLevel.WARN: LogLevel.WARN,
    LimitLogLevel.ERROR: LogLevel.ERROR,
}
_LOWER: Final = {
    LimitLogLevel.INFO: LogLevel.DEBUG,
    LimitLogLevel.NOTICE: LogLevel.INFO,
    LimitLogLevel.WARN: LogLevel.NOTICE,
    LimitLogLevel.ERROR: LogLevel.WARN,
}
_STAGE: Final = "limit"
_REFUSED: Final = -1.0
_OVER: Final = -2
"""Instead of a slot: the session is above the limit."""


@dataclass(frozen=True, slots=True)
class ConnLimit:
    """One item of ``limit_conn``, with its zone."""

    name: str
    zone: ConnZone
    key: KeyFunction
    connections: int


@dataclass(frozen=True, slots=True)
class ReqLimit:
    """One item of ``limit_req``, with its zone; ``interval`` is the number of seconds between two logins."""

    name: str
    zone: ReqZone
    key: KeyFunction
    interval: float
    burst: int
    delay: int | None


class LimitedLogin:
    """The callback of a request that is within the limits so far.

    Attributes:
        owner: The callback of the session, which an internal error ends.
    """

    __slots__ = ("authenticator", "owner", "pending")

    def __init__(
        self, authenticator: LimitedAuthenticator, pending: PendingRequest, owner: AuthCallback
    ) -> None:
        self.authenticator = authenticator
        self.pending = pending
        self.owner = owner

    def __call__(self, result: Decision | AuthUnavailable) -> None:
        """The request was decided."""
        if isinstance(result, AuthAllowed):
            result = self.authenticator.on_allowed(self.pending, result)
        self.owner(result)

    def go_on(self) -> None:
        """The delay is over."""
        self.authenticator.send_on(self.pending)

    def refuse(self, denied: AuthDenied) -> None:
        """Deliver a refusal."""
        self.authenticator.timers.pop(self.pending, None)
        self.pending.callback = None
        self.owner(denied)


class LimitedAuthenticator:
    """Applies the limits of one server block to its logins.

    Args:
        context: The worker's shared parts.
        inner: What decides about logins within the limits.
        server: The server block.
        table: Makes hashes.
        conns: Its ``limit_conn``.
        reqs: Its ``limit_req``.
        log: The log of the server's sessions.

    Attributes:
        timers: Of requests that wait, or whose refusals do.
    """

    def __init__(
        self,
        context: WorkerContext,
        inner: Authenticator,
        server: ServerConfig,
        *,
        table: LimitTable,
        conns: Sequence[ConnLimit],
        reqs: Sequence[ReqLimit],
        log: LogWriter,
    ) -> None:
        self._context = context
        self._inner = inner
        self._server = server
        self._upstream_decides = server.auth_mode is AuthMode.UPSTREAM
        self._hash_key = table.hash_key
        self._conns = conns
        self._reqs = reqs
        self._decides_after = bool(conns or server.limit_preauth)
        self._log = log
        self._metrics: ServerMetrics = context.metrics.server(server.name, server.protocol)
        self.timers: dict[PendingRequest, asyncio.Handle] = {}
        self._refusals = {result: _refusal(result, server) for result in TEXTS}

    def send(self, pending: PendingRequest) -> None:
        """Count a login, and send its request on: at once, or when its delay is over."""
        callback = pending.callback
        if callback is None:
            return
        if self._reqs:
            counted = pending.record.held
            if not isinstance(counted, SessionLimits):
                counted = session_limits(pending.record)
            attempt = pending.auth_request.attempt
            if counted.attempt != attempt:  # else the service has deferred it
                counted.attempt = attempt
                seconds = self._delay(pending)
                if seconds:
                    self._hold(pending, callback, seconds)
                    return
        if self._decides_after:
            pending.callback = LimitedLogin(self, pending, callback)
        self._inner.send(pending)

    def _hold(self, pending: PendingRequest, callback: AuthCallback, seconds: float) -> None:
        """Refuse a login in the next event loop iteration, or let it wait."""
        pending.callback = login = LimitedLogin(self, pending, callback)
        loop = self._context.loop
        if seconds == _REFUSED:
            denied = self._refusals[LoginResult.LIMIT_REQ]
            self.timers[pending] = loop.call_soon(login.refuse, denied)
        else:
            self.timers[pending] = loop.call_later(seconds, login.go_on)

    def send_on(self, pending: PendingRequest) -> None:
        """Send a request whose delay is over."""
        self.timers.pop(pending, None)
        pending.started = self._context.epoll.now
        self._inner.send(pending)

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a request whose client has left."""
        timer = self.timers.pop(pending, None)
        if timer is not None:
            timer.cancel()
        else:
            self._inner.cancel(pending)
        pending.callback = None

    # -- limit_conn

    def on_allowed(self, pending: PendingRequest, grant: AuthAllowed) -> Decision:
        """Count the session of a login that was allowed; returns a refusal where it is above a limit."""
        try:
            counted = pending.record.held
            if not isinstance(counted, SessionLimits):
                counted = session_limits(pending.record)
            if self._conns and (over := self._acquire(pending, grant, counted)) is not None:
                return self._refuse(pending, over.name, LoginResult.LIMIT_CONN, Limit.LIMIT_CONN)
            if counted.preauth is not None and not self._upstream_decides:
                counted.release_preauth()
        except Exception as error:  # a fault here refuses nobody
            self._context.log_limit_fault(error)
        return grant

    def _acquire(
        self, pending: PendingRequest, grant: AuthAllowed, counted: SessionLimits
    ) -> ConnLimit | None:
        """Count a session in all zones; returns the limit that it is above, after which it is in none."""
        if counted.sessions:  # of an earlier login, after which the session went on
            counted.release_sessions()
        client, head = pending.auth_request.client, pending.head
        for limit in self._conns:
            try:
                text, zone = limit.key(client, grant.user, head), limit.zone
                if not text:
                    continue
                key = self._hash_key(text if len(text) <= MAX_KEY else check_length(text))
                slot = zone.acquire_known(key, limit.connections)
                if slot < 0 and (slot := self._acquire_unknown(pending, limit, key)) == _OVER:
                    counted.release_sessions()
                    return limit
            except Exception as error:
                self._skip(pending, limit, error)
                continue
            if slot >= 0:
                counted.sessions += ((zone, slot),)
        return None

    def _acquire_unknown(self, pending: PendingRequest, limit: ConnLimit, key: Key) -> int:
        """Count a session whose key is near the limit, or new; returns its slot, or ``_OVER``."""
        dry_run = self._server.limit_conn_dry_run
        slot, is_over = limit.zone.acquire(key, limit.connections, dry_run=dry_run)
        if is_over:
            self._report(pending, limit, "limit_conn", self._server.limit_conn_log_level, dry_run=dry_run)
            if not dry_run:
                return _OVER
        return slot

    # -- limit_req

    def _delay(self, pending: PendingRequest) -> float:
        """Count a login; returns the seconds that it must wait, ``_REFUSED`` where it is above a limit."""
        charged: list[tuple[ReqLimit, Key]] = []
        longest, slowest = 0.0, None
        for limit in self._reqs:
            try:
                seconds = self._charge(pending, limit, charged)
            except Exception as error:
                self._skip(pending, limit, error)
                continue
            if seconds == _REFUSED:
                dry_run = self._server.limit_req_dry_run
                self._report(pending, limit, "limit_req", self._server.limit_req_log_level, dry_run=dry_run)
                self._give_back(charged)
                if not dry_run:
                    self._refuse(pending, limit.name, LoginResult.LIMIT_REQ, Limit.LIMIT_REQ)
                    return _REFUSED
                return 0.0
            if seconds > longest:
                longest, slowest = seconds, limit
        if slowest is None:
            return 0.0
        return self._report_delay(pending, slowest, longest)

    def _charge(self, pending: PendingRequest, limit: ReqLimit, charged: list[tuple[ReqLimit, Key]]) -> float:
        request = pending.auth_request
        text = limit.key(request.client, request.credentials.user, b"")
        if not text:
            return 0.0
        key = self._hash_key(text if len(text) <= MAX_KEY else check_length(text))
        excess = limit.zone.charge(key, limit.interval, limit.burst)
        if excess < 0.0:
            return _REFUSED
        charged.append((limit, key))
        if limit.delay is None or excess <= limit.delay:
            return 0.0
        seconds = (excess - limit.delay) * limit.interval
        return seconds if seconds <= self._server.timeout else _REFUSED

    def _give_back(self, charged: list[tuple[ReqLimit, Key]]) -> None:
        for limit, key in charged:
            try:
                limit.zone.give_back(key, limit.interval)
            except Exception as error:
                self._context.log_limit_fault(error)

    def _report_delay(self, pending: PendingRequest, limit: ReqLimit, seconds: float) -> float:
        dry_run = self._server.limit_req_dry_run
        limit.zone.results.delayed.value += 1
        self._log.event(
            _LOWER[self._server.limit_req_log_level],
            "limit_req_delay",
            session=pending.record.session,
            client=pending.record.client,
            zone=limit.name,
            seconds=seconds,
            dry_run=dry_run,
        )
        return 0.0 if dry_run else seconds

    # -- both

    def _refuse(self, pending: PendingRequest, zone: str, result: LoginResult, limit: Limit) -> AuthDenied:
        denied = self._refusals[result]
        self._metrics.limit_rejections[limit].value += 1
        record = pending.record
        record.stage, record.reply, record.limit_zone = _STAGE, denied.text, zone
        return denied

    def _report(
        self,
        pending: PendingRequest,
        limit: ConnLimit | ReqLimit,
        event: str,
        level: LimitLogLevel,
        *,
        dry_run: bool,
    ) -> None:
        results, record = limit.zone.results, pending.record
        (results.dry_run if dry_run else results.rejected).value += 1
        fields = {"session": record.session, "client": record.client, "user": record.user}
        self._log.event(_LEVELS[level], event, **fields, zone=limit.name, dry_run=dry_run)

    def _skip(self, pending: PendingRequest, limit: ConnLimit | ReqLimit, error: Exception) -> None:
        """A login cannot be counted: it is let in."""
        limit.zone.results.skipped.value += 1
        if not isinstance(error, KeyTooLong):
            self._context.log_limit_fault(error)
            return
        record = pending.record
        fields = {"session": record.session, "client": record.client}
        self._log.event(LogLevel.ERROR, "limit_key_too_long", **fields, zone=limit.name)


def _refusal(result: LoginResult, server: ServerConfig) -> AuthDenied:
    words = server.limit_conn_words
    text = _CODES[words].get(server.protocol, b"") + TEXTS[result]
    return AuthDenied(text, code=_SMTP_CODES[words], limit=result)

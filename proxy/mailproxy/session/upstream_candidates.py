# SPDX-License-Identifier: Apache-2.0
"""The login at an upstream with several addresses, or several tries (``proxy_next_upstream``).

Each try is a connection of its own with a generator of its own.  Only failures before the login is
committed (``UpstreamLogin.is_committed``) are tried at another address, so that not more than one
upstream gets a credential.

The addresses of one host name are connected to as in RFC 8305: the next one 250 ms after the one
before, and at once when that fails.  The first that is connected is used, and the others are closed
before anything was sent to them.  Addresses of different items are tried one after the other.

A server without these directives and without names has ``UpstreamConnection`` alone.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mailproxy.enums import ProtocolErrorKind, UpstreamStage, UpstreamTlsFailure, UpstreamTry
from mailproxy.errors import PeerDisconnected, UpstreamError, UpstreamRefused
from mailproxy.loop.epoll import READ, WRITE
from mailproxy.protocols.temporary_refusal import REPEATABLE
from mailproxy.protocols.types import UpstreamAddress, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import reason_of, reply_for_log
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.upstream_token import TokenUpstreamConnection
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import LogLevel, NextUpstream, Protocol, ServerConfig

if TYPE_CHECKING:
    from mailproxy.session.session import Session
    from mailproxy.telemetry.log_format import Field

SAME_ADDRESS_SECONDS: Final = 1.0
"""The pause between the end of a try and another one at the same address."""
NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long one address of a host name may connect until the next one is tried as well (RFC 8305, 5)."""

_BY_STAGE: Final = {
    UpstreamStage.CONNECT: NextUpstream.CONNECT,
    UpstreamStage.GREETING: NextUpstream.GREETING,
    UpstreamStage.TLS: NextUpstream.STARTTLS,
    UpstreamStage.HELLO: NextUpstream.HELLO,
}
_OUTAGES: Final = frozenset({None, ProtocolErrorKind.NO_GREETING})
"""Violations of the protocol that a stopped upstream causes; the others are no outage."""
_CREDENTIALS: Final = frozenset({UpstreamStage.LOGIN, UpstreamStage.ENVELOPE})
_REVEALING: Final = _CREDENTIALS | {UpstreamStage.ID, UpstreamStage.XCLIENT}
"""Stages in which something about the client may have been sent, whether the login is marked or not."""


def failure_of(error: Exception, login: UpstreamLogin, protocol: Protocol) -> NextUpstream | None:
    """Return the kind of a failure after which another try is safe; ``None`` for any other.

    Args:
        error: Why the try failed.
        login: The login of this try.
        protocol: Its protocol.
    """
    if not isinstance(error, UpstreamError) or error.is_misconfigured:
        return None
    if login.is_committed or error.stage in _REVEALING:
        return NextUpstream.UNAVAILABLE if _is_temporary(error, login, protocol) else None
    if error.kind not in _OUTAGES:
        return None
    if error.tls_failure is not None:
        return None if error.tls_failure is UpstreamTlsFailure.INJECTED else NextUpstream.TLS
    if error.stage is UpstreamStage.HELLO and error.reply and not error.reply.startswith(b"4"):
        return None  # a refusal
    return _BY_STAGE.get(error.stage)


def _is_temporary(error: UpstreamError, login: UpstreamLogin, protocol: Protocol) -> bool:
    if not isinstance(error, UpstreamRefused) or error.stage is not UpstreamStage.LOGIN:
        return False
    last_line = error.reply.rstrip(b"\r\n").rpartition(b"\n")[2]
    if protocol is Protocol.IMAP and not last_line.startswith(login.tag + b" "):
        return False
    return REPEATABLE[protocol].match(last_line) is not None


class UpstreamTryConnection(TokenUpstreamConnection):
    """One try.

    Attributes:
        address: Where.
    """

    __slots__ = ("_tries", "address")

    # Set before they are read: by ``open``.
    _tries: UpstreamAttempts
    address: UpstreamAddress

    @classmethod
    def open(cls, tries: UpstreamAttempts, address: UpstreamAddress) -> UpstreamTryConnection:
        """Connect at the end of this event loop iteration.

        Raises:
            UpstreamError: No socket can be made.
        """
        session, login = tries.session, tries.login
        login = replace(login, grant=replace(login.grant, address=address.address, port=address.port))
        self = cls(session, login, address.name)
        self.address, self._tries = address, tries
        self._events = READ | WRITE  # a connection is noticed before the greeting comes
        config = session.server.upstream.server  # with the directives that the login overrides
        self._deadline = min(self._started + config.timeout, tries.deadline)
        limit = config.timeout if config.proxy_connect_timeout is None else config.proxy_connect_timeout
        seconds = min(limit, self._deadline - self._started)
        self.context.timers.arm(self, max(seconds, 0.0))
        return self

    @property
    def is_connecting(self) -> bool:
        """Whether it is not connected yet."""
        return self._is_connecting

    def _on_connected(self, session: Session, seconds: float) -> None:
        self._arm_deadline()
        self._tries.on_connected(self)
        super()._on_connected(session, seconds)

    def on_timeout(self) -> None:
        """The time to connect has passed, or that of the whole try."""
        session = self._session
        if self._is_connecting and session is not None:
            self._on_connect_failed(session, errno.ETIMEDOUT)
        else:
            super().on_timeout()

    def _on_result(self, result: UpstreamLoginResult) -> None:
        if self._session is not None:
            self._tries.on_login(self)
        super()._on_result(result)

    def _on_error(self, error: Exception) -> None:
        if isinstance(error, PeerDisconnected) and not self.login.is_committed:
            stage = UpstreamStage.GREETING if self.tls is None else UpstreamStage.TLS
            error = UpstreamError(reason_of(error), stage=stage)
        super()._on_error(error)

    def _on_failed(self, session: Session, error: Exception) -> None:
        self._tries.on_failed(self, error)


class UpstreamAttempts:
    """The tries of one login.

    Either ``Session.on_upstream_login`` or ``Session.on_upstream_error`` is called once, as by
    ``UpstreamConnection``.

    Attributes:
        deadline: When the login must be complete, in seconds on the monotonic clock.
        login: The login.
        owner: The session that an internal error ends.
        session: The same.
    """

    __slots__ = (
        "_bound_to",
        "_count",
        "_ended",
        "_open",
        "_order",
        "_position",
        "_timer",
        "deadline",
        "login",
        "owner",
        "session",
    )

    def __init__(self, session: Session, login: UpstreamLogin, addresses: Sequence[UpstreamAddress]) -> None:
        config, context = session.server.upstream.server, session.context
        self.session = self.owner = session
        self.login = login
        wanted = list(dict.fromkeys(addresses))
        if not config.proxy_next_upstream:
            wanted = [address for address in wanted if _is_same_host(address, wanted[0])]
        self._order = context.upstream_health.ordered(wanted) if len(wanted) > 1 else wanted
        self._position = 0
        self._bound_to: UpstreamAddress | None = None
        """The only address for further tries: it got credentials."""
        self._count = 0
        self._ended: dict[UpstreamAddress, float] = {}
        self._open: list[UpstreamTryConnection] = []
        self._timer: asyncio.TimerHandle | None = None
        seconds = config.proxy_next_upstream_timeout if config.proxy_next_upstream else config.timeout
        self.deadline = time.monotonic() + seconds

    @classmethod
    def connect(cls, session: Session, login: UpstreamLogin) -> UpstreamAttempts:
        """Begin with the one address from the authentication service.

        Raises:
            UpstreamError: No socket can be made.
        """
        return cls.start(session, login, [UpstreamAddress(login.grant.address, login.grant.port)])

    @classmethod
    def start(
        cls, session: Session, login: UpstreamLogin, addresses: Sequence[UpstreamAddress]
    ) -> UpstreamAttempts:
        """Begin with these addresses, in this order.

        Args:
            session: Waits for the login.
            login: What to log in with.
            addresses: At least one.

        Raises:
            UpstreamError: No socket can be made.
        """
        self = cls(session, login, addresses)
        self._begin(self._next())
        return self

    # -- results of tries

    def on_connected(self, connection: UpstreamTryConnection) -> None:
        """The first address is connected: close the others, to which nothing was sent."""
        self._stop_timer()
        for other in [each for each in self._open if each is not connection]:
            self._abandon(other)
        self._open = [connection]
        self._record(connection.address)

    def on_login(self, connection: UpstreamTryConnection) -> None:
        """The login is complete; the session is called by the connection."""
        self._open.clear()
        self._count_try(UpstreamTry.SUCCESS)
        self.session.context.upstream_health.succeeded(connection.address)

    def on_failed(self, connection: UpstreamTryConnection, error: Exception) -> None:
        """A try failed: begin the next one, or wait for one that connects, or end the login."""
        self._stop_timer()
        self._open.remove(connection)
        address = connection.address
        failure = failure_of(error, connection.login, self.session.server.config.protocol)
        self._ended[address] = now = time.monotonic()
        self._note_health(address, error, failure)
        self._record(address)
        if failure is None or not self._may_follow(failure, address):
            self._end(error, UpstreamTry.FINAL)
            return
        if failure is NextUpstream.UNAVAILABLE:
            self._bound_to = address
        if self._count >= self.session.server.config.proxy_next_upstream_tries:
            self._wait_or_end(connection, error, UpstreamTry.EXHAUSTED)
            return
        following = self._next()
        seconds = max(self._ended.get(following, 0.0) + SAME_ADDRESS_SECONDS - now, 0.0)
        if self._open and seconds:
            self._wait_or_end(connection, error, UpstreamTry.EXHAUSTED)
        elif now + seconds >= self.deadline:
            self._wait_or_end(connection, error, UpstreamTry.TIMEOUT)
        else:
            self._count_try(UpstreamTry.NEXT)
            self._log(connection, error, following)
            self._follow(following, seconds)

    def _may_follow(self, failure: NextUpstream, address: UpstreamAddress) -> bool:
        """Whether another try may follow this failure."""
        if failure in self.session.server.config.proxy_next_upstream:
            return True
        if failure is not NextUpstream.CONNECT or self._bound_to is not None:
            return False
        # the addresses of one name are one upstream, without proxy_next_upstream too
        return bool(self._open) or any(
            each not in self._ended and _is_same_host(each, address) for each in self._order
        )

    def _note_health(self, address: UpstreamAddress, error: Exception, failure: NextUpstream | None) -> None:
        """Record a failure that no client can cause, or a reply to credentials."""
        health = self.session.context.upstream_health
        if failure is not None and failure is not NextUpstream.UNAVAILABLE:
            health.failed(address)
        elif isinstance(error, UpstreamRefused) and error.stage in _CREDENTIALS:
            health.succeeded(address)

    def _wait_or_end(self, connection: UpstreamTryConnection, error: Exception, result: UpstreamTry) -> None:
        """Wait for another address that is connecting; without one, end the login."""
        if not self._open:
            self._end(error, result)
            return
        self._count_try(UpstreamTry.NEXT)
        self._log(connection, error, self._open[0].address)
        self._record(self._open[0].address)

    def _end(self, error: Exception, result: UpstreamTry) -> None:
        self._count_try(result)
        self._abandon_all()
        self.session.on_upstream_error(error)

    # -- the next try

    def _next(self) -> UpstreamAddress:
        """Return the address of the next try; after the last one comes the first one again."""
        if self._bound_to is not None:
            return self._bound_to
        return self._order[self._position % len(self._order)]

    def _follow(self, address: UpstreamAddress, seconds: float) -> None:
        """Begin the next try after a pause."""
        if seconds:
            self._timer = self.session.context.loop.call_later(seconds, self._begin_later, address)
        else:
            self._begin_later(address)

    def _begin_later(self, address: UpstreamAddress) -> None:
        try:
            self._begin(address)
        except UpstreamError as error:
            self._end(error, UpstreamTry.FINAL)

    def _begin(self, address: UpstreamAddress) -> None:
        """Begin a try, and a timer for the next address of the same name."""
        self._timer = None
        session = self.session
        connection = UpstreamTryConnection.open(self, address)
        self._open.append(connection)
        self._count += 1
        if self._bound_to is None:
            self._position += 1
        session.context.upstream_health.begin(address)
        self._record(address)
        if self._races_with(address):
            self._timer = session.context.loop.call_later(NEXT_ADDRESS_SECONDS, self._race)

    def _races_with(self, address: UpstreamAddress) -> bool:
        """Whether the next address belongs to the same name, is not tried yet, and may be tried."""
        following = self._next()
        return (
            self._bound_to is None
            and self._position < len(self._order)
            and _is_same_host(address, following)
            and self._count < self.session.server.config.proxy_next_upstream_tries
        )

    def _race(self) -> None:
        """Try the next address of the name as well."""
        self._timer = None
        if not any(connection.is_connecting for connection in self._open):
            return
        try:
            self._begin(self._next())
        except UpstreamError:
            return  # no more sockets: wait for those that there are

    # -- the end

    def cancel(self) -> None:
        """Close everything without calling the session: the client has left."""
        self._abandon_all()

    def close(self) -> None:
        """Close everything, in whatever state."""
        self._stop_timer()
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _abandon_all(self) -> None:
        self._stop_timer()
        connections, self._open = self._open, []
        for connection in connections:
            self._abandon(connection)

    def _abandon(self, connection: UpstreamTryConnection) -> None:
        self._count_try(UpstreamTry.ABANDONED)
        connection.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- metrics and log

    def _count_try(self, result: UpstreamTry) -> None:
        self.session.protocol_metrics.upstream_tries[result].value += 1

    def _record(self, address: UpstreamAddress) -> None:
        """Make this the upstream of the session's log line."""
        record = self.session.record
        record.upstream, record.upstream_port = address.address, address.port

    def _log(self, connection: UpstreamTryConnection, error: Exception, following: UpstreamAddress) -> None:
        """Log a failed try that another one follows."""
        address, grant = connection.address, self.login.grant
        fields: dict[str, Field] = {"upstream": format_host_port(address.address, address.port)}
        if isinstance(error, UpstreamError):
            fields |= {"stage": error.stage, "reason": str(error)}
            if error.tls_failure is not None:
                fields["failure"] = error.tls_failure
            if error.reply:
                fields["reply"] = reply_for_log(error.reply, grant.user, grant.password)
        fields["next"] = format_host_port(following.address, following.port)
        self.session.log_event(LogLevel.ERROR, "upstream_try_failed", **fields)


Connect = Callable[["Session", UpstreamLogin], UpstreamConnection | UpstreamAttempts]
"""Begins the login of a session at its upstream; raises ``UpstreamError`` if no socket can be made."""


def may_try_again(config: ServerConfig) -> bool:
    """Whether a login at one address needs more than one connection, or a timeout for connecting."""
    return bool(config.proxy_next_upstream) or config.proxy_connect_timeout is not None


def connector(config: ServerConfig, connection: type[UpstreamConnection]) -> Connect:
    """Return what connects the logins of a server to one address: once, unless directives demand more."""
    return UpstreamAttempts.connect if may_try_again(config) else connection


def _is_same_host(one: UpstreamAddress, other: UpstreamAddress) -> bool:
    """Whether these are addresses of one host name and port, or the same address."""
    return one == other or bool(one.name and one.name == other.name and one.port == other.port)

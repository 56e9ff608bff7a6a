# SPDX-License-Identifier: Apache-2.0
"""The lookup of host names in ``Auth-Server`` before a login at the upstream (``auth_http_server_names``).

A server without that directive has no such step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mailproxy.enums import UpstreamStage
from mailproxy.errors import UpstreamError
from mailproxy.protocols.types import Cancellable, UpstreamAddress, UpstreamLogin
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.upstream_candidates import UpstreamAttempts, may_try_again

if TYPE_CHECKING:
    from mailproxy.dns.lookup import Cancel
    from mailproxy.dns.upstream_names import Resolved
    from mailproxy.loop.timeouts import Deadlines
    from mailproxy.session.session import Session


class UpstreamLookup:
    """One lookup, and the connection that follows it.

    The lookup is limited by ``timeout``.  Either ``Session.on_upstream_login`` or
    ``Session.on_upstream_error`` is called once, but neither where ``connect`` raises.

    Attributes:
        owner: The session that an internal error ends.
        timer: Set by ``Timeouts``.
    """

    __slots__ = ("_cancel_lookup", "_connection", "_login", "_result", "_session", "owner", "timer")

    def __init__(self, session: Session, login: UpstreamLogin) -> None:
        self._session = self.owner = session
        self._login = login
        self._cancel_lookup: Cancel | None = None
        self._connection: UpstreamConnection | UpstreamAttempts | None = None
        self._result: Resolved | None = None
        self.timer: Deadlines | None = None

    @classmethod
    def connect(cls, session: Session, login: UpstreamLogin) -> Connecting:
        """Connect to what the authentication service named; at once if nothing has to be looked up.

        Raises:
            UpstreamError: There is no address, or no socket can be made.
        """
        names, servers = session.server.upstream_names, login.grant.servers
        if not servers or (names is None and len(servers) == 1):
            return session.server.connect_address(session, login)
        if names is None:  # groups of addresses alone
            return _connect(session, login, tuple(UpstreamAddress(each.host, each.port) for each in servers))
        self = cls(session, login)
        cancel = names.resolve(servers, self.on_resolved)
        if self._result is not None:
            return _connect(session, login, self._result)
        self._cancel_lookup = cancel
        session.server.login_timeouts.arm(self)
        return self

    def on_resolved(self, result: Resolved) -> None:
        """The lookup is over: before ``resolve`` returns, where the addresses were in the cache."""
        if self._cancel_lookup is None:
            self._result = result
            return
        self._cancel_lookup = None
        self._session.context.timers.disarm(self)
        try:
            self._connection = _connect(self._session, self._login, result)
        except UpstreamError as error:
            self._session.on_upstream_error(error)

    def on_timeout(self) -> None:
        """``timeout`` has passed."""
        self.cancel()
        text = f'"{self._login.grant.address}" in Auth-Server does not resolve: no reply within timeout'
        self._session.on_upstream_error(UpstreamError(text, stage=UpstreamStage.RESOLVE))

    def cancel(self) -> None:
        """End without calling the session: the client has left."""
        cancel, self._cancel_lookup = self._cancel_lookup, None
        if cancel is not None:
            self._session.context.timers.disarm(self)
            cancel()
        if self._connection is not None:
            self._connection.cancel()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()


Connecting = UpstreamConnection | UpstreamAttempts | UpstreamLookup | Cancellable
"""A login at an upstream that is not complete, or the delay after its refusal."""


def _connect(
    session: Session, login: UpstreamLogin, result: Resolved
) -> UpstreamConnection | UpstreamAttempts:
    """Connect to the addresses; to a single one without further tries as without names.

    Raises:
        UpstreamError: There is none, or no socket can be made.
    """
    if isinstance(result, UpstreamError):
        raise result
    candidate = result[0]
    if len(result) > 1 or may_try_again(session.server.config):
        return UpstreamAttempts.start(session, login, result)
    session.record.upstream, session.record.upstream_port = candidate.address, candidate.port
    grant = replace(login.grant, address=candidate.address, port=candidate.port)
    return session.server.connection(session, replace(login, grant=grant), candidate.name)

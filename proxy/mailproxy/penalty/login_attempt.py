# SPDX-License-Identifier: Apache-2.0
"""One login whose credentials count: from its arrival until the service or the mail server decides."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from mailproxy.auth_http.pending_request import AuthCallback, PendingRequest
from mailproxy.errors import AuthUnavailable
from mailproxy.protocols.temporary_refusal import is_login_refused
from mailproxy.protocols.types import Decision

if TYPE_CHECKING:
    from mailproxy.penalty.penalty_authenticator import PenaltyAuthenticator


class LoginAttempt:
    """A login, and what it holds: a place among those that wait, and the turn of its account.

    Attributes:
        account: Key of the account whose logins take turns.
        address: Key of the address with the penalty.
        arrived: When the client sent its credentials.
        client: The address, as ``addresses.packed`` returns it.
        credentials: What the client has sent.
        has_waited: Whether the authentication service has deferred it: it was delayed before.
        is_delayed: Whether its address has a penalty.
        is_forwarded: Whether it is at the next authenticator.
        is_over: Whether the mail server has decided, or the session has ended before that.
        is_queued: Whether it waits for its turn.
        is_waiting: Whether it is counted among those that wait.
        known_since: When its user logged in from there; 0 if not lately.
        owner: The session's callback, which leads to the session that an internal error ends; ``None``
            when the session has its result.
        pair: Key of its user and network.
        penalty: The highest penalty that it has waited for.
        pending: The request.
        timer: The end of a delay, if there is one.
        turn: What ``PodState.take_turn`` returned; ``None`` if it does not have its turn.
    """

    # Defaults are of the class, not written for each login: nearly all logins are of users who are known.
    account: int = 0
    address: int = 0
    has_waited: bool = False
    is_delayed: bool = False
    is_forwarded: bool = False
    is_over: bool = False
    is_queued: bool = False
    is_waiting: bool = False
    known_since: float = 0.0
    pair: int = 0
    penalty: int = 0
    timer: asyncio.TimerHandle | None = None
    turn: float | None = None

    def __init__(
        self, authenticator: PenaltyAuthenticator, pending: PendingRequest, client: bytes, arrived: float
    ) -> None:
        self._authenticator = authenticator
        self.pending = pending
        self.client = client
        self.credentials = pending.auth_request.credentials
        self.owner: AuthCallback | None = pending.callback
        self.arrived = arrived

    def __del__(self) -> None:
        # A login that was allowed and that no session has sent to a mail server, such as one above a limit.
        if self.turn is not None:
            self._authenticator.end_turn(self)

    @property
    def is_known(self) -> bool:
        """Whether its user logged in from there lately: it is not delayed."""
        return self.known_since > 0

    def resume(self) -> None:
        """A delay is over."""
        self.timer = None
        if not self.is_forwarded:
            self._authenticator.advance(self)

    def on_result(self, result: Decision | AuthUnavailable) -> None:
        """The next authenticator has decided."""
        self.is_forwarded = False
        self._authenticator.on_result(self, result)

    def deliver(self, result: Decision | AuthUnavailable) -> None:
        """Pass a result to the session."""
        self.timer = None
        self._authenticator.deliver(self, result)

    # -- after the authentication service has allowed it

    def succeeded(self) -> None:
        """The mail server has accepted the login."""
        self._authenticator.record_success(self)

    def abandoned(self) -> None:
        """The session has ended before the mail server decided."""
        self.is_over = True
        self._authenticator.end_turn(self)

    def failed(self, session: Any, error: Exception) -> RefusalDelay | None:  # noqa: ANN401 - a ``Session``, which is of a higher layer
        """The login at the mail server has failed.

        Args:
            session: Gets the error again after the delay, by ``on_upstream_error``.
            error: Why.

        Returns:
            The delay before the client gets its reply; ``None`` for no delay, and for every later call.
        """
        if self.is_over:
            return None  # so is the delay
        self.is_over = True
        authenticator = self._authenticator
        if not is_login_refused(error, authenticator.protocol):
            authenticator.end_turn(self)
            return None
        authenticator.record_failure(self)
        seconds = authenticator.failure_delay
        return RefusalDelay(session, error, seconds, authenticator) if seconds else None


class RefusalDelay:
    """The delay between a refusal by the mail server and the reply to the client."""

    __slots__ = ("_seconds", "_timer", "owner")

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - as in ``failed``
        error: Exception,
        seconds: float,
        authenticator: PenaltyAuthenticator,
    ) -> None:
        self.owner = session
        self._seconds = seconds
        self._timer = authenticator.call_later(seconds, partial(self._end, error))

    def _end(self, error: Exception) -> None:
        self.owner.on_upstream_error(error, self._seconds)

    def cancel(self) -> None:
        """End without calling the session: the client has left."""
        self._timer.cancel()

    close = cancel

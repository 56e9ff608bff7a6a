# SPDX-License-Identifier: Apache-2.0
"""Logins that the proxy decides about with a list of users (``auth_mode static``)."""

from __future__ import annotations

from functools import partial
from typing import Final

from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.enums import PasswordFinding
from mailproxy.errors import AuthUnavailable
from mailproxy.protocols.types import Decision, LoginUnknown
from mailproxy.routing.route_authenticator import NO_ROUTE, LoginRouter, RouteAuthenticator, password_fault
from mailproxy.users.password_pool import PasswordPool, Verification
from mailproxy.users.user_list import UserList

UNKNOWN_USER: Final = b"unknown user"
WRONG_PASSWORD: Final = b"wrong password"
NO_PASSWORD: Final = b"no password"
"""For the log; clients get the same reply."""
QUEUE_FULL: Final = "too many passwords wait to be verified"
CANNOT_VERIFY: Final = "the password cannot be verified: internal error"


class StaticAuthenticator(RouteAuthenticator):
    """Verifies passwords, then routes logins; an ``Authenticator``.

    A user that is not in the list costs a verification too, so that the time of the reply does not
    show which users there are.

    Args:
        context: The worker's shared parts.
        router: The routes of the server.
        users: Its list of users.
        pool: The threads of the worker.
    """

    __slots__ = ("_pool", "_users", "_verifications")

    def __init__(
        self, context: WorkerContext, router: LoginRouter, users: UserList, pool: PasswordPool
    ) -> None:
        super().__init__(context, router)
        self._users = users
        self._pool = pool
        self._verifications: dict[PendingRequest, Verification] = {}

    def send(self, pending: PendingRequest) -> None:
        """Verify the password of a login.  The request's callback gets the result, later."""
        credentials = pending.auth_request.credentials
        fault = password_fault(credentials)
        if credentials.password is None or fault is not None:
            self.miss(pending, fault or NO_PASSWORD)
            return
        hashed = self._users.find(credentials.user)
        verification = self._pool.submit(
            hashed or self._users.dummy,
            credentials.password,
            partial(self._on_verified, pending, hashed is not None),
        )
        if verification is None:
            self._count(PasswordFinding.QUEUE_FULL)
            self._deliver_later(pending, AuthUnavailable(QUEUE_FULL))
        else:
            self._verifications[pending] = verification

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a request whose client has left; a verification that waits does not begin."""
        super().cancel(pending)
        verification = self._verifications.pop(pending, None)
        if verification is not None:
            verification.cancel()

    def _on_verified(self, pending: PendingRequest, is_known: bool, result: bool | Exception) -> None:
        self._verifications.pop(pending, None)
        if isinstance(result, Exception):
            self._count(PasswordFinding.ERROR)
            self._context.log_internal_error(None, result, "PasswordPool")
            self._deliver(pending, AuthUnavailable(CANNOT_VERIFY))
            return
        if not is_known:
            self._count(PasswordFinding.UNKNOWN_USER)
            self._deliver(pending, LoginUnknown(UNKNOWN_USER))
        elif not result:
            self._count(PasswordFinding.WRONG)
            self._deliver(pending, LoginUnknown(WRONG_PASSWORD))
        else:
            self._count(PasswordFinding.RIGHT)
            self._deliver(pending, self._route(pending))

    def _route(self, pending: PendingRequest) -> Decision:
        credentials = pending.auth_request.credentials
        match = self._router.find(credentials.user)
        return LoginUnknown(NO_ROUTE) if match is None else self._router.allow(match, credentials)

    def _count(self, finding: PasswordFinding) -> None:
        self._context.metrics.password_verifications[finding].value += 1

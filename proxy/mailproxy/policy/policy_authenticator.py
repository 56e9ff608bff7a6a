# SPDX-License-Identifier: Apache-2.0
"""Asks a policy server about logins before and after what decides about them, and reports their results.

A server that fails is no failed login: either the login goes on without it, or the client gets the reply
of an outage (``reject_on_fail``).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mailproxy.auth_http.pending_request import AuthCallback, Authenticator, PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.enums import LoginResult, PolicyResult
from mailproxy.errors import AuthTimedOut, AuthUnavailable, AuthUnreachable
from mailproxy.policy.policy_client import Cancellable, OnAnswer, PolicyAnswer, PolicyClient
from mailproxy.policy.policy_request import (
    is_asked_about,
    password_hash,
    render_policy_report,
    render_policy_request,
)
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Decision,
    LoginUnknown,
    PolicyFacts,
)
from mailproxy_config.model import Protocol, ServerConfig
from mailproxy_config.policy_server import AuthPolicyServer

REFUSAL: Final = b"Invalid login or password"
"""The text of a refusal: that of a wrong password in nginx's documentation of ``auth_http``.

Without an authentication service (``auth_mode upstream`` and ``static``) it is that for the log: clients
get the reply to a wrong password there.
"""
REFUSAL_WAIT: Final = 2
"""Seconds before the reply to a refused login; after it, the client may log in again."""
_RESULTS: Final = {
    LoginResult.SUCCESS: True,
    LoginResult.DENIED: False,
    LoginResult.UPSTREAM_DENIED: False,
}
"""The results that are reported.  All others are outages, or no login."""


def report_login(client: PolicyClient, protocol: Protocol, request: AuthRequest, result: LoginResult) -> None:
    """Report how a login ended, at the authentication service or at the upstream.

    Args:
        client: The client of the policy server.
        protocol: That of the server block.
        request: The login.
        result: Its result.  Outages and logins that the client left are not reported.
    """
    success = _RESULTS.get(result)
    if success is not None and request.policy is not None:
        client.report(render_policy_report(protocol, request, request.policy, success=success))


class PolicyAuthenticator:
    """Asks a policy server about the logins of one server block.

    Args:
        context: The worker's shared parts.
        inner: What decides about logins.
        server: The server block.
        client: The client of its policy server.
    """

    __slots__ = ("_asking", "_client", "_context", "_inner", "_policy", "_server")

    def __init__(
        self,
        context: WorkerContext,
        inner: Authenticator,
        server: ServerConfig,
        policy: AuthPolicyServer,
        client: PolicyClient,
    ) -> None:
        self._context = context
        self._inner = inner
        self._server = server
        self._policy = policy
        self._client = client
        self._asking: dict[PendingRequest, Cancellable] = {}

    def send(self, pending: PendingRequest) -> None:
        """Ask the policy server, and then what decides; the callback is never called from here."""
        request = pending.auth_request
        if not is_asked_about(request):
            self._inner.send(pending)
        elif request.policy is not None:  # the authentication service has deferred the login
            self._forward(pending)
        else:
            policy, user = self._policy, request.credentials.user
            digest = password_hash(
                self._client.nonce, request.credentials, policy.hash_mech, policy.hash_truncate
            )
            request.policy = PolicyFacts(user, digest)
            if policy.check_before:
                self._ask(pending, partial(self._on_answer_before, pending))
            else:
                self._forward(pending)

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a request whose client has left."""
        asking = self._asking.pop(pending, None)
        if asking is None:
            self._inner.cancel(pending)
        else:
            asking.cancel()
            pending.callback = None

    # -- before

    def _ask(self, pending: PendingRequest, on_answer: OnAnswer) -> None:
        request = pending.auth_request
        assert request.policy is not None  # noqa: S101 - set in ``send``
        body = render_policy_request(self._server.protocol, request, request.policy)
        self._asking[pending] = self._client.ask(body, on_answer)

    def _on_answer_before(self, pending: PendingRequest, answer: PolicyAnswer) -> None:
        callback = pending.callback
        try:
            del self._asking[pending]
            if answer.wait:
                delay = self._context.loop.call_later(answer.wait, self._on_waited, pending)
                self._asking[pending] = delay
            elif not self._ends(pending, answer):
                self._forward_now(pending)
        except Exception as error:  # an entry point
            self._context.handle_error(callback, error)

    def _on_waited(self, pending: PendingRequest) -> None:
        callback = pending.callback
        try:
            del self._asking[pending]
            self._forward_now(pending)
        except Exception as error:  # an entry point
            self._context.handle_error(callback, error)

    def _forward_now(self, pending: PendingRequest) -> None:
        pending.started = self._context.epoll.now  # the time of the policy server is not that of the service
        self._forward(pending)

    def _forward(self, pending: PendingRequest) -> None:
        if self._policy.check_after and pending.callback is not None:
            pending.callback = _AfterDecision(self, pending, pending.callback)
        self._inner.send(pending)

    # -- after

    def on_decision(
        self, pending: PendingRequest, callback: AuthCallback, result: Decision | AuthUnavailable
    ) -> None:
        """There is a decision: ask about a login that is allowed, and pass on any other."""
        if isinstance(result, AuthAllowed):
            pending.callback = callback
            self._ask(pending, partial(self._on_answer_after, pending, result))
        else:
            callback(result)

    def _on_answer_after(self, pending: PendingRequest, allowed: AuthAllowed, answer: PolicyAnswer) -> None:
        del self._asking[pending]
        if not self._ends(pending, answer):
            self._deliver(pending, allowed)

    # -- results

    def _ends(self, pending: PendingRequest, answer: PolicyAnswer) -> bool:
        """Refuse a login because of an answer; return whether it was refused."""
        if answer.result in {PolicyResult.OK, PolicyResult.DELAYED}:
            return False
        if answer.result is PolicyResult.REFUSED:
            self._refuse(pending, answer)
        elif self._policy.reject_on_fail:
            self._deliver(pending, self._outage(answer))
        else:
            return False
        return True

    def _refuse(self, pending: PendingRequest, answer: PolicyAnswer) -> None:
        request = pending.auth_request
        if request.policy is not None:
            request.policy.is_refused = True
            request.policy.message = answer.message
        if self._server.auth_mode.needs_routes:  # in the words and at the time of a wrong password
            self._deliver(pending, LoginUnknown(REFUSAL))
            return
        wait = REFUSAL_WAIT if request.attempt < self._server.max_errors else 0
        self._deliver(pending, AuthDenied(REFUSAL, wait=wait))

    def _outage(self, answer: PolicyAnswer) -> AuthUnavailable:
        timed_out = answer.result is PolicyResult.TIMEOUT
        error = (AuthTimedOut if timed_out else AuthUnreachable)(f"policy server: {answer.message}")
        error.service = self._client.name
        return error

    def _deliver(self, pending: PendingRequest, result: Decision | AuthUnavailable) -> None:
        """Pass a result to a session; what that raises ends the session only."""
        callback, pending.callback = pending.callback, None
        if callback is None:
            return
        try:
            callback(result)
        except Exception as error:  # an entry point
            self._context.handle_error(callback, error)


class _AfterDecision:
    """The callback of a request that is forwarded; its owner is the session, for internal errors."""

    __slots__ = ("_authenticator", "_pending", "owner")

    def __init__(
        self, authenticator: PolicyAuthenticator, pending: PendingRequest, callback: AuthCallback
    ) -> None:
        self.owner = callback
        self._authenticator = authenticator
        self._pending = pending

    def __call__(self, result: Decision | AuthUnavailable) -> None:
        self._authenticator.on_decision(self._pending, self.owner, result)

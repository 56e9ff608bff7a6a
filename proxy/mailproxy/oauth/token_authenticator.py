# SPDX-License-Identifier: Apache-2.0
"""Logins with access tokens that the proxy validates itself (``auth_mode jwt``).

The authentication service gets a token only if it is valid, with the header ``Auth-Token-Issuer`` and
the user name of the token.  Logins with other methods are sent to it as without this mode.

Signatures are verified on the event loop: cryptography holds the interpreter's lock meanwhile, so that
a thread would take time and give none back (docs/decisions/0018-token-validation.md has the figures).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from mailproxy.auth_http.pending_request import Authenticator, PendingRequest
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.context import WorkerContext
from mailproxy.enums import TokenFinding
from mailproxy.errors import AuthUnavailable, AuthUnreachable
from mailproxy.oauth.access_token import ParsedToken, TokenRefused, check_claims, parse_token
from mailproxy.oauth.issuer_keys import IssuerKey
from mailproxy.oauth.jwks_cache import JwksCache, OnFetched
from mailproxy.protocols.sasl_tokens import TOKEN_METHODS, error_challenge
from mailproxy.protocols.types import AuthDenied
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy_config.model import LogLevel, ServerConfig
from mailproxy_config.oauth_issuer import OAuthIssuer

REFUSAL: Final = b"Invalid token"
REFUSAL_WAIT: Final = 1
"""Seconds before the reply to a refused token; after it, the client may log in again."""


class TokenAuthenticator:
    """Validates tokens of one server block, then sends the login to the authentication service.

    Args:
        context: The worker's shared parts.
        service: The client of the authentication service, or its cache.
        server: The server block.
        template: Renders requests to the service.
        caches: The keys of the server's issuers, by ``jwks_uri``.
        log: The log of the server's sessions.
        clock: Unix time.
    """

    __slots__ = (
        "_challenges",
        "_clock",
        "_context",
        "_issuers",
        "_log",
        "_max_refusals",
        "_service",
        "_template",
        "_waiting",
    )

    def __init__(
        self,
        context: WorkerContext,
        service: Authenticator,
        server: ServerConfig,
        template: RequestTemplate,
        *,
        caches: Mapping[str, JwksCache],
        log: LogWriter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._service = service
        self._template = template
        self._issuers = {one.issuer: (one, caches[one.jwks_uri]) for one in server.oauth_issuer}
        self._challenges = {one.issuer: error_challenge(one) for one in server.oauth_issuer}
        self._max_refusals = server.max_errors
        self._log = log
        self._clock = clock
        self._waiting: dict[PendingRequest, tuple[JwksCache, OnFetched]] = {}

    def send(self, pending: PendingRequest) -> None:
        """Validate the token of a request, and send the request to the authentication service.

        The callback of the request gets the result; it is never called from here.
        """
        request = pending.auth_request
        secret = request.credentials.password
        if request.credentials.method not in TOKEN_METHODS or secret is None:
            self._service.send(pending)
            return
        if request.token_issuer:  # the service has deferred the login
            self._send(pending, request.token_issuer)
            return
        issuer: str | None = None
        try:
            token = parse_token(secret.reveal())
            if token.issuer not in self._issuers:
                raise TokenRefused(TokenFinding.ISSUER)
            issuer = token.issuer
            self._validate(pending, token)
        except TokenRefused as refused:
            self._refuse_later(pending, refused.result, issuer)

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a request whose client has left."""
        waiting = self._waiting.pop(pending, None)
        if waiting is not None:
            cache, on_fetched = waiting
            cache.stop_waiting(on_fetched)
        self._service.cancel(pending)
        pending.callback = None

    def _validate(self, pending: PendingRequest, token: ParsedToken) -> None:
        """Verify a token now, or when its key was fetched."""
        issuer, cache = self._issuers[token.issuer]
        key = cache.find(token.key_id)
        if key is not None:
            self._verify(pending, token, issuer, key)
            return
        on_fetched = partial(self._on_fetched, pending, token)
        if cache.wait(on_fetched):
            self._waiting[pending] = cache, on_fetched
        elif cache.has_failed:
            self._context.loop.call_soon(self._report_outage, pending, cache)
        else:
            raise TokenRefused(TokenFinding.UNKNOWN_KEY)

    def _on_fetched(self, pending: PendingRequest, token: ParsedToken) -> None:
        """A fetch of keys is over."""
        del self._waiting[pending]
        issuer, cache = self._issuers[token.issuer]
        key = cache.find(token.key_id)
        if key is None and cache.has_failed:
            self._report_outage(pending, cache)
            return
        try:
            if key is None:
                raise TokenRefused(TokenFinding.UNKNOWN_KEY)
            self._verify(pending, token, issuer, key)
        except TokenRefused as refused:
            self._refuse(pending, refused.result, issuer.issuer)

    def _verify(
        self, pending: PendingRequest, token: ParsedToken, issuer: OAuthIssuer, key: IssuerKey
    ) -> None:
        request = pending.auth_request
        key.verify(token, issuer.allowed_algorithms)
        identity = check_claims(token, issuer, request.credentials.user, self._clock())
        self._count(TokenFinding.VALID)
        request.credentials = replace(request.credentials, user=identity)
        request.token_issuer = issuer.issuer
        pending.data = self._template.render(request)
        pending.started = self._context.epoll.now
        self._send(pending, issuer.issuer)

    def _send(self, pending: PendingRequest, issuer: str) -> None:
        pending.data = b"%bAuth-Token-Issuer: %b\r\n\r\n" % (pending.data[:-2], issuer.encode())
        self._service.send(pending)

    # -- refusals and outages

    def _refuse_later(self, pending: PendingRequest, result: TokenFinding, issuer: str | None) -> None:
        self._context.loop.call_soon(self._refuse, pending, result, issuer)

    def _refuse(self, pending: PendingRequest, result: TokenFinding, issuer: str | None) -> None:
        request = pending.auth_request
        if pending.callback is None:
            return  # the client has left
        self._count(result)
        self._log.event(
            LogLevel.INFO,
            "token_refused",
            session=request.client.session_id,
            client=request.client.address,
            reason=result,
            issuer=issuer,
        )
        challenge = self._challenges[issuer] if issuer else next(iter(self._challenges.values()))
        wait = REFUSAL_WAIT if request.attempt < self._max_refusals else 0
        self._deliver(pending, AuthDenied(REFUSAL, wait=wait, sasl_error=challenge))

    def _report_outage(self, pending: PendingRequest, cache: JwksCache) -> None:
        if pending.callback is None:
            return
        self._count(TokenFinding.UNAVAILABLE)
        error = AuthUnreachable("the keys of the issuer cannot be fetched")
        error.service = cache.name
        self._deliver(pending, error)

    def _deliver(self, pending: PendingRequest, result: AuthDenied | AuthUnavailable) -> None:
        callback, pending.callback = pending.callback, None
        if callback is None:
            return
        try:
            callback(result)
        except Exception as error:  # an entry point
            self._context.handle_error(callback, error)

    def _count(self, result: TokenFinding) -> None:
        self._context.metrics.token_validations[result].value += 1

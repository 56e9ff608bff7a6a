# SPDX-License-Identifier: Apache-2.0
"""The access token of one client at one token service, kept until shortly before it expires.

There is one request at a time.  While a new token cannot be had, the old one is used until it expires.
Times are measured from the request on with the monotonic clock: the clocks of this machine and of the
token service need not agree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol
from urllib.parse import urlsplit

from mailproxy.context import WorkerContext
from mailproxy.dns.lookup import TaskSet
from mailproxy.enums import TokenResult
from mailproxy.errors import TokenUnavailable
from mailproxy.oauth.token_request import TokenAnswer, TokenRequestError, form, request_token
from mailproxy.protocols.types import Secret
from mailproxy_config.model import LogLevel
from mailproxy_config.upstream_login import ProxyAuthToken

REQUEST_SECONDS: Final = 10.0
"""Timeout of one request."""
REFRESH_BEFORE: Final = 120.0
"""Seconds before its expiry at which a token is replaced; at most half of its lifetime."""
_RETRY_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses after failures in a row."""
FORCED_INTERVAL: Final = 60.0
"""Seconds between two requests because an upstream refused the token."""

Fetch = Callable[[str, Mapping[str, str]], Awaitable[TokenAnswer]]


class TokenWaiter(Protocol):
    """A login that waits for a token."""

    def on_token(self, token: Secret | TokenUnavailable) -> None:
        """The token is there, or the request failed."""
        ...


class TokenSource:
    """The token of one client.

    Args:
        context: The worker's shared parts.
        config: The token service and the client.
        client_secret: The client's secret.
        refresh_token: The refresh token.
        fetch: Sends a request.
        clock: Returns seconds.

    Attributes:
        servers: The names of the servers that use it, for metrics.
    """

    def __init__(
        self,
        context: WorkerContext,
        config: ProxyAuthToken,
        client_secret: Secret | None,
        refresh_token: Secret | None,
        *,
        fetch: Fetch = request_token,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servers: frozenset[str] = frozenset()
        self._context = context
        self._config = config
        self._client_secret = client_secret
        self._refresh_token = refresh_token
        self._fetch = fetch
        self._clock = clock
        self._tasks = TaskSet()
        self._waiters: dict[TokenWaiter, None] = {}
        self._token: Secret | None = None
        self._refresh_at = 0.0
        self._expires_at = 0.0
        self._failures = 0
        self._retry_at = 0.0
        self._last_error: TokenRequestError | None = None
        self._is_running = False
        self._is_forced = False
        self._forced_at = float("-inf")

    # -- for logins

    def get(self, waiter: TokenWaiter) -> Secret | None:
        """Return the token, or ``None``: then ``waiter.on_token`` is called later, unless it is cancelled.

        Raises:
            TokenUnavailable: The last request failed a moment ago.
        """
        now = self._clock()
        is_valid = self._token is not None and now < self._expires_at
        if is_valid and not self._is_forced:
            if now >= self._refresh_at and now >= self._retry_at:
                self._start()
            return self._token
        if not self._is_running:
            if now < self._retry_at and self._last_error is not None:
                raise _unavailable(self._last_error)
            self._start()
        self._waiters[waiter] = None
        return None

    def cancel(self, waiter: TokenWaiter) -> None:
        """Forget a login that waits."""
        self._waiters.pop(waiter, None)

    def refuse(self, token: object) -> bool:
        """An upstream refused this token.

        Returns:
            Whether another attempt may get another token.  Tokens are requested for this reason once in
            ``FORCED_INTERVAL``: the cause may be one mailbox.
        """
        if token != self._token:
            return self._token is not None
        now = self._clock()
        if now - self._forced_at < FORCED_INTERVAL:
            return False
        self._forced_at = now
        self._is_forced = True
        self._start()
        return True

    async def close(self) -> None:
        """Cancel a request."""
        self._waiters.clear()
        await self._tasks.close()

    # -- requests

    def _start(self) -> None:
        if not self._is_running:
            self._is_running = True
            self._tasks.start(self._refresh())

    async def _refresh(self) -> None:
        started = self._clock()
        outcome: TokenAnswer | TokenRequestError
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                fields = form(self._config, self._client_secret, self._refresh_token)
                outcome = await self._fetch(self._config.token_url, fields)
        except TokenRequestError as error:
            outcome = error
        except TimeoutError:
            outcome = TokenRequestError("the token service did not answer in time", TokenResult.TIMEOUT)
        finally:
            self._is_running = False
        self._context.metrics.token_seconds.observe(max(self._clock() - started, 0.0))
        if isinstance(outcome, TokenRequestError):
            self._on_failure(outcome)
        else:
            self._on_answer(outcome, started)
        self._is_forced = False
        self._wake()

    def _on_answer(self, answer: TokenAnswer, started: float) -> None:
        self._token = answer.token
        self._failures, self._last_error, self._retry_at = 0, None, 0.0
        self._expires_at = started + answer.seconds
        self._refresh_at = self._expires_at - min(REFRESH_BEFORE, answer.seconds / 2)
        metrics = self._context.metrics
        metrics.token_requests[TokenResult.OK].value += 1
        left = self._expires_at - self._clock()
        for server in self.servers:
            metrics.token_received(server, time.time() + left)
        self._log(LogLevel.INFO, "token_received", seconds=int(answer.seconds))
        if answer.refresh_token is not None and answer.refresh_token != self._refresh_token:
            self._refresh_token = answer.refresh_token
            reason = "the service sent another refresh token, which is kept in memory only: update the Secret"
            self._log(LogLevel.WARN, "refresh_token_changed", reason=reason)

    def _on_failure(self, error: TokenRequestError) -> None:
        pause = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._failures += 1
        self._last_error = error
        self._retry_at = self._clock() + pause
        self._context.metrics.token_requests[error.result].value += 1
        left = max(int(self._expires_at - self._clock()), 0) if self._token is not None else 0
        self._log(
            LogLevel.ERROR,
            "token_request_failed",
            result=error.result,
            reason=str(error),
            old_token_seconds=left,
        )

    def _wake(self) -> None:
        """Resume all logins that wait."""
        waiters, self._waiters = self._waiters, {}
        token = self._token if self._clock() < self._expires_at else None
        for waiter in waiters:
            if token is not None:
                waiter.on_token(token)
            else:
                assert self._last_error is not None  # noqa: S101 - else there is a token
                waiter.on_token(_unavailable(self._last_error))

    def _log(self, level: LogLevel, event: str, **fields: str | int) -> None:
        service = urlsplit(self._config.token_url).hostname or ""
        self._context.log.event(level, event, service=service, **fields)


def _unavailable(error: TokenRequestError) -> TokenUnavailable:
    return TokenUnavailable(f"no access token: {error}", is_misconfigured=error.is_misconfigured)

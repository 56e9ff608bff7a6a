# SPDX-License-Identifier: Apache-2.0
"""Logins that the authentication service has decided a short time ago (``auth_cache``).

It is directly around the client of the service.  What counts or limits logins is around it, and so sees each
of them, whether the service is asked or not.

A login with the credentials of an entry gets the entry's decision.  Any other login is sent to the service.
Logins with the same credentials that come meanwhile wait for that decision: an allowed login is allowed for
all of them.  After a refusal each of them is sent, since the service may count them.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import fields, replace
from operator import attrgetter
from typing import Final

from mailproxy.auth_cache.cache_key import CacheKeys, token_expiry
from mailproxy.auth_cache.login_cache import CacheEntry, LoginCache
from mailproxy.auth_http.cache_header import CacheWish, read_cache_wish
from mailproxy.auth_http.pending_request import AuthCallback, Authenticator, PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.enums import AuthCacheEvent, AuthErrorReason, CacheUse
from mailproxy.errors import AuthTimedOut, AuthUnavailable, AuthUnreachable
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, Decision
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy_config.auth_cache import AuthCacheConfig
from mailproxy_config.model import LogLevel, ServerConfig

SWEEP_SECONDS: Final = 10.0
"""Time between two searches for entries that are of no use any more."""
SWEEP_AGAIN_SECONDS: Final = 0.05
"""The same where a search has found many."""
LOG_SECONDS: Final = 60.0
"""At most one event in so many seconds about entries that are used because the service fails."""

_PASSWORD: Final = re.compile(rb"\nauth-pass:[^\n]*", re.IGNORECASE)
_VALUES: Final = attrgetter(*(field.name for field in fields(AuthAllowed)))
Result = Decision | AuthUnavailable


class CachingAuthenticator:
    """The cache of one server block in one worker.

    Args:
        context: The worker's shared parts.
        service: The client of the authentication service.
        server: The server block; it has ``auth_cache``.
        keys: Computes the keys.
        log: The log of the server's sessions.
        clock: Monotonic time in seconds.
        wall_clock: Unix time, for the expiry of tokens.

    Attributes:
        entries: The decisions.
    """

    __slots__ = (
        "_clock",
        "_config",
        "_context",
        "_events",
        "_inquiries",
        "_keeps_heads",
        "_keys",
        "_log",
        "_logged_at",
        "_service",
        "_sweep_timer",
        "_waiting",
        "_wall_clock",
        "entries",
    )

    def __init__(
        self,
        context: WorkerContext,
        service: Authenticator,
        server: ServerConfig,
        keys: CacheKeys,
        *,
        log: LogWriter,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._service = service
        self._config = config = server.auth_cache or AuthCacheConfig(size=0)
        self._keys = keys
        self._log = log
        keys_of_limits = [zone.key for zone in server.limit_conn_zone]
        keys_of_limits += [zone.key for zone in server.limit_req_zone]
        self._keeps_heads = any("$auth_http_" in key for key in keys_of_limits)
        self._clock = clock
        self._wall_clock = wall_clock
        self._events = context.metrics.auth_cache_events
        self._logged_at = float("-inf")
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._inquiries: dict[bytes, Inquiry] = {}
        self._waiting: dict[PendingRequest, Inquiry] = {}
        self.entries = LoginCache(config.size, self._on_change)

    def send(self, pending: PendingRequest) -> None:
        """Use the entry of a login, or send it to the authentication service."""
        request = pending.auth_request
        key = self._keys.key(request)
        if key is None:
            pending.record.cache = None  # an earlier login of the session may have come from the cache
            self._service.send(pending)
            return
        entry = self.entries.find(key, now := self._clock())
        if entry is not None and entry.fresh_until > now:
            self._events[AuthCacheEvent.HIT].value += 1
            self._deliver_later(pending, _decision_of(entry, pending), CacheUse.HIT)
            return
        inquiry = self._inquiries.get(key) if self._config.ttl else None
        if inquiry is None:
            self._inquiries[key] = inquiry = Inquiry(self, key)
            self._ask(pending, inquiry)
        else:
            self._events[AuthCacheEvent.JOINED].value += 1
            self._waiting[pending] = inquiry
            inquiry.others[pending] = None

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a request whose client has left."""
        inquiry = self._waiting.pop(pending, None)
        if inquiry is None or inquiry.pending is pending:
            self._service.cancel(pending)
        pending.callback = None
        if inquiry is None:
            return
        inquiry.others.pop(pending, None)
        if inquiry.pending is pending:
            inquiry.pending = None
            if not inquiry.others:
                self._forget(inquiry)
                return
            following = next(iter(inquiry.others))  # asks in its place
            del inquiry.others[following]
            self._ask_for_other(following, inquiry)

    def close(self) -> None:
        """Delete all entries; sessions of an earlier configuration may go on using it."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        self.entries.clear()

    # -- requests

    def _ask(self, pending: PendingRequest, inquiry: Inquiry) -> None:
        """Send a request to the service; its callback becomes the inquiry's."""
        self._events[AuthCacheEvent.MISS].value += 1
        inquiry.pending = pending
        inquiry.owner = pending.callback
        self._waiting[pending] = inquiry
        pending.callback = inquiry
        pending.started = self._context.epoll.now
        self._service.send(pending)

    def _ask_for_other(self, pending: PendingRequest, inquiry: Inquiry) -> None:
        """Do the same in a call that belongs to another session."""
        try:
            self._ask(pending, inquiry)
        except Exception as error:  # an entry point: it ends only its own session
            self._context.handle_error(pending.callback, error)

    def _forget(self, inquiry: Inquiry) -> None:
        if self._inquiries.get(inquiry.key) is inquiry:
            del self._inquiries[inquiry.key]

    def on_result(self, inquiry: Inquiry, pending: PendingRequest, result: Result) -> None:
        """The service has decided about the request of an inquiry, or failed."""
        self._forget(inquiry)
        del self._waiting[pending]
        use: CacheUse | None = None
        is_shared = False
        if isinstance(result, AuthUnavailable):
            stale = self._stale_entry(inquiry.key, result)
            is_shared = True
            if stale is not None:
                use, result = CacheUse.STALE, _decision_of(stale, pending)
        elif isinstance(result, AuthDeferred):
            pending.auth_request.was_deferred = True
            self.entries.drop(inquiry.key)
        else:
            is_shared = self._store(inquiry.key, pending, result) and isinstance(result, AuthAllowed)
        for other in inquiry.others:
            self._answer(other, inquiry.key, result if is_shared else None, use)
        pending.record.cache = use
        if use is CacheUse.STALE:
            self._events[AuthCacheEvent.STALE].value += 1
        if inquiry.owner is not None:
            inquiry.owner(result)

    def _answer(self, other: PendingRequest, key: bytes, result: Result | None, use: CacheUse | None) -> None:
        """Give a request that has waited for another's decision a copy of it, or ask the service."""
        del self._waiting[other]
        if result is None:
            self._ask_for_other(other, Inquiry(self, key))
            return
        if isinstance(result, AuthUnavailable):
            self._deliver_later(other, _copy_of(result), None)
            return
        entry = self.entries.find(key, self._clock())
        if entry is None:  # larger than the cache
            self._ask_for_other(other, Inquiry(self, key))
            return
        if use is CacheUse.STALE:
            self._events[AuthCacheEvent.STALE].value += 1
        self._deliver_later(other, _decision_of(entry, other), use or CacheUse.HIT)

    def _deliver_later(self, pending: PendingRequest, result: Result, use: CacheUse | None) -> None:
        """Call a callback at the end of the event loop iteration, unless it was cancelled before."""
        pending.record.cache = use
        self._context.epoll.defer(_Delivery(pending, result))

    # -- entries

    def _store(self, key: bytes, pending: PendingRequest, decision: AuthAllowed | AuthDenied) -> bool:
        """Keep a decision, if it may be kept, instead of the one before.

        Returns:
            Whether it is used from now on without a request.
        """
        fresh, stale = self._lifetime(pending, decision)
        if fresh <= 0 and stale <= 0:
            self.entries.drop(key)
            return False
        now = self._clock()
        has_client_password = False
        kept: AuthAllowed | AuthDenied
        if isinstance(decision, AuthAllowed):
            has_client_password = decision.password == pending.auth_request.credentials.password
            kept = replace(decision, password=None if has_client_password else decision.password)
        else:
            kept = replace(decision)
        entry = CacheEntry(
            kept,
            has_client_password=has_client_password,
            head=_PASSWORD.sub(b"", pending.head) if self._keeps_heads else b"",
            fresh_until=now + fresh,
            stale_until=now + fresh + stale,
        )
        evicted = self.entries.store(key, entry)
        self._events[AuthCacheEvent.STORED].value += 1
        self._events[AuthCacheEvent.EVICTED].value += evicted
        if self._sweep_timer is None:
            self._sweep_timer = self._context.loop.call_later(SWEEP_SECONDS, self._sweep)
        return fresh > 0

    def _lifetime(self, pending: PendingRequest, decision: AuthAllowed | AuthDenied) -> tuple[float, float]:
        """Return for how many seconds a decision is used, and for how many more while the service fails."""
        config, wish = self._config, read_cache_wish(pending.head)
        if wish.no_store:
            return 0.0, 0.0
        if isinstance(decision, AuthDenied):
            return _negative_ttl(config, wish, decision), 0.0
        fresh = config.ttl if wish.max_age is None else float(wish.max_age)
        stale = config.stale_if_error if wish.stale_if_error is None else float(wish.stale_if_error)
        expiry = token_expiry(pending.auth_request)
        if expiry is not None:
            left = max(expiry - self._wall_clock(), 0.0)
            fresh = min(fresh, left)
            stale = min(stale, left - fresh)
        return fresh, stale

    def _stale_entry(self, key: bytes, error: AuthUnavailable) -> CacheEntry | None:
        """Return the entry to use because the service fails."""
        if not is_outage(error):
            return None
        now = self._clock()
        entry = self.entries.find(key, now)
        if entry is None or not isinstance(entry.decision, AuthAllowed):
            return None
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            self._log.event(
                LogLevel.WARN,
                "auth_cache_used_stale",
                service=error.service,
                reason=str(error) or error.failure,
            )
        return entry

    def _sweep(self) -> None:
        self._sweep_timer = None
        has_more = self.entries.sweep(self._clock())
        if len(self.entries):
            seconds = SWEEP_AGAIN_SECONDS if has_more else SWEEP_SECONDS
            self._sweep_timer = self._context.loop.call_later(seconds, self._sweep)

    def _on_change(self, entries: int, size: int) -> None:
        metrics = self._context.metrics
        metrics.auth_cache_entries.value += entries
        metrics.auth_cache_bytes.value += size


class Inquiry:
    """A request to the service about one key, and the requests that wait for its decision.

    It is the callback of the request.

    Attributes:
        key: The key.
        others: The requests that wait, in the order of their arrival.
        owner: The callback of the session whose request it is.
        pending: The request; ``None`` while there is none.
    """

    __slots__ = ("_cache", "key", "others", "owner", "pending")

    def __init__(self, cache: CachingAuthenticator, key: bytes) -> None:
        self._cache = cache
        self.key = key
        self.others: dict[PendingRequest, None] = {}
        self.owner: AuthCallback | None = None
        self.pending: PendingRequest | None = None

    def __repr__(self) -> str:
        return f"<Inquiry for {1 + len(self.others)} requests>"

    def __call__(self, result: Result) -> None:
        """The service has decided, or failed."""
        pending, self.pending = self.pending, None
        if pending is not None:
            self._cache.on_result(self, pending, result)


class _Delivery:
    """A deferred call of a request's callback.

    Attributes:
        owner: The callback; what it raises ends its session.
    """

    __slots__ = ("_pending", "_result", "owner")

    def __init__(self, pending: PendingRequest, result: Result) -> None:
        self._pending = pending
        self._result = result
        self.owner = pending.callback

    def __call__(self) -> None:
        callback, self._pending.callback = self._pending.callback, None
        if callback is not None:
            callback(self._result)


def is_outage(error: AuthUnavailable) -> bool:
    """Return whether the service fails: no connection, no response in time, or HTTP status 5xx.

    An invalid response, and a status such as 403, is a mistake that somebody has to mend instead.
    """
    return isinstance(error, AuthTimedOut | AuthUnreachable) or error.failure is AuthErrorReason.HTTP_5XX


def _negative_ttl(config: AuthCacheConfig, wish: CacheWish, decision: AuthDenied) -> float:
    """Return for how many seconds a refusal is used.

    Without ``max-age``, one with ``Auth-Wait`` is not: the client may try again on the same connection, and
    the service may count its attempts.  One with a temporary code is no decision about the credentials.
    """
    if wish.max_age is not None:
        return float(wish.max_age)
    is_temporary = decision.code is not None and decision.code.startswith(b"4")
    return 0.0 if decision.wait or is_temporary else config.negative_ttl


def _decision_of(entry: CacheEntry, pending: PendingRequest) -> AuthAllowed | AuthDenied:
    """Return a copy of an entry's decision, with the client's password where that is for the upstream."""
    pending.head = entry.head
    decision = entry.decision
    if isinstance(decision, AuthDenied):
        return replace(decision)
    allowed = AuthAllowed(*_VALUES(decision))  # in a third of the time of ``replace``
    if entry.has_client_password:
        allowed.password = pending.auth_request.credentials.password
    return allowed


def _copy_of(error: AuthUnavailable) -> AuthUnavailable:
    """Return an error for another session: each one raises its own."""
    copied = type(error)(str(error), error.failure)
    copied.service = error.service
    return copied

# SPDX-License-Identifier: Apache-2.0
"""The keys of an issuer in one worker, fetched again in the background.

Keys are replaced, not merged: a key that the issuer has removed is not valid any more.  While the
issuer does not respond, the last keys stay in use, for ``MAX_AGE`` at most.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from mailproxy.context import WorkerContext
from mailproxy.enums import JwksResult
from mailproxy.oauth.issuer_keys import IssuerKey
from mailproxy.oauth.jwks_fetch import JwksFetch, JwksFetchFailed, Keys
from mailproxy.tls.client import client_context
from mailproxy_config.model import LogLevel

REFRESH_SECONDS: Final = 300.0
"""Interval of fetches; each worker's differs by up to a tenth, so that they do not fetch at once."""
RETRY_SECONDS: Final = 30.0
"""Interval after a failure, and minimum between two fetches for a key that is not known."""
MAX_AGE: Final = 86400.0
"""Seconds for which keys are used while they cannot be fetched again."""
_JITTER: Final = 0.1

OnFetched = Callable[[], object]


class JwksCache:
    """The keys at one URL.

    Args:
        context: The worker's shared parts.
        uri: The URL of the key set.
        clock: Monotonic seconds.

    Attributes:
        has_failed: Whether the last fetch failed.
        keys: The keys of the last fetch that succeeded, by ``kid``.
        uri: The URL of the key set.
    """

    __slots__ = (
        "_attempted_at",
        "_clock",
        "_context",
        "_fetch",
        "_fetched_at",
        "_is_closed",
        "_make_tls",
        "_refresh",
        "_waiting",
        "has_failed",
        "keys",
        "uri",
    )

    def __init__(
        self, context: WorkerContext, uri: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.uri = uri
        self.keys: Mapping[str, IssuerKey] = {}
        self.has_failed = False
        self._context = context
        self._clock = clock
        self._make_tls = client_context if uri.startswith("https://") else None
        self._fetch: JwksFetch | None = None
        self._fetched_at = self._attempted_at = clock() - RETRY_SECONDS
        self._refresh: asyncio.TimerHandle | None = None
        self._waiting: dict[OnFetched, None] = {}
        self._is_closed = False

    @property
    def name(self) -> str:
        """Host and port, for logs."""
        return urlsplit(self.uri).netloc

    def start(self) -> None:
        """Fetch the keys now, and again and again."""
        if self._fetch is None and self._refresh is None:
            self._start_fetch()

    def close(self) -> None:
        """Fetch no more; the keys stay, for sessions of an earlier configuration."""
        self._is_closed = True
        if self._refresh is not None:
            self._refresh.cancel()
            self._refresh = None
        if self._fetch is not None:
            self._fetch.cancel()
            self._fetch = None
            self.has_failed = True
            self._notify()

    def find(self, key_id: str) -> IssuerKey | None:
        """Return the key with this ``kid``, if there is one that is not too old."""
        if self.keys and self._clock() - self._fetched_at > MAX_AGE:
            self.keys = {}
        return self.keys.get(key_id)

    def wait(self, on_fetched: OnFetched) -> bool:
        """Wait for a fetch, because a key is not known: one that is in progress, or a new one.

        Args:
            on_fetched: Called once when the fetch is over, never from here.

        Returns:
            Whether it will be called.  If not, the last fetch is too recent for another one.
        """
        if self._fetch is None:
            if self._is_closed or self._clock() - self._attempted_at < RETRY_SECONDS:
                return False
            self._start_fetch()
        self._waiting[on_fetched] = None
        return True

    def stop_waiting(self, on_fetched: OnFetched) -> None:
        """Do not call this any more."""
        self._waiting.pop(on_fetched, None)

    def _start_fetch(self) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
            self._refresh = None
        self._attempted_at = self._clock()
        self._fetch = JwksFetch(self._context.loop, self.uri, self._make_tls, self._on_done)
        self._fetch.start()

    def _on_done(self, result: Keys | JwksFetchFailed) -> None:
        self._fetch = None
        self.has_failed = isinstance(result, JwksFetchFailed)
        if isinstance(result, JwksFetchFailed):
            self._context.metrics.jwks_fetches[result.result].value += 1
            self._context.log.event(
                LogLevel.ERROR,
                "jwks_fetch_failed",
                service=self.name,
                failure=result.result,
                reason=str(result),
            )
        else:
            self._context.metrics.jwks_fetches[JwksResult.OK].value += 1
            self.keys = result
            self._fetched_at = self._clock()
        interval = RETRY_SECONDS if self.has_failed else REFRESH_SECONDS
        delay = interval * random.uniform(1 - _JITTER, 1)  # noqa: S311 - spreads requests, protects nothing
        self._refresh = self._context.loop.call_later(delay, self._start_fetch)
        self._notify()

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for callback in waiting:
            try:
                callback()
            except Exception as error:  # an entry point: the other logins go on
                self._context.handle_error(callback, error)

# SPDX-License-Identifier: Apache-2.0
"""Periodically compares the cache with complete lists and enqueues every resource."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable

from mailproxy_operator.api import names
from mailproxy_operator.api.client import KubeClient
from mailproxy_operator.api.kinds import MAIL_PROXY, POD, POLICIES, Kind
from mailproxy_operator.controller.cache import Cache
from mailproxy_operator.controller.handlers import WATCHED, EventHandlers
from mailproxy_operator.errors import OperatorError

SPREAD = 0.1
RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 60.0
STUCK_SECONDS = 180.0
"""Minimum time without progress until a resync is stuck; every page of a list has its own timeout."""
SETTLE_SECONDS = 1.0
"""Delay after the restart of a watch, until its events have been handled."""
UNLABELLED_SECONDS = 10.0
"""Interval for listing pods that request a sidecar and run without it: no watch selects them."""
UNLABELLED = f"{names.INJECT},!{names.PROXY}"

_log = logging.getLogger(__name__)


class Resync:
    """The resync of one operator.

    Args:
        cluster: The API server to list from.
        cache: The cache to compare with the lists.
        handlers: Called with each object that differs.
        namespaces: The namespaces to list; all namespaces when empty.
        interval: Seconds between two resyncs.
    """

    def __init__(
        self,
        cluster: KubeClient,
        cache: Cache,
        handlers: EventHandlers,
        *,
        namespaces: tuple[str, ...],
        interval: float,
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._handlers = handlers
        self._namespaces = namespaces
        self._interval = interval
        self._moved_at = _now()
        self._listed_again: set[Kind] = set()
        self._changed = asyncio.Event()

    def liveness_error(self) -> str:
        """Return why the resync is stuck; empty when it is not.

        An API server that refuses requests or does not respond is not a reason: a restart would not help.
        """
        age = _now() - self._moved_at
        stuck = max(3 * self._interval, STUCK_SECONDS)
        return f"no resync has made progress for {age:.0f} seconds" if age > stuck else ""

    def listed_again(self, kind: Kind) -> None:
        """Record that a watch restarts with a list: objects that were deleted in between produce no event."""
        self._listed_again.add(kind)
        self._changed.set()

    async def run(self) -> None:
        """Resync until cancelled; a kind whose watch has restarted is compared without delay."""
        due = _now() + self._random_delay()
        while True:
            self._changed.clear()
            is_due = _now() >= due
            kinds = WATCHED if is_due else tuple(self._listed_again)
            self._listed_again.difference_update(kinds)
            try:
                await self._compare(kinds)
            except OperatorError as failure:
                _log.warning("resync: %s", failure)
                self._listed_again.update(kinds)
                self._record_progress()
                delay = getattr(failure, "delay", None) or 0.0
                due = min(due, _now()) if is_due else due
                await asyncio.sleep(min(max(delay, RETRY_SECONDS), LONGEST_RETRY_SECONDS))
                continue
            if is_due:
                due = _now() + self._random_delay()
                self._cache.forget_deleted()
                self._handlers.resync(spread=SPREAD * self._interval)
            await self._wait(due)

    async def watch_unlabelled_pods(self) -> None:
        """List pods that run without the requested sidecar, while there is a MailProxy for them."""
        while True:
            await asyncio.sleep(UNLABELLED_SECONDS)
            if not any((one.get("spec") or {}).get("mode") == "Sidecar" for one in self._cache.resources()):
                continue
            try:
                pods = await self._cluster.list_all(POD, self._namespaces, UNLABELLED)
            except OperatorError as failure:
                _log.warning("pods without a sidecar: %s", failure)
                continue
            for key in self._cache.set_unlabelled_pods(pods):
                self._handlers.enqueue(key)

    async def _compare(self, kinds: Iterable[Kind]) -> None:
        for kind in kinds:
            selector = "" if kind in (MAIL_PROXY, *POLICIES) else names.PROXY
            before = self._cache.uids(kind)
            listed = await self._cluster.list_all(kind, self._namespaces, selector, self._record_progress)
            for differing in self._cache.compare(kind, before, listed):
                self._handlers.differs(kind, differing)
            self._record_progress()

    async def _wait(self, due: float) -> None:
        self._record_progress()
        try:
            async with asyncio.timeout_at(due):
                await self._changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)
        except TimeoutError:
            pass
        self._record_progress()

    def _random_delay(self) -> float:
        return self._interval * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311  no secret

    def _record_progress(self) -> None:
        self._moved_at = _now()


def _now() -> float:
    return asyncio.get_running_loop().time()

# SPDX-License-Identifier: Apache-2.0
"""Name lookups of one kind: cached, shared between callers with the same key, limited in time and number.

Also what ``client_name`` and ``host`` have in common: results, their counters, and the owner of their tasks.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from mailproxy.enums import CacheResult, DnsPurpose, DnsResult
from mailproxy.telemetry.metrics import WorkerMetrics

K = TypeVar("K")
V = TypeVar("V")

MAX_TTL: Final = 86_400
"""Seconds that a result is cached at most, whatever its TTL."""
NEGATIVE_TTL: Final = 10
"""Seconds that NXDOMAIN is cached; ``valid=`` may shorten it."""
MAX_ENTRIES: Final = 10_000
"""Results cached per kind of lookup; above that the oldest is removed."""
MAX_LOOKUPS: Final = 1_000
"""Lookups in progress per kind; one more fails at once with ``DnsResult.INVALID``."""

_SAME_SECOND: Final = 1
"""A TTL of 0 is valid until the end of the second in which it arrived, as in nginx."""
_CONCLUSIVE: Final = frozenset({DnsResult.OK, DnsResult.NXDOMAIN})

Cancel = Callable[[], None]
"""Cancels a lookup for one caller.  May be called at any time, and more than once."""
OnFailure = Callable[[DnsPurpose, str, DnsResult], None]
"""Called with the address or name whose lookup failed."""


def ignore_failure(_purpose: DnsPurpose, _name: str, _result: DnsResult) -> None:
    """Do not report failed lookups."""


def not_pending() -> None:
    """Cancel nothing: the lookup has ended already."""


def packed(address: str) -> bytes | None:
    """Return an IP address as 4 or 16 bytes, ``None`` for any other text.

    A zone (``fe80::1%eth0``) is dropped: DNS has no zones.
    """
    try:
        if ":" in address:
            return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
        return socket.inet_pton(socket.AF_INET, address)
    except (OSError, ValueError, UnicodeError):
        return None


@dataclass(frozen=True, slots=True)
class LookupResult(Generic[V]):
    """The result of a lookup.

    Attributes:
        value: ``None`` for every failure.
        ttl: Seconds that the result may be cached; ``None`` forbids caching.
    """

    result: DnsResult
    value: V | None = None
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class LookupLimits:
    """How long results are cached, in seconds, and how many lookups and results there are.

    Attributes:
        shortest: What a lower TTL is raised to.
        longest: What a higher TTL is lowered to.
        negative: How long NXDOMAIN is cached; ``valid=`` may shorten it.
        results: The maximum number of results; above that the oldest is removed.
        lookups: The maximum number of lookups in progress.
    """

    shortest: int = 0
    longest: int = MAX_TTL
    negative: int = NEGATIVE_TTL
    results: int = MAX_ENTRIES
    lookups: int = MAX_LOOKUPS


def count_lookup(metrics: WorkerMetrics, purpose: DnsPurpose, result: DnsResult, seconds: float) -> None:
    """Count one lookup that was sent to a name server."""
    metrics.dns_queries[purpose, result].value += 1
    metrics.dns_seconds[purpose].observe(seconds)
    if result is DnsResult.TIMEOUT:
        metrics.dns_timeouts[purpose].value += 1


class ResultCache(Generic[K, V]):
    """Results by key; when it is full, the oldest is removed.

    Args:
        valid: ``valid=`` of the ``resolver`` directive, in seconds; replaces every TTL.
        metrics: Counts cache hits and entries.
        limits: How long results are cached, and how many.
    """

    def __init__(
        self, valid: float | None, metrics: WorkerMetrics, limits: LookupLimits = LookupLimits()
    ) -> None:
        self._valid = valid
        self._limits = limits
        # In a plain dict, finding the oldest entry skips over all entries deleted before it, one by one.
        self._entries: OrderedDict[K, tuple[float, LookupResult[V]]] = OrderedDict()
        # The counters themselves: hashing an enum member takes longer than the rest of `get`.
        self._hits = metrics.dns_cache[CacheResult.HIT]
        self._negative_hits = metrics.dns_cache[CacheResult.NEGATIVE_HIT]
        self._misses = metrics.dns_cache[CacheResult.MISS]
        self._stale = metrics.dns_cache[CacheResult.STALE]
        self._gauge = metrics.dns_cache_entries

    def get(self, key: K) -> LookupResult[V] | None:
        """Return a result that has not expired."""
        entry = self._entries.get(key)
        if entry is None:
            self._misses.value += 1
            return None
        if entry[0] <= time.monotonic():
            self._remove(key)
            self._stale.value += 1
            return None
        result = entry[1]
        if result.value is None:
            self._negative_hits.value += 1
        else:
            self._hits.value += 1
        return result

    def put(self, key: K, result: LookupResult[V]) -> None:
        """Store a result, unless it forbids caching."""
        if result.ttl is None:
            return
        if key in self._entries:
            self._remove(key)
        elif len(self._entries) >= self._limits.results:
            self._remove(next(iter(self._entries)))
        expires = int(time.monotonic()) + self._lifetime(result.result, result.ttl) + _SAME_SECOND
        self._entries[key] = (expires, result)
        self._gauge.value += 1

    def clear(self) -> None:
        """Remove all results."""
        self._gauge.value -= len(self._entries)
        self._entries.clear()

    def _lifetime(self, result: DnsResult, ttl: int) -> float:
        valid, limits = self._valid, self._limits
        if result is DnsResult.NXDOMAIN:
            return limits.negative if valid is None else min(valid, limits.negative)
        if result is not DnsResult.OK:
            return ttl
        return min(max(ttl, limits.shortest), limits.longest) if valid is None else valid

    def _remove(self, key: K) -> None:
        del self._entries[key]
        self._gauge.value -= 1


class Waiter(Generic[K, V]):
    """A caller that waits for a result.

    Attributes:
        owner: Leads to the session that ends when its callback raises (``containment``).
    """

    __slots__ = ("_done", "_lookup", "owner")

    def __init__(self, lookup: _PendingLookup[K, V], done: Callable[[LookupResult[V]], None]) -> None:
        self._lookup = lookup
        self.owner = done
        self._done: Callable[[LookupResult[V]], None] | None = done

    def deliver(self, result: LookupResult[V]) -> None:
        """Call back with the result, unless this waiter was cancelled."""
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def cancel(self) -> None:
        """Stop waiting; the lookup ends with its last waiter."""
        if self._done is not None:
            self._done = None
            self._lookup.remove(self)


class _PendingLookup(Generic[K, V]):
    """A lookup in progress and the callers that wait for it."""

    __slots__ = ("_pending", "key", "task", "waiters")

    def __init__(self, pending: dict[K, _PendingLookup[K, V]], key: K) -> None:
        self._pending = pending
        self.key = key
        self.task: asyncio.Task[None] | None = None
        self.waiters: dict[Waiter[K, V], None] = {}
        pending[key] = self

    def remove(self, waiter: Waiter[K, V]) -> None:
        """Remove a waiter; after the last one the lookup is cancelled, as it may have no timeout."""
        self.waiters.pop(waiter, None)
        if not self.waiters and self.task is not None:
            task = self.task
            self._detach()
            task.cancel()

    def finish(self, result: LookupResult[V]) -> None:
        """Deliver the result to each waiter in a callback of its own, so that exceptions stay apart."""
        self._detach()
        loop = asyncio.get_running_loop()
        for waiter in self.waiters:
            loop.call_soon(waiter.deliver, result)
        self.waiters.clear()

    def _detach(self) -> None:
        """Let the next caller with this key start a new lookup."""
        self.task = None  # breaks the reference cycle
        if self._pending.get(self.key) is self:
            del self._pending[self.key]


class LookupCache(Generic[K, V]):
    """Lookups of one purpose and their cached results.

    Args:
        purpose: The label of its metrics.
        query: Looks a key up at the name servers.
        timeout: ``resolver_timeout`` in seconds; 0 is no limit.
        valid: ``valid=`` of the ``resolver`` directive, in seconds; ``None`` if it has none.
        metrics: Counts lookups, durations and cache hits.
        on_failure: Called for each lookup that fails or times out; NXDOMAIN is no failure.
        limits: Limits of time and number.

    Attributes:
        cached: Returns the cached result of a key, ``None`` if there is none.
    """

    def __init__(
        self,
        purpose: DnsPurpose,
        query: Callable[[K], Awaitable[LookupResult[V]]],
        *,
        timeout: float,
        valid: float | None,
        metrics: WorkerMetrics,
        on_failure: Callable[[K, DnsResult], None] | None = None,
        limits: LookupLimits = LookupLimits(),
    ) -> None:
        self._purpose = purpose
        self._query = query
        self._timeout = timeout or None
        self._cache: ResultCache[K, V] = ResultCache(valid, metrics, limits)
        self._metrics = metrics
        self._limit = limits.lookups
        self._on_failure = on_failure
        self._pending: dict[K, _PendingLookup[K, V]] = {}
        self._tasks = TaskSet()
        self.cached = self._cache.get

    def find(self, key: K, done: Callable[[LookupResult[V]], None]) -> Cancel:
        """Start a lookup, or join one in progress for the same key.

        Args:
            key: What to look up.
            done: Called once with the result, unless cancelled.  Above the limit of lookups it is
                called before this returns, with ``DnsResult.INVALID``.

        Returns:
            Cancels the lookup for this caller.
        """
        lookup = self._pending.get(key)
        if lookup is None:
            if len(self._pending) >= self._limit:
                done(LookupResult(DnsResult.INVALID))
                return not_pending
            lookup = _PendingLookup(self._pending, key)
            lookup.task = self._tasks.start(self._run(lookup))
        waiter = Waiter(lookup, done)
        lookup.waiters[waiter] = None
        return waiter.cancel

    async def close(self) -> None:
        """Cancel all lookups in progress; their callers get ``DnsResult.INVALID``."""
        for lookup in tuple(self._pending.values()):
            lookup.finish(LookupResult(DnsResult.INVALID))
        await self._tasks.close()
        self._cache.clear()

    async def _run(self, lookup: _PendingLookup[K, V]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        found: LookupResult[V] = LookupResult(DnsResult.INVALID)
        try:
            try:
                async with asyncio.timeout(self._timeout):
                    found = await self._query(lookup.key)
            except TimeoutError:
                found = LookupResult(DnsResult.TIMEOUT)
            count_lookup(self._metrics, self._purpose, found.result, loop.time() - started)
            self._cache.put(lookup.key, found)
            if self._on_failure is not None and found.result not in _CONCLUSIVE:
                self._on_failure(lookup.key, found.result)
        finally:
            lookup.finish(found)


class TaskSet:
    """Owns tasks until they end, and cancels them when it is closed.

    Sessions start lookups and token requests; they are no tasks and cannot keep a task group open.  An
    exception that escapes from a task is a bug and goes to the loop's exception handler.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task in the running loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel all tasks and wait for their end."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            context = {"message": "a task failed with a bug", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

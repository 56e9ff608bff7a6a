# SPDX-License-Identifier: Apache-2.0
"""What has been answered, for as long as it may be believed."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final, Generic, TypeVar

from mailproxy.dns.measures import MAX_ENTRIES, MAX_TTL, NEGATIVE_TTL, Answer, V, WorkerMetrics
from mailproxy.enums import CacheResult, DnsResult

K = TypeVar("K")

_SAME_SECOND: Final = 1
"""A TTL of 0 is good for the second it arrived in, as in nginx."""


class Cache(Generic[K, V]):
    """Answers by what was asked; bounded, the oldest goes first.

    Args:
        valid: ``valid=`` of the ``resolver`` directive, in seconds; replaces every TTL.
        metrics: Counts look-ups and entries.
        size: How many answers are kept.
    """

    def __init__(self, valid: float | None, metrics: WorkerMetrics, *, size: int = MAX_ENTRIES) -> None:
        self._valid = valid
        self._size = size
        # A plain dictionary finds its oldest entry by walking over all that were deleted before it.
        self._entries: OrderedDict[K, tuple[float, Answer[V]]] = OrderedDict()
        # The cells themselves: hashing an enum's member costs more than the look-up.
        self._hits = metrics.dns_cache[CacheResult.HIT]
        self._negative_hits = metrics.dns_cache[CacheResult.NEGATIVE_HIT]
        self._misses = metrics.dns_cache[CacheResult.MISS]
        self._stale = metrics.dns_cache[CacheResult.STALE]
        self._gauge = metrics.dns_cache_entries

    def get(self, key: K) -> Answer[V] | None:
        """Give an answer that may still be believed."""
        entry = self._entries.get(key)
        if entry is None:
            self._misses.value += 1
            return None
        if entry[0] <= time.monotonic():
            self._forget(key)
            self._stale.value += 1
            return None
        answer = entry[1]
        if answer.value is None:
            self._negative_hits.value += 1
        else:
            self._hits.value += 1
        return answer

    def put(self, key: K, answer: Answer[V]) -> None:
        """Keep an answer, if it may be kept."""
        if answer.ttl is None:
            return
        if key in self._entries:
            self._forget(key)
        elif len(self._entries) >= self._size:
            self._forget(next(iter(self._entries)))
        self._entries[key] = (int(time.monotonic()) + self._lifetime(answer) + _SAME_SECOND, answer)
        self._gauge.value += 1

    def clear(self) -> None:
        """Forget everything."""
        self._gauge.value -= len(self._entries)
        self._entries.clear()

    def _lifetime(self, answer: Answer[V]) -> float:
        valid = self._valid
        if answer.result is DnsResult.NXDOMAIN:
            return NEGATIVE_TTL if valid is None else min(valid, NEGATIVE_TTL)
        return min(answer.ttl or 0, MAX_TTL) if valid is None else valid

    def _forget(self, key: K) -> None:
        del self._entries[key]
        self._gauge.value -= 1

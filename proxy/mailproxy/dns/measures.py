# SPDX-License-Identifier: Apache-2.0
"""What the resolver needs of the metrics, and the words its parts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from mailproxy.enums import CacheResult, DnsPurpose, DnsResult

V = TypeVar("V")

Cancel = Callable[[], None]
"""Loses interest in an answer.  May be called at any time, and more than once."""

MAX_TTL: Final = 86_400
"""Seconds that an answer is believed at most, whatever its TTL says."""
NEGATIVE_TTL: Final = 10
"""Seconds that "there is no such name" is believed; ``valid=`` may shorten it."""
MAX_ENTRIES: Final = 10_000
"""Answers kept per kind of look-up; the oldest makes room for a new one."""
MAX_LOOK_UPS: Final = 1_000
"""Look-ups under way per kind; who asks for one more is told to try again later."""


class Counter(Protocol):
    """A number that is bumped in place."""

    value: int


class Gauge(Protocol):
    """A number that goes up and down."""

    value: float


class Histogram(Protocol):
    """Takes observations."""

    def observe(self, value: float, /) -> None:
        """Count one duration, in seconds."""
        ...


class WorkerMetrics(Protocol):
    """The cells that name look-ups move; see the catalogue of metrics."""

    @property
    def dns_timeouts(self) -> Mapping[DnsPurpose, Counter]:
        """Look-ups that took longer than they may."""
        ...

    @property
    def dns_queries(self) -> Mapping[tuple[DnsPurpose, DnsResult], Counter]:
        """Look-ups that were put to a name server, by how they ended."""
        ...

    @property
    def dns_seconds(self) -> Mapping[DnsPurpose, Histogram]:
        """How long they took."""
        ...

    @property
    def dns_cache(self) -> Mapping[CacheResult, Counter]:
        """Look-ups in the cache."""
        ...

    @property
    def dns_cache_entries(self) -> Gauge:
        """Answers in the caches of all resolvers of this process."""
        ...


Failure = Callable[[DnsPurpose, str, DnsResult], None]
"""Called with what was looked up in vain: an address or a name."""


def unreported(_purpose: DnsPurpose, _name: str, _result: DnsResult) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[V]):
    """How a look-up ended.

    ``value`` is ``None`` for every failure.  ``ttl`` is how many seconds the
    answer may be believed; ``None`` forbids to keep it.
    """

    result: DnsResult
    value: V | None = None
    ttl: int | None = None


def count(metrics: WorkerMetrics, purpose: DnsPurpose, result: DnsResult, seconds: float) -> None:
    """Count one look-up that was put to a name server."""
    metrics.dns_queries[purpose, result].value += 1
    metrics.dns_seconds[purpose].observe(seconds)
    if result is DnsResult.TIMEOUT:
        metrics.dns_timeouts[purpose].value += 1

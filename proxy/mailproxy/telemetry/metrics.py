# SPDX-License-Identifier: Apache-2.0
"""The numbers a worker bumps while it works.

A metric is a cell whose ``value`` is bumped in place; a session is given the
cells of its server and protocol when it starts, and looks at no name, label or
registry on its way.  Names come in when somebody asks for a ``snapshot``.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict, TypeVar

from mailproxy import enums
from mailproxy.enums import (
    Authenticated,
    ConnectResult,
    Direction,
    Limit,
    LimitMode,
    LoginOutcome,
    TlsVersion,
)
from mailproxy.telemetry import definitions as c
from mailproxy.telemetry.process_stats import process_figures
from mailproxy_config.model import Protocol


class Counter:
    """A number that only grows: ``cell.value += 1``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def state(self) -> int | None:
        """The value for a snapshot, or ``None`` for nothing yet."""
        return self.value or None


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def state(self) -> float | None:
        """The value for a snapshot."""
        return self.value


class Histogram:
    """Spans of time, counted by bucket.

    ``counts`` has one more element than ``bounds``: what lies above them all.
    Unlike what Prometheus shows, buckets do not include those below them.

    A span is only put down when it is observed, for that is on every login's
    way; ``settle`` sorts what was put down since the last time.  Somebody has
    to call it regularly: what waits is what a worker gets done in between.

    Attributes:
        observe: Count one span, in seconds.
    """

    __slots__ = ("_pending", "bounds", "counts", "observe", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._pending: list[float] = []
        self.observe: Callable[[float], None] = self._pending.append

    def settle(self) -> None:
        """Sort into ``counts`` and ``sum`` what was observed since the last time."""
        pending = self._pending
        if pending:
            counts, bounds = self.counts, self.bounds
            for seconds in pending:
                counts[bisect_left(bounds, seconds)] += 1
            self.sum += sum(pending)
            pending.clear()

    def state(self) -> list[int] | None:
        """The sum in nanoseconds and then the counts, as last settled; ``None`` for nothing yet.

        Whole numbers add up to the same whatever the order, so that no order of
        dying workers makes a sum fall by a rounding error.
        """
        return [int(self.sum * c.NANO), *self.counts] if any(self.counts) else None


Cell = Counter | Gauge | Histogram
CellT = TypeVar("CellT", Counter, Gauge, Histogram)
Value = int | float | list[int]


class Snapshot(TypedDict):
    """A worker's numbers at one moment; plain JSON.

    ``life`` tells one worker's life from another's and orders its snapshots.
    """

    life: int
    number: int
    series: dict[str, list[tuple[Sequence[str], Value]]]


class Registry:
    """The series of one worker: which cell belongs to which name and labels."""

    __slots__ = ("_histograms", "_series")

    def __init__(self) -> None:
        self._series: dict[c.MetricDefinition, dict[tuple[str, ...], Cell]] = {}
        self._histograms: list[Histogram] = []

    def counter(self, family: c.MetricDefinition, *labels: str) -> Counter:
        """Make the counter with these label values."""
        return self._enter(family, labels, Counter())

    def gauge(self, family: c.MetricDefinition, *labels: str) -> Gauge:
        """Make the gauge with these label values."""
        return self._enter(family, labels, Gauge())

    def histogram(self, family: c.MetricDefinition, *labels: str) -> Histogram:
        """Make the histogram with these label values."""
        histogram = Histogram(family.buckets)
        self._histograms.append(histogram)
        return self._enter(family, labels, histogram)

    def _enter(self, family: c.MetricDefinition, labels: tuple[str, ...], cell: CellT) -> CellT:
        self._series.setdefault(family, {})[tuple(map(str, labels))] = cell
        return cell

    def settle(self) -> None:
        """Sort the spans that were observed since the last time."""
        for histogram in self._histograms:
            histogram.settle()

    def drop(self, family: c.MetricDefinition, *labels: str) -> None:
        """Forget all series of a metric whose first labels are these."""
        kept = self._series.get(family, {})
        for key in [key for key in kept if key[: len(labels)] == labels]:
            del kept[key]

    def keep_servers(self, names: frozenset[str]) -> None:
        """Forget all series of servers that are not named."""
        for family, kept in self._series.items():
            if family.label_names[:1] == ("server",):
                for key in [key for key in kept if key[0] not in names]:
                    del kept[key]

    def series(self) -> dict[str, list[tuple[Sequence[str], Value]]]:
        """All series that have something to tell, or must be there from the start."""
        return {
            family.name: [
                (labels, _zero(cell) if state is None else state)
                for labels, cell in cells.items()
                if (state := cell.state()) is not None or family.from_start
            ]
            for family, cells in self._series.items()
        }


def _zero(cell: Cell) -> Value:
    return [0, *cell.counts] if isinstance(cell, Histogram) else 0


class ServerMeter:
    """The cells of one server."""

    __slots__ = ("accepted", "active", "closed", "limit_rejections", "proxy_headers")

    def __init__(self, book: Registry, name: str, protocol: Protocol) -> None:
        self.accepted = book.counter(c.CONNECTIONS_ACCEPTED, name, protocol)
        self.active = book.gauge(c.CONNECTIONS_ACTIVE, name, protocol)
        self.closed = {r: book.counter(c.CONNECTIONS_CLOSED, name, protocol, r) for r in enums.CloseReason}
        self.proxy_headers = {r: book.counter(c.PROXY_HEADERS, name, r) for r in enums.ProxyHeaderResult}
        self.limit_rejections: dict[str, Counter] = {
            limit: book.counter(c.LIMIT_REJECTIONS, name, limit, LimitMode.ENFORCE) for limit in Limit
        }


class ProtocolMeter:
    """The cells of one protocol, shared by all its servers."""

    __slots__ = (
        "auth",
        "auth_seconds",
        "bytes_to_client",
        "bytes_to_upstream",
        "errors",
        "login_seconds",
        "logins",
        "preauth",
        "relay",
        "session_seconds",
        "starting",
        "states",
        "upstream",
        "upstream_connect",
        "upstream_errors",
    )

    def __init__(self, book: Registry, protocol: Protocol) -> None:
        self.errors = {k: book.counter(c.PROTOCOL_ERRORS, protocol, k) for k in enums.ProtocolErrorKind}
        self.logins = {
            (m, r): book.counter(c.LOGINS, protocol, m, r) for m in enums.Method for r in enums.LoginResult
        }
        self.login_seconds = {
            True: book.histogram(c.LOGIN_DURATION, protocol, LoginOutcome.SUCCESS),
            False: book.histogram(c.LOGIN_DURATION, protocol, LoginOutcome.FAILURE),
        }
        self.auth_seconds = {
            o: book.histogram(c.AUTH_REQUEST_DURATION, protocol, o) for o in enums.AuthOutcome
        }
        self.upstream_connect = {
            True: book.histogram(c.UPSTREAM_CONNECT_DURATION, protocol, ConnectResult.OK),
            False: book.histogram(c.UPSTREAM_CONNECT_DURATION, protocol, ConnectResult.ERROR),
        }
        self.upstream_errors = {s: book.counter(c.UPSTREAM_ERRORS, protocol, s) for s in enums.UpstreamStage}
        self.bytes_to_upstream = book.counter(c.RELAYED_BYTES, protocol, Direction.TO_UPSTREAM)
        self.bytes_to_client = book.counter(c.RELAYED_BYTES, protocol, Direction.TO_CLIENT)
        self.states = states = {s: book.gauge(c.SESSIONS_ACTIVE, protocol, s) for s in enums.SessionState}
        self.starting = states[enums.SessionState.STARTING]
        self.preauth = states[enums.SessionState.PREAUTH]
        self.auth = states[enums.SessionState.AUTH]
        self.upstream = states[enums.SessionState.UPSTREAM]
        self.relay = states[enums.SessionState.RELAY]
        self.session_seconds = {
            True: book.histogram(c.SESSION_DURATION, protocol, Authenticated.TRUE),
            False: book.histogram(c.SESSION_DURATION, protocol, Authenticated.FALSE),
        }


class Handshakes(dict[tuple[enums.TlsMode, str], Counter]):
    """Counters by mode and version, where a version nobody has heard of counts as ``other``."""

    def __missing__(self, key: tuple[enums.TlsMode, str]) -> Counter:
        return self[key[0], TlsVersion.OTHER]


class Expiries(dict[tuple[str, int], Gauge]):
    """Gauges by server and position of a certificate, made when first asked for."""

    def __init__(self, book: Registry) -> None:
        super().__init__()
        self._book = book

    def __missing__(self, key: tuple[str, int]) -> Gauge:
        cell = self[key] = self._book.gauge(c.CERTIFICATE_EXPIRY, key[0], str(key[1]))
        return cell


class Meter:
    """All cells of one worker process.

    Cells of servers and protocols are made when first asked for, and are the
    same ever after; a reload resets nothing.
    """

    def __init__(self) -> None:
        self._book = book = Registry()
        self._servers: dict[tuple[str, Protocol], ServerMeter] = {}
        self._protocols: dict[Protocol, ProtocolMeter] = {}
        self._life = time.monotonic_ns()
        self._number = 0
        self.auth_errors = {r: book.counter(c.AUTH_ERRORS, r) for r in enums.AuthErrorReason}
        self.auth_in_flight = book.gauge(c.AUTH_IN_FLIGHT)
        self.tls_handshakes = Handshakes(
            {
                (m, v): book.counter(c.TLS_HANDSHAKES, m, v)
                for m in enums.TlsMode
                for v in map(str, TlsVersion)
            }
        )
        self.tls_resumed = {m: book.counter(c.TLS_RESUMED, m) for m in enums.TlsMode}
        self.tls_failures = {
            (m, f): book.counter(c.TLS_FAILURES, m, f) for m in enums.TlsMode for f in enums.TlsFailure
        }
        self.tls_seconds = {m: book.histogram(c.TLS_DURATION, m) for m in enums.TlsMode}
        self.certificate_expiry = Expiries(book)
        self.dns_timeouts = {p: book.counter(c.DNS_TIMEOUTS, p) for p in enums.DnsPurpose}
        self.dns_queries = {
            (p, r): book.counter(c.DNS_QUERIES, p, r) for p in enums.DnsPurpose for r in enums.DnsResult
        }
        self.dns_seconds = {p: book.histogram(c.DNS_DURATION, p) for p in enums.DnsPurpose}
        self.dns_cache = {r: book.counter(c.DNS_CACHE, r) for r in enums.CacheResult}
        self.dns_cache_entries = book.gauge(c.DNS_CACHE_ENTRIES)
        self.loop_lag = book.histogram(c.LOOP_LAG)
        self.connections_limit = book.gauge(c.CONNECTIONS_LIMIT)
        self.draining = book.gauge(c.DRAINING)

    def server(self, name: str, protocol: Protocol) -> ServerMeter:
        """Give the cells of a server."""
        key = (name, protocol)
        if key not in self._servers:
            self._servers[key] = ServerMeter(self._book, name, protocol)
        return self._servers[key]

    def protocol(self, protocol: Protocol) -> ProtocolMeter:
        """Give the cells of a protocol."""
        if protocol not in self._protocols:
            self._protocols[protocol] = ProtocolMeter(self._book, protocol)
        return self._protocols[protocol]

    def keep_servers(self, names: Iterable[str]) -> None:
        """Forget the series of all servers but these (after a reload).

        Sessions of a forgotten server keep their cells; nobody asks for them any more.
        """
        kept = frozenset(names)
        self._book.keep_servers(kept)
        self._servers = {key: meter for key, meter in self._servers.items() if key[0] in kept}
        for gone in [key for key in self.certificate_expiry if key[0] not in kept]:
            del self.certificate_expiry[gone]

    def set_certificates(self, server: str, expiries: Sequence[float | None]) -> None:
        """Set when a server's certificates expire, as Unix times, in their order; ``None`` has no series."""
        self._book.drop(c.CERTIFICATE_EXPIRY, server)
        for gone in [key for key in self.certificate_expiry if key[0] == server]:
            del self.certificate_expiry[gone]
        for position, expiry in enumerate(expiries):
            if expiry is not None:
                self.certificate_expiry[server, position].value = expiry

    def config_loaded(self, config_hash: str, generation: int, when: float) -> None:
        """Say which configuration runs from now on; ``when`` is a Unix time."""
        self._book.drop(c.CONFIG_INFO)
        self._book.gauge(c.CONFIG_INFO, config_hash).value = 1
        self._book.gauge(c.CONFIG_SUCCESSFUL).value = 1
        self._book.gauge(c.CONFIG_TIMESTAMP).value = when
        self._book.gauge(c.CONFIG_GENERATION).value = generation

    def config_refused(self) -> None:
        """Say that the newest configuration was refused and the previous one still runs."""
        self._book.gauge(c.CONFIG_SUCCESSFUL).value = 0

    def settle(self) -> None:
        """Sort the spans of time that were observed since the last time; the more often, the fewer wait."""
        self._book.settle()

    def snapshot(self) -> Snapshot:
        """Take all numbers as they are now, the operating system's about this process included."""
        self._number += 1
        self.settle()
        series = self._book.series()
        series.update({name: [((), value)] for name, value in process_figures().items()})
        return {"life": self._life, "number": self._number, "series": series}

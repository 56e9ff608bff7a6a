# SPDX-License-Identifier: Apache-2.0
"""The metrics of one worker.

A series is a cell whose ``value`` is incremented in place.  A session gets the
cells of its server and protocol when it starts, so no name or label is looked
up on the hot path.  Names are used only in a ``snapshot``.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, NotRequired, TypedDict, TypeVar

from mailproxy import enums
from mailproxy.enums import (
    Authenticated,
    ConnectResult,
    Direction,
    Limit,
    LoginOutcome,
    Resumed,
    TlsVersion,
)
from mailproxy.errors import UpstreamError
from mailproxy.telemetry import definitions as c
from mailproxy.telemetry.process_stats import process_stats
from mailproxy.telemetry.upstream_report import ReportState, UpstreamReport
from mailproxy_config.model import Protocol


class Counter:
    """A counter: ``cell.value += 1``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def state(self) -> int | None:
        """Return the value for a snapshot; ``None`` for 0."""
        return self.value or None


class Gauge:
    """A gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def state(self) -> float | None:
        """Return the value for a snapshot."""
        return self.value


class Histogram:
    """A histogram of durations.

    ``counts`` has one more element than ``bounds``: the bucket ``+Inf``.
    Unlike in Prometheus, buckets are not cumulative.

    ``observe`` only appends, since it runs in every login; ``flush`` sorts the
    durations into buckets.  It must be called regularly, since the list of
    durations grows until then.

    Attributes:
        observe: Add one duration, in seconds.
    """

    __slots__ = ("bounds", "counts", "observe", "pending", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.pending: list[float] = []
        self.observe: Callable[[float], None] = self.pending.append

    def flush(self) -> None:
        """Add the durations since the last call to ``counts`` and ``sum``."""
        pending, counts = self.pending, self.counts
        pending.sort()  # so that bounds are searched among durations: there are more of these
        start = 0
        for index, bound in enumerate(self.bounds):
            end = bisect_right(pending, bound, start)
            counts[index] += end - start
            start = end
        counts[-1] += len(pending) - start
        self.sum += sum(pending)
        pending.clear()

    def state(self) -> list[int] | None:
        """Return the sum in nanoseconds and then the counts, as last flushed; ``None`` without durations.

        Sums of integers do not depend on the order, so that no sum decreases
        by a rounding error when workers exit.
        """
        return [int(self.sum * c.NANO), *self.counts] if any(self.counts) else None


Cell = Counter | Gauge | Histogram
CellT = TypeVar("CellT", Counter, Gauge, Histogram)
Value = int | float | list[int]


class Snapshot(TypedDict):
    """A worker's metrics at one moment; plain JSON.

    ``life`` identifies the process under a worker's ID, and ``number`` orders
    its snapshots.  ``upstreams`` has the reports about upstreams by server.
    """

    life: int
    number: int
    series: dict[str, list[tuple[Sequence[str], Value]]]
    upstreams: NotRequired[dict[str, ReportState]]


class Registry:
    """The cells of one worker, by name and label values."""

    __slots__ = ("_histograms", "_series")

    def __init__(self) -> None:
        self._series: dict[c.MetricDefinition, dict[tuple[str, ...], Cell]] = {}
        self._histograms: list[Histogram] = []

    def counter(self, family: c.MetricDefinition, *labels: str) -> Counter:
        """Create the counter with these label values."""
        return self._add(family, labels, Counter())

    def gauge(self, family: c.MetricDefinition, *labels: str) -> Gauge:
        """Create the gauge with these label values."""
        return self._add(family, labels, Gauge())

    def histogram(self, family: c.MetricDefinition, *labels: str) -> Histogram:
        """Create the histogram with these label values."""
        histogram = Histogram(family.buckets)
        self._histograms.append(histogram)
        return self._add(family, labels, histogram)

    def _add(self, family: c.MetricDefinition, labels: tuple[str, ...], cell: CellT) -> CellT:
        self._series.setdefault(family, {})[tuple(map(str, labels))] = cell
        return cell

    def flush(self) -> None:
        """Flush all histograms."""
        for histogram in self._histograms:
            if histogram.pending:
                histogram.flush()

    def drop(self, family: c.MetricDefinition, *labels: str) -> None:
        """Delete the series of a metric whose first label values are these."""
        kept = self._series.get(family, {})
        for key in [key for key in kept if key[: len(labels)] == labels]:
            del kept[key]

    def keep_servers(self, names: frozenset[str]) -> None:
        """Delete the series of all servers but these."""
        for family, kept in self._series.items():
            if family.label_names[:1] == ("server",):
                for key in [key for key in kept if key[0] not in names]:
                    del kept[key]

    def series(self) -> dict[str, list[tuple[Sequence[str], Value]]]:
        """Return the series that have a value, or must exist from the start."""
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


class ServerMetrics:
    """The cells of one server, and its report about upstreams."""

    __slots__ = ("accepted", "active", "closed", "limit_rejections", "proxy_headers", "upstreams")

    def __init__(self, registry: Registry, name: str, protocol: Protocol) -> None:
        self.accepted = registry.counter(c.CONNECTIONS_ACCEPTED, name, protocol)
        self.active = registry.gauge(c.CONNECTIONS_ACTIVE, name, protocol)
        self.closed = {
            r: registry.counter(c.CONNECTIONS_CLOSED, name, protocol, r) for r in enums.CloseReason
        }
        self.proxy_headers = {r: registry.counter(c.PROXY_HEADERS, name, r) for r in enums.ProxyHeaderResult}
        self.limit_rejections: dict[str, Counter] = {
            limit: registry.counter(c.LIMIT_REJECTIONS, name, limit, c.LIMIT_MODE) for limit in Limit
        }
        self.upstreams = UpstreamReport()


class ProtocolMetrics:
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
        "upstream_config_errors",
        "upstream_connect",
        "upstream_errors",
        "upstream_tls_failures",
        "upstream_tls_seconds",
        "upstream_tries",
    )

    def __init__(self, registry: Registry, protocol: Protocol) -> None:
        self.errors = {k: registry.counter(c.PROTOCOL_ERRORS, protocol, k) for k in enums.ProtocolErrorKind}
        self.logins = {
            m: {r: registry.counter(c.LOGINS, protocol, m, r) for r in enums.LoginResult}
            for m in enums.Method
        }
        self.login_seconds = {
            True: registry.histogram(c.LOGIN_DURATION, protocol, LoginOutcome.SUCCESS),
            False: registry.histogram(c.LOGIN_DURATION, protocol, LoginOutcome.FAILURE),
        }
        self.auth_seconds = {
            o: registry.histogram(c.AUTH_REQUEST_DURATION, protocol, o) for o in enums.AuthOutcome
        }
        self.upstream_connect = {
            True: registry.histogram(c.UPSTREAM_CONNECT_DURATION, protocol, ConnectResult.OK),
            False: registry.histogram(c.UPSTREAM_CONNECT_DURATION, protocol, ConnectResult.ERROR),
        }
        self.upstream_errors = {
            s: registry.counter(c.UPSTREAM_ERRORS, protocol, s) for s in enums.UpstreamStage
        }
        self.upstream_tries = {r: registry.counter(c.UPSTREAM_TRIES, protocol, r) for r in enums.UpstreamTry}
        self.upstream_config_errors = {
            s: registry.counter(c.UPSTREAM_CONFIG_ERRORS, protocol, s) for s in enums.UpstreamStage
        }
        self.upstream_tls_failures = {
            f: registry.counter(c.UPSTREAM_TLS_FAILURES, protocol, f) for f in enums.UpstreamTlsFailure
        }
        self.upstream_tls_seconds = {
            True: registry.histogram(c.UPSTREAM_TLS_DURATION, protocol, Resumed.TRUE),
            False: registry.histogram(c.UPSTREAM_TLS_DURATION, protocol, Resumed.FALSE),
        }
        self.bytes_to_upstream = registry.counter(c.RELAYED_BYTES, protocol, Direction.TO_UPSTREAM)
        self.bytes_to_client = registry.counter(c.RELAYED_BYTES, protocol, Direction.TO_CLIENT)
        self.states = states = {s: registry.gauge(c.SESSIONS_ACTIVE, protocol, s) for s in enums.SessionState}
        self.starting = states[enums.SessionState.STARTING]
        self.preauth = states[enums.SessionState.PREAUTH]
        self.auth = states[enums.SessionState.AUTH]
        self.upstream = states[enums.SessionState.UPSTREAM]
        self.relay = states[enums.SessionState.RELAY]
        self.session_seconds = {
            True: registry.histogram(c.SESSION_DURATION, protocol, Authenticated.TRUE),
            False: registry.histogram(c.SESSION_DURATION, protocol, Authenticated.FALSE),
        }

    def upstream_failed(self, error: UpstreamError) -> None:
        """Count a login that failed at the upstream."""
        self.upstream_errors[error.stage].value += 1
        if error.kind is not None:
            self.errors[error.kind].value += 1
        if error.tls_failure is not None:
            self.upstream_tls_failures[error.tls_failure].value += 1
        if error.is_misconfigured:
            self.upstream_config_errors[error.stage].value += 1


class LimitZoneMetrics(NamedTuple):
    """The counters of one zone of ``limit_conn`` or ``limit_req``, one for each ``ZoneEvent``."""

    full: Counter
    rejected: Counter
    dry_run: Counter
    delayed: Counter
    skipped: Counter


class Handshakes(dict[tuple[enums.TlsMode, str], Counter]):
    """Counters by mode and version; an unknown version counts as ``other``."""

    def __missing__(self, key: tuple[enums.TlsMode, str]) -> Counter:
        return self[key[0], TlsVersion.OTHER]


class Expiries(dict[tuple[str, int], Gauge]):
    """Gauges by server and position of a certificate, created at first use."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self._registry = registry

    def __missing__(self, key: tuple[str, int]) -> Gauge:
        cell = self[key] = self._registry.gauge(c.CERTIFICATE_EXPIRY, key[0], str(key[1]))
        return cell


class WorkerMetrics:
    """All cells of one worker process.

    Cells of servers and protocols are created at first use, and are kept when
    the configuration is reloaded.
    """

    def __init__(self) -> None:
        self._registry = registry = Registry()
        self._servers: dict[tuple[str, Protocol], ServerMetrics] = {}
        self._protocols: dict[Protocol, ProtocolMetrics] = {}
        self.life = time.monotonic_ns()
        self._number = 0
        self._limit_zones: dict[str, LimitZoneMetrics] = {}
        self._groups: dict[str, dict[enums.GroupLogin, Counter]] = {}
        self.auth_errors = {r: registry.counter(c.AUTH_ERRORS, r) for r in enums.AuthErrorReason}
        self.token_validations = {r: registry.counter(c.TOKEN_VALIDATIONS, r) for r in enums.TokenFinding}
        self.password_verifications = {
            r: registry.counter(c.PASSWORD_VERIFICATIONS, r) for r in enums.PasswordFinding
        }
        self.password_seconds = registry.histogram(c.PASSWORD_VERIFICATION_DURATION)
        self.passwords_pending = registry.gauge(c.PASSWORDS_PENDING)
        self.jwks_fetches = {r: registry.counter(c.JWKS_FETCHES, r) for r in enums.JwksResult}
        self.auth_cache_events = {e: registry.counter(c.AUTH_CACHE_EVENTS, e) for e in enums.AuthCacheEvent}
        self.auth_cache_entries = registry.gauge(c.AUTH_CACHE_ENTRIES)
        self.auth_cache_bytes = registry.gauge(c.AUTH_CACHE_BYTES)
        self.policy_requests = {
            (p, r): registry.counter(c.POLICY_REQUESTS, p, r)
            for p in enums.PolicyCommand
            for r in enums.PolicyResult
        }
        self.policy_seconds = {
            p: registry.histogram(c.POLICY_REQUEST_DURATION, p) for p in enums.PolicyCommand
        }
        self.policy_reports_dropped = registry.counter(c.POLICY_REPORTS_DROPPED)
        self.policy_breaker_open = registry.gauge(c.POLICY_BREAKER_OPEN)
        self.auth_in_flight = registry.gauge(c.AUTH_IN_FLIGHT)
        self.penalties = {a: registry.counter(c.PENALTIES, a) for a in enums.PenaltyAction}
        self.penalty_waiting = registry.gauge(c.PENALTY_WAITING)
        self.failed_credentials = {
            k: registry.counter(c.FAILED_CREDENTIALS, k) for k in enums.FailedCredentials
        }
        self.addresses_blocked = registry.counter(c.ADDRESSES_BLOCKED)
        self.tls_handshakes = Handshakes(
            {
                (m, v): registry.counter(c.TLS_HANDSHAKES, m, v)
                for m in enums.TlsMode
                for v in map(str, TlsVersion)
            }
        )
        self.tls_resumed = {m: registry.counter(c.TLS_RESUMED, m) for m in enums.TlsMode}
        self.tls_failures = {
            (m, f): registry.counter(c.TLS_FAILURES, m, f) for m in enums.TlsMode for f in enums.TlsFailure
        }
        self.tls_seconds = {m: registry.histogram(c.TLS_DURATION, m) for m in enums.TlsMode}
        self.certificate_expiry = Expiries(registry)
        self._upstream_expiries: dict[str, Gauge] = {}
        self.token_requests = {r: registry.counter(c.TOKEN_REQUESTS, r) for r in enums.TokenResult}
        self.token_seconds = registry.histogram(c.TOKEN_REQUEST_DURATION)
        self.dns_timeouts = {p: registry.counter(c.DNS_TIMEOUTS, p) for p in enums.DnsPurpose}
        self.dns_queries = {
            (p, r): registry.counter(c.DNS_QUERIES, p, r) for p in enums.DnsPurpose for r in enums.DnsResult
        }
        self.dns_seconds = {p: registry.histogram(c.DNS_DURATION, p) for p in enums.DnsPurpose}
        self.dns_cache = {r: registry.counter(c.DNS_CACHE, r) for r in enums.CacheResult}
        self.dns_cache_entries = registry.gauge(c.DNS_CACHE_ENTRIES)
        self.loop_lag = registry.histogram(c.LOOP_LAG)
        self.connections_limit = registry.gauge(c.CONNECTIONS_LIMIT)
        self.draining = registry.gauge(c.DRAINING)

    def server(self, name: str, protocol: Protocol) -> ServerMetrics:
        """Return the cells of a server."""
        key = (name, protocol)
        if key not in self._servers:
            self._servers[key] = ServerMetrics(self._registry, name, protocol)
        return self._servers[key]

    def protocol(self, protocol: Protocol) -> ProtocolMetrics:
        """Return the cells of a protocol."""
        if protocol not in self._protocols:
            self._protocols[protocol] = ProtocolMetrics(self._registry, protocol)
        return self._protocols[protocol]

    def limit_zone(self, name: str) -> LimitZoneMetrics:
        """Return the counters of a zone."""
        if name not in self._limit_zones:
            make = partial(self._registry.counter, c.LIMIT_ZONE_EVENTS, name)
            self._limit_zones[name] = LimitZoneMetrics(
                full=make(enums.ZoneEvent.ZONE_FULL),
                rejected=make(enums.ZoneEvent.REJECTED),
                dry_run=make(enums.ZoneEvent.DRY_RUN),
                delayed=make(enums.ZoneEvent.DELAYED),
                skipped=make(enums.ZoneEvent.SKIPPED),
            )
        return self._limit_zones[name]

    def group_logins(self, name: str) -> dict[enums.GroupLogin, Counter]:
        """Return the counters of a group of upstreams that is a Service."""
        if name not in self._groups:
            make = partial(self._registry.counter, c.GROUP_LOGINS, name)
            self._groups[name] = {result: make(result) for result in enums.GroupLogin}
        return self._groups[name]

    def keep_groups(self, names: Iterable[str]) -> None:
        """Delete the series of all groups but these, after a reload."""
        for gone in self._groups.keys() - set(names):
            del self._groups[gone]
            self._registry.drop(c.GROUP_LOGINS, gone)

    def keep_limit_zones(self, names: Iterable[str]) -> None:
        """Delete the series of all zones but these, after a reload."""
        for gone in self._limit_zones.keys() - set(names):
            del self._limit_zones[gone]
            self._registry.drop(c.LIMIT_ZONE_EVENTS, gone)

    def keep_servers(self, names: Iterable[str]) -> None:
        """Delete the series of all servers but these, after a reload.

        Sessions of a deleted server keep their cells, which are in no snapshot.
        """
        kept = frozenset(names)
        self._registry.keep_servers(kept)
        self._servers = {key: metrics for key, metrics in self._servers.items() if key[0] in kept}
        for gone in [key for key in self.certificate_expiry if key[0] not in kept]:
            del self.certificate_expiry[gone]

    def set_certificates(self, server: str, expiries: Sequence[float | None]) -> None:
        """Set when a server's certificates expire, as Unix times in their order; ``None`` gets no series."""
        self._registry.drop(c.CERTIFICATE_EXPIRY, server)
        for gone in [key for key in self.certificate_expiry if key[0] == server]:
            del self.certificate_expiry[gone]
        for position, expiry in enumerate(expiries):
            if expiry is not None:
                self.certificate_expiry[server, position].value = expiry

    def upstream_certificate_seen(self, server: str, expiry: float) -> None:
        """Record when a certificate of an upstream expires, as a Unix time; the earliest is kept."""
        cell = self._upstream_expiries.get(server)
        if cell is None:
            cell = self._upstream_expiries[server] = self._registry.gauge(
                c.UPSTREAM_CERTIFICATE_EXPIRY, server
            )
            cell.value = expiry
        cell.value = min(cell.value, expiry)

    def forget_upstream_certificates(self, server: str) -> None:
        """Forget the certificates of a server's upstreams: others may have been installed."""
        self._registry.drop(c.UPSTREAM_CERTIFICATE_EXPIRY, server)
        self._upstream_expiries.pop(server, None)

    def token_received(self, server: str, expiry: float) -> None:
        """Record when a server's access token expires, as a Unix time."""
        self._registry.drop(c.TOKEN_EXPIRY, server)
        self._registry.gauge(c.TOKEN_EXPIRY, server).value = expiry

    def config_loaded(self, config_hash: str, generation: int, when: float) -> None:
        """Record the configuration that this worker runs; ``when`` is a Unix time."""
        self._registry.drop(c.CONFIG_INFO)
        self._registry.gauge(c.CONFIG_INFO, config_hash).value = 1
        self._registry.gauge(c.CONFIG_SUCCESSFUL).value = 1
        self._registry.gauge(c.CONFIG_TIMESTAMP).value = when
        self._registry.gauge(c.CONFIG_GENERATION).value = generation

    def flush(self) -> None:
        """Flush all histograms; call this regularly."""
        self._registry.flush()

    def snapshot(self) -> Snapshot:
        """Return all values, those of the process included."""
        self._number += 1
        self.flush()
        series = self._registry.series()
        series.update({name: [((), value)] for name, value in process_stats().items()})
        upstreams = {
            name: state
            for (name, _), metrics in self._servers.items()
            if (state := metrics.upstreams.state()) is not None
        }
        return {"life": self.life, "number": self._number, "series": series, "upstreams": upstreams}

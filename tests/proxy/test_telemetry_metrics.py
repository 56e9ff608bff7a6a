# SPDX-License-Identifier: Apache-2.0
"""Metrics of a worker: every cell changes its own series and no other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy import enums
from mailproxy.telemetry.definitions import ALL_METRICS, BY_NAME, NANO, Aggregation
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_format import ServerFields, SessionRecord
from mailproxy.telemetry.metrics import Histogram, Value, WorkerMetrics
from mailproxy_config.model import Protocol

Series = dict[tuple[str, tuple[str, ...]], Value]


def series(metrics: WorkerMetrics) -> Series:
    """Return all series of a snapshot but those of the process, encoded and decoded as JSON."""
    taken = json.loads(json.dumps(metrics.snapshot()))["series"]
    return {
        (name, tuple(labels)): value
        for name, cells in taken.items()
        for labels, value in cells
        if not name.startswith("process_")
    }


def bucketed(family: str, bucket: int, seconds: float) -> list[int]:
    """Return the state of a histogram after one duration in one bucket."""
    counts = [0] * (len(BY_NAME[family].buckets) + 1)
    counts[bucket] = 1
    return [int(seconds * NANO), *counts]


P = "mailproxy_"
TABLE: list[tuple[Callable[[WorkerMetrics], None], str, tuple[str, ...]]] = [
    (lambda m: bump(m.server("s", Protocol.IMAP).accepted), "connections_accepted_total", ("s", "imap")),
    (lambda m: bump(m.server("s", Protocol.IMAP).active), "connections_active", ("s", "imap")),
    (
        lambda m: bump(m.server("s", Protocol.IMAP).closed[enums.CloseReason.DRAIN]),
        "connections_closed_total",
        ("s", "imap", "drain"),
    ),
    (
        lambda m: bump(m.server("s", Protocol.IMAP).proxy_headers[enums.ProxyHeaderResult.V2]),
        "proxy_protocol_headers_total",
        ("s", "v2"),
    ),
    (
        lambda m: bump(m.server("s", Protocol.IMAP).limit_rejections["conn_total"]),
        "limit_rejections_total",
        ("s", "conn_total", "enforce"),
    ),
    (lambda m: bump(m.limit_zone("user").full), "limit_zone_events_total", ("user", "zone_full")),
    (
        lambda m: bump(m.group_logins("dovecot")[enums.GroupLogin.OWNER]),
        "group_logins_total",
        ("dovecot", "owner"),
    ),
    (lambda m: bump(m.connections_limit), "connections_limit", ()),
    (
        lambda m: bump(m.protocol(Protocol.POP3).states[enums.SessionState.RELAY]),
        "sessions_active",
        ("pop3", "relay"),
    ),
    (
        lambda m: bump(m.protocol(Protocol.SMTP).errors[enums.ProtocolErrorKind.NO_GREETING]),
        "protocol_errors_total",
        ("smtp", "no_greeting"),
    ),
    (
        lambda m: bump(m.protocol(Protocol.IMAP).logins[enums.Method.CRAM_MD5][enums.LoginResult.ABORTED]),
        "logins_total",
        ("imap", "cram_md5", "aborted"),
    ),
    (
        lambda m: bump(m.protocol(Protocol.IMAP).upstream_errors[enums.UpstreamStage.HELLO]),
        "upstream_errors_total",
        ("imap", "hello"),
    ),
    (
        lambda m: bump(m.protocol(Protocol.IMAP).upstream_tries[enums.UpstreamTry.NEXT]),
        "upstream_tries_total",
        ("imap", "next"),
    ),
    (
        lambda m: bump(m.protocol(Protocol.IMAP).upstream_config_errors[enums.UpstreamStage.XCLIENT]),
        "upstream_config_errors_total",
        ("imap", "xclient"),
    ),
    (
        lambda m: bump(m.protocol(Protocol.IMAP).upstream_tls_failures[enums.UpstreamTlsFailure.NAME]),
        "upstream_tls_failures_total",
        ("imap", "name"),
    ),
    (
        lambda m: m.upstream_certificate_seen("s", 1.0),
        "upstream_certificate_expiry_timestamp_seconds",
        ("s",),
    ),
    (
        lambda m: bump(m.token_requests[enums.TokenResult.TIMEOUT]),
        "token_requests_total",
        ("timeout",),
    ),
    (lambda m: m.token_received("s", 1.0), "token_expiry_timestamp_seconds", ("s",)),
    (lambda m: bump(m.protocol(Protocol.IMAP).bytes_to_client), "relayed_bytes_total", ("imap", "to_client")),
    (
        lambda m: bump(m.protocol(Protocol.IMAP).bytes_to_upstream),
        "relayed_bytes_total",
        ("imap", "to_upstream"),
    ),
    (lambda m: bump(m.auth_errors[enums.AuthErrorReason.TLS]), "auth_errors_total", ("tls",)),
    (lambda m: bump(m.penalties[enums.PenaltyAction.KNOWN]), "auth_penalties_total", ("known",)),
    (lambda m: bump(m.penalty_waiting), "auth_penalty_waiting", ()),
    (
        lambda m: bump(m.failed_credentials[enums.FailedCredentials.NEW]),
        "auth_failed_credentials_total",
        ("new",),
    ),
    (lambda m: bump(m.addresses_blocked), "auth_addresses_blocked_total", ()),
    (lambda m: bump(m.token_validations[enums.TokenFinding.TYPE]), "oauth_validations_total", ("type",)),
    (lambda m: bump(m.jwks_fetches[enums.JwksResult.TLS]), "oauth_jwks_fetches_total", ("tls",)),
    (
        lambda m: bump(m.auth_cache_events[enums.AuthCacheEvent.STALE]),
        "auth_cache_events_total",
        ("stale",),
    ),
    (lambda m: bump(m.auth_cache_entries), "auth_cache_entries", ()),
    (lambda m: bump(m.auth_cache_bytes), "auth_cache_bytes", ()),
    (
        lambda m: bump(m.password_verifications[enums.PasswordFinding.WRONG]),
        "password_verifications_total",
        ("wrong",),
    ),
    (lambda m: bump(m.passwords_pending), "password_verifications_pending", ()),
    (
        lambda m: bump(m.policy_requests[enums.PolicyCommand.ALLOW, enums.PolicyResult.SKIPPED]),
        "policy_requests_total",
        ("allow", "skipped"),
    ),
    (lambda m: bump(m.policy_reports_dropped), "policy_reports_dropped_total", ()),
    (lambda m: bump(m.policy_breaker_open), "policy_breaker_open", ()),
    (lambda m: bump(m.auth_in_flight), "auth_requests_in_flight", ()),
    (
        lambda m: bump(m.tls_handshakes[enums.TlsMode.IMPLICIT, "TLSv1.3"]),
        "tls_handshakes_total",
        ("implicit", "TLSv1.3"),
    ),
    (
        lambda m: bump(m.tls_handshakes[enums.TlsMode.STARTTLS, "TLSv9"]),
        "tls_handshakes_total",
        ("starttls", "other"),
    ),
    (lambda m: bump(m.tls_resumed[enums.TlsMode.IMPLICIT]), "tls_sessions_resumed_total", ("implicit",)),
    (
        lambda m: bump(m.tls_failures[enums.TlsMode.STARTTLS, enums.TlsFailure.EOF]),
        "tls_handshake_failures_total",
        ("starttls", "eof"),
    ),
    (
        lambda m: bump(m.certificate_expiry["s", 1]),
        "tls_certificate_expiry_timestamp_seconds",
        ("s", "1"),
    ),
    (lambda m: bump(m.dns_timeouts[enums.DnsPurpose.PTR]), "dns_timeouts_total", ("ptr",)),
    (
        lambda m: bump(m.dns_queries[enums.DnsPurpose.AUTH, enums.DnsResult.REFUSED]),
        "dns_queries_total",
        ("auth", "refused"),
    ),
    (lambda m: bump(m.dns_cache[enums.CacheResult.STALE]), "dns_cache_requests_total", ("stale",)),
    (lambda m: bump(m.dns_cache_entries), "dns_cache_entries", ()),
    (lambda m: bump(m.draining), "draining", ()),
]

SPANS: list[tuple[Callable[[WorkerMetrics], Histogram], str, tuple[str, ...]]] = [
    (lambda m: m.password_seconds, "password_verification_duration_seconds", ()),
    (lambda m: m.token_seconds, "token_request_duration_seconds", ()),
    (lambda m: m.policy_seconds[enums.PolicyCommand.ALLOW], "policy_request_duration_seconds", ("allow",)),
    (lambda m: m.protocol(Protocol.IMAP).session_seconds[True], "session_duration_seconds", ("imap", "true")),
    (
        lambda m: m.protocol(Protocol.IMAP).session_seconds[False],
        "session_duration_seconds",
        ("imap", "false"),
    ),
    (lambda m: m.protocol(Protocol.IMAP).login_seconds[True], "login_duration_seconds", ("imap", "success")),
    (lambda m: m.protocol(Protocol.IMAP).login_seconds[False], "login_duration_seconds", ("imap", "failure")),
    (
        lambda m: m.protocol(Protocol.SMTP).auth_seconds[enums.AuthOutcome.WAIT],
        "auth_request_duration_seconds",
        ("smtp", "wait"),
    ),
    (
        lambda m: m.protocol(Protocol.SMTP).upstream_connect[True],
        "upstream_connect_duration_seconds",
        ("smtp", "ok"),
    ),
    (
        lambda m: m.protocol(Protocol.SMTP).upstream_connect[False],
        "upstream_connect_duration_seconds",
        ("smtp", "error"),
    ),
    (
        lambda m: m.protocol(Protocol.POP3).upstream_tls_seconds[True],
        "upstream_tls_handshake_seconds",
        ("pop3", "true"),
    ),
    (
        lambda m: m.protocol(Protocol.POP3).upstream_tls_seconds[False],
        "upstream_tls_handshake_seconds",
        ("pop3", "false"),
    ),
    (lambda m: m.tls_seconds[enums.TlsMode.IMPLICIT], "tls_handshake_duration_seconds", ("implicit",)),
    (lambda m: m.dns_seconds[enums.DnsPurpose.AUTH], "dns_query_duration_seconds", ("auth",)),
    (lambda m: m.loop_lag, "event_loop_lag_seconds", ()),
]


def bump(cell: object) -> None:
    cell.value += 1  # type: ignore[attr-defined]


def busy() -> WorkerMetrics:
    """A metrics with all cells that the tables below change, with initial values."""
    metrics = WorkerMetrics()
    for protocol in Protocol:
        metrics.protocol(protocol)
    metrics.server("s", Protocol.IMAP)
    metrics.set_certificates("s", [0, 0])
    metrics.limit_zone("user")
    metrics.group_logins("dovecot")
    return metrics


def changes(metrics: WorkerMetrics, before: Series) -> Series:
    return {key: value for key, value in series(metrics).items() if before.get(key) != value}


@pytest.mark.parametrize(("move", "name", "labels"), TABLE, ids=[f"{n}-{'-'.join(w)}" for _, n, w in TABLE])
def test_cell_changes_only_its_series(
    move: Callable[[WorkerMetrics], None], name: str, labels: tuple[str, ...]
) -> None:
    metrics = busy()
    before = series(metrics)
    move(metrics)
    assert changes(metrics, before) == {(P + name, labels): 1}


@pytest.mark.parametrize(("cell", "name", "labels"), SPANS, ids=[f"{n}-{'-'.join(w)}" for _, n, w in SPANS])
def test_duration_changes_one_bucket_of_its_series(
    cell: Callable[[WorkerMetrics], Histogram], name: str, labels: tuple[str, ...]
) -> None:
    metrics = busy()
    before = series(metrics)
    cell(metrics).observe(0.5)
    bounds = BY_NAME[P + name].buckets
    assert changes(metrics, before) == {
        (P + name, labels): bucketed(P + name, sum(bound < 0.5 for bound in bounds), 0.5)
    }


def test_earliest_expiry_of_upstreams_is_kept_until_they_are_forgotten() -> None:
    metrics = WorkerMetrics()
    name = (P + "upstream_certificate_expiry_timestamp_seconds", ("s",))
    for expiry in (5.0, 3.0, 4.0):
        metrics.upstream_certificate_seen("s", expiry)
    assert series(metrics)[name] == 3.0
    metrics.forget_upstream_certificates("s")
    assert name not in series(metrics)
    metrics.upstream_certificate_seen("s", 9.0)
    assert series(metrics)[name] == 9.0


def test_every_worker_metric_is_tested_above() -> None:
    moved = {P + name for _, name, _ in TABLE} | {P + name for _, name, _ in SPANS}
    config = {P + "config_info"} | {name for name in BY_NAME if name.startswith(P + "config_last")}
    config |= {P + "config_generation"}
    theirs = {f.name for f in ALL_METRICS if f.aggregation is not Aggregation.OWN and f.name.startswith(P)}
    assert moved | config == theirs


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0.0, 0),
        (0.1, 0),  # a bound belongs to its bucket
        (0.11, 1),
        (1.0, 1),
        (9.0, 2),
    ],
)
def test_buckets_include_their_upper_bound(seconds: float, bucket: int) -> None:
    histogram = Histogram((0.1, 1.0))
    histogram.observe(seconds)
    histogram.flush()
    assert histogram.counts.index(1) == bucket
    assert histogram.sum == seconds


@given(st.lists(st.floats(0, 5) | st.sampled_from([None, 0.1, 1.0])))
def test_time_of_flush_does_not_matter(steps: list[float | None]) -> None:
    bounds = (0.1, 1.0)
    histogram = Histogram(bounds)
    for step in steps:
        if step is None:
            histogram.flush()
        else:
            histogram.observe(step)
    histogram.flush()
    spans = [step for step in steps if step is not None]
    low, middle = (sum(span <= bound for span in spans) for bound in bounds)
    assert histogram.counts == [low, middle - low, len(spans) - middle]
    assert histogram.sum == pytest.approx(sum(spans))
    assert (histogram.state() is None) == (not spans)


def test_flush_leaves_no_pending_durations() -> None:
    metrics = busy()
    cells = [cell(metrics) for cell, _, _ in SPANS]
    for cell in cells:
        cell.observe(0.5)
    metrics.flush()
    assert [(cell.sum, sum(cell.counts), cell.pending) for cell in cells] == [(0.5, 1, [])] * len(cells)


def test_from_start_series_exist_with_0() -> None:
    metrics = busy()
    names = {name for name, _ in series(metrics)}
    assert {
        family.name
        for family in ALL_METRICS
        if family.from_start and family.aggregation is not Aggregation.OWN
    } <= names
    logins = [labels for name, labels in series(metrics) if name == P + "logins_total"]
    assert len(logins) == len(Protocol) * len(enums.Method) * len(enums.LoginResult)


def test_other_series_appear_with_their_first_value() -> None:
    metrics = busy()
    assert P + "tls_handshakes_total" not in {name for name, _ in series(metrics)}
    metrics.tls_handshakes[enums.TlsMode.IMPLICIT, "TLSv1.2"].value += 1
    assert [labels for name, labels in series(metrics) if name == P + "tls_handshakes_total"] == [
        ("implicit", "TLSv1.2")
    ]


def test_protocols_that_are_not_configured_have_no_series() -> None:
    metrics = WorkerMetrics()
    metrics.protocol(Protocol.POP3)
    assert {labels[0] for name, labels in series(metrics) if name == P + "logins_total"} == {"pop3"}


def test_reload_keeps_cells() -> None:
    metrics = WorkerMetrics()
    metrics.server("a", Protocol.IMAP).accepted.value += 2
    metrics.protocol(Protocol.IMAP).bytes_to_client.value += 7
    metrics.keep_servers(["a"])
    metrics.server("a", Protocol.IMAP).accepted.value += 1
    metrics.protocol(Protocol.IMAP).bytes_to_client.value += 1
    assert series(metrics)[P + "connections_accepted_total", ("a", "imap")] == 3
    assert series(metrics)[P + "relayed_bytes_total", ("imap", "to_client")] == 8


def test_removed_server_loses_only_its_series() -> None:
    metrics = WorkerMetrics()
    kept = metrics.server("a", Protocol.IMAP)
    gone = metrics.server("b", Protocol.POP3)
    metrics.set_certificates("a", [1.0])
    metrics.set_certificates("b", [2.0])
    metrics.keep_servers(["a"])
    gone.active.value -= 1  # its sessions end later, and still count
    kept.accepted.value += 1
    servers = {labels[0] for name, labels in series(metrics) if BY_NAME[name].label_names[:1] == ("server",)}
    assert servers == {"a"}
    metrics.certificate_expiry["b", 0].value = 3.0
    assert series(metrics)[P + "tls_certificate_expiry_timestamp_seconds", ("b", "0")] == 3.0


def test_certificates_are_those_of_the_last_load() -> None:
    metrics = WorkerMetrics()
    metrics.set_certificates("a", [1.0, 2.0])
    metrics.set_certificates("a", [3.0])
    expiries = {
        k: v for k, v in series(metrics).items() if k[0] == P + "tls_certificate_expiry_timestamp_seconds"
    }
    assert expiries == {(P + "tls_certificate_expiry_timestamp_seconds", ("a", "0")): 3.0}
    assert dict.keys(metrics.certificate_expiry) == {("a", 0)}


def test_config_metrics_appear_with_the_first_configuration() -> None:
    metrics = WorkerMetrics()
    assert not [name for name, _ in series(metrics) if name.startswith(P + "config")]
    metrics.config_loaded("old", 1, 10.0)
    metrics.config_loaded("new", 2, 20.0)
    config = {(name, labels): value for (name, labels), value in series(metrics).items() if "config" in name}
    assert config == {
        (P + "config_info", ("new",)): 1,
        (P + "config_last_reload_successful", ()): 1,
        (P + "config_last_reload_success_timestamp_seconds", ()): 20.0,
        (P + "config_generation", ()): 2,
    }


def test_snapshots_of_one_life_are_numbered() -> None:
    metrics = WorkerMetrics()
    one, two, other = metrics.snapshot(), metrics.snapshot(), WorkerMetrics().snapshot()
    assert one["life"] == two["life"] < other["life"]
    assert one["number"] < two["number"]


def test_snapshot_has_process_stats() -> None:
    assert {"process_cpu_seconds_total", "process_open_fds"} <= WorkerMetrics().snapshot()["series"].keys()


def test_number_of_series_does_not_depend_on_clients(tmp_path: object) -> None:
    metrics, chance = busy(), random.Random(1)
    with open(f"{tmp_path}/log", "wb") as file:
        log = Log(file.fileno())

        def visit() -> None:
            numbers, server = metrics.protocol(Protocol.IMAP), metrics.server("s", Protocol.IMAP)
            record = SessionRecord(log.session_id(), ServerFields("s", "imap"))
            record.user, record.client = chance.randbytes(12), f"198.51.100.{chance.randrange(256)}"
            server.closed[chance.choice(list(enums.CloseReason))].value += 1
            numbers.logins[enums.Method.PLAIN][chance.choice(list(enums.LoginResult))].value += 1
            numbers.errors[chance.choice(list(enums.ProtocolErrorKind))].value += 1
            metrics.tls_handshakes[enums.TlsMode.IMPLICIT, chance.randbytes(4).hex()].value += 1
            log.session(record)

        visit()
        before = len(series(metrics))
        for _ in range(10_000):
            visit()
        assert len(series(metrics)) == before

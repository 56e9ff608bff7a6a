# SPDX-License-Identifier: Apache-2.0
"""The definitions of metrics: names, units, labels, and those that dashboards rely on."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum

import pytest

from mailproxy import enums
from mailproxy.telemetry.definitions import ALL_METRICS, BY_NAME, Aggregation, MetricDefinition, MetricType
from mailproxy_config.model import Protocol

FREE_LABELS = {
    "server",
    "zone",
    "group",
    "certificate",
    "hash",
    "version",
    "revision",
    "python_version",
    "openssl_version",
}
"""Labels whose values come from the configuration or the build."""

PERSONAL = {"user", "domain", "client", "address", "host", "sni", "upstream", "secret", "name", "ip"}

EVERY = pytest.mark.parametrize("family", ALL_METRICS, ids=lambda family: family.name)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("mailproxy_protocol_errors_total", ("protocol", "error")),
        ("mailproxy_auth_request_duration_seconds", ("protocol", "outcome")),
        ("mailproxy_dns_timeouts_total", ("purpose",)),
        ("mailproxy_connections_active", ("server", "protocol")),
        ("mailproxy_connections_accepted_total", ("server", "protocol")),
        ("mailproxy_logins_total", ("protocol", "method", "result")),
        ("mailproxy_relayed_bytes_total", ("protocol", "direction")),
        ("mailproxy_upstream_connect_duration_seconds", ("protocol", "result")),
        ("mailproxy_upstream_errors_total", ("protocol", "stage")),
        ("mailproxy_tls_handshakes_total", ("mode", "version")),
        ("mailproxy_config_info", ("hash",)),
        ("mailproxy_config_last_reload_successful", ()),
        ("mailproxy_build_info", ("version", "revision", "python_version", "openssl_version")),
    ],
)
def test_names_and_labels_that_dashboards_rely_on_are_kept(name: str, labels: tuple[str, ...]) -> None:
    assert BY_NAME[name].label_names == labels


def test_all_metrics_are_defined() -> None:
    assert {(family.type.value[0], family.name, family.label_names) for family in ALL_METRICS} == {
        ("c", "mailproxy_connections_accepted_total", ("server", "protocol")),
        ("g", "mailproxy_connections_active", ("server", "protocol")),
        ("c", "mailproxy_connections_closed_total", ("server", "protocol", "reason")),
        ("g", "mailproxy_connections_limit", ()),
        ("g", "mailproxy_sessions_active", ("protocol", "state")),
        ("h", "mailproxy_session_duration_seconds", ("protocol", "authenticated")),
        ("c", "mailproxy_proxy_protocol_headers_total", ("server", "result")),
        ("c", "mailproxy_limit_rejections_total", ("server", "limit", "mode")),
        ("c", "mailproxy_limit_zone_events_total", ("zone", "event")),
        ("g", "mailproxy_limit_zone_entries", ("zone",)),
        ("g", "mailproxy_limit_zone_capacity", ("zone",)),
        ("c", "mailproxy_protocol_errors_total", ("protocol", "error")),
        ("c", "mailproxy_logins_total", ("protocol", "method", "result")),
        ("h", "mailproxy_login_duration_seconds", ("protocol", "result")),
        ("h", "mailproxy_auth_request_duration_seconds", ("protocol", "outcome")),
        ("c", "mailproxy_auth_errors_total", ("reason",)),
        ("g", "mailproxy_auth_requests_in_flight", ()),
        ("c", "mailproxy_auth_penalties_total", ("action",)),
        ("g", "mailproxy_auth_penalty_waiting", ()),
        ("c", "mailproxy_auth_failed_credentials_total", ("credentials",)),
        ("c", "mailproxy_auth_addresses_blocked_total", ()),
        ("c", "mailproxy_oauth_validations_total", ("result",)),
        ("c", "mailproxy_oauth_jwks_fetches_total", ("result",)),
        ("c", "mailproxy_auth_cache_events_total", ("event",)),
        ("g", "mailproxy_auth_cache_entries", ()),
        ("g", "mailproxy_auth_cache_bytes", ()),
        ("c", "mailproxy_policy_requests_total", ("command", "result")),
        ("h", "mailproxy_policy_request_duration_seconds", ("command",)),
        ("c", "mailproxy_policy_reports_dropped_total", ()),
        ("g", "mailproxy_policy_breaker_open", ()),
        ("h", "mailproxy_upstream_connect_duration_seconds", ("protocol", "result")),
        ("c", "mailproxy_upstream_errors_total", ("protocol", "stage")),
        ("c", "mailproxy_upstream_tries_total", ("protocol", "result")),
        ("g", "mailproxy_upstream_unhealthy", ()),
        ("g", "mailproxy_route_tables_refused", ()),
        ("g", "mailproxy_user_files_refused", ()),
        ("g", "mailproxy_group_members", ("group", "state")),
        ("c", "mailproxy_group_logins_total", ("group", "result")),
        ("g", "mailproxy_member_lists_refused", ()),
        ("c", "mailproxy_password_verifications_total", ("result",)),
        ("h", "mailproxy_password_verification_duration_seconds", ()),
        ("g", "mailproxy_password_verifications_pending", ()),
        ("c", "mailproxy_upstream_config_errors_total", ("protocol", "stage")),
        ("c", "mailproxy_upstream_tls_failures_total", ("protocol", "reason")),
        ("h", "mailproxy_upstream_tls_handshake_seconds", ("protocol", "resumed")),
        ("g", "mailproxy_upstream_certificate_expiry_timestamp_seconds", ("server",)),
        ("c", "mailproxy_token_requests_total", ("result",)),
        ("h", "mailproxy_token_request_duration_seconds", ()),
        ("g", "mailproxy_token_expiry_timestamp_seconds", ("server",)),
        ("c", "mailproxy_relayed_bytes_total", ("protocol", "direction")),
        ("c", "mailproxy_tls_handshakes_total", ("mode", "version")),
        ("c", "mailproxy_tls_sessions_resumed_total", ("mode",)),
        ("c", "mailproxy_tls_handshake_failures_total", ("mode", "reason")),
        ("h", "mailproxy_tls_handshake_duration_seconds", ("mode",)),
        ("g", "mailproxy_tls_certificate_expiry_timestamp_seconds", ("server", "certificate")),
        ("c", "mailproxy_dns_timeouts_total", ("purpose",)),
        ("c", "mailproxy_dns_queries_total", ("purpose", "result")),
        ("h", "mailproxy_dns_query_duration_seconds", ("purpose",)),
        ("c", "mailproxy_dns_cache_requests_total", ("result",)),
        ("g", "mailproxy_dns_cache_entries", ()),
        ("g", "mailproxy_config_info", ("hash",)),
        ("g", "mailproxy_config_last_reload_successful", ()),
        ("g", "mailproxy_config_last_reload_success_timestamp_seconds", ()),
        ("c", "mailproxy_config_reloads_total", ("result",)),
        ("g", "mailproxy_config_generation", ()),
        ("g", "mailproxy_build_info", ("version", "revision", "python_version", "openssl_version")),
        ("g", "mailproxy_workers", ()),
        ("c", "mailproxy_worker_restarts_total", ("reason",)),
        ("g", "mailproxy_draining", ()),
        ("h", "mailproxy_event_loop_lag_seconds", ()),
        ("g", "process_resident_memory_bytes", ()),
        ("g", "process_open_fds", ()),
        ("g", "process_max_fds", ()),
        ("c", "process_cpu_seconds_total", ()),
        ("g", "process_start_time_seconds", ()),
    }


@EVERY
def test_metric_names_have_prefix_and_unit(family: MetricDefinition) -> None:
    assert family.name.startswith(("mailproxy_", "process_"))
    assert family.name.endswith("_total") == (family.type is MetricType.COUNTER)
    assert family.type is not MetricType.HISTOGRAM or family.name.endswith("_seconds")
    assert not {"ms", "millis", "kb", "minutes", "percent"} & set(family.name.split("_"))


@EVERY
def test_every_metric_has_help(family: MetricDefinition) -> None:
    assert family.help.endswith(".")
    assert len(family.help) > 20


@EVERY
def test_label_values_come_from_closed_sets(family: MetricDefinition) -> None:
    for label in family.labels:
        assert label.name not in PERSONAL
        assert (label.values is None) == (
            label.name in FREE_LABELS and family.name != "mailproxy_tls_handshakes_total"
        )


@EVERY
def test_only_histograms_have_buckets_in_order(family: MetricDefinition) -> None:
    assert bool(family.buckets) == (family.type is MetricType.HISTOGRAM)
    assert list(family.buckets) == sorted(set(family.buckets))


@EVERY
def test_counters_and_histograms_are_summed(family: MetricDefinition) -> None:
    assert family.type is MetricType.GAUGE or family.aggregation in {Aggregation.SUM, Aggregation.OWN}


@pytest.mark.parametrize(
    ("name", "label", "enum"),
    [
        ("mailproxy_connections_closed_total", "reason", enums.CloseReason),
        ("mailproxy_connections_closed_total", "protocol", Protocol),
        ("mailproxy_logins_total", "method", enums.Method),
        ("mailproxy_logins_total", "result", enums.LoginResult),
        ("mailproxy_protocol_errors_total", "error", enums.ProtocolErrorKind),
        ("mailproxy_auth_request_duration_seconds", "outcome", enums.AuthOutcome),
        ("mailproxy_auth_errors_total", "reason", enums.AuthErrorReason),
        ("mailproxy_auth_penalties_total", "action", enums.PenaltyAction),
        ("mailproxy_auth_failed_credentials_total", "credentials", enums.FailedCredentials),
        ("mailproxy_oauth_validations_total", "result", enums.TokenFinding),
        ("mailproxy_oauth_jwks_fetches_total", "result", enums.JwksResult),
        ("mailproxy_auth_cache_events_total", "event", enums.AuthCacheEvent),
        ("mailproxy_password_verifications_total", "result", enums.PasswordFinding),
        ("mailproxy_policy_requests_total", "command", enums.PolicyCommand),
        ("mailproxy_policy_requests_total", "result", enums.PolicyResult),
        ("mailproxy_upstream_errors_total", "stage", enums.UpstreamStage),
        ("mailproxy_upstream_config_errors_total", "stage", enums.UpstreamStage),
        ("mailproxy_upstream_tls_failures_total", "reason", enums.UpstreamTlsFailure),
        ("mailproxy_upstream_tries_total", "result", enums.UpstreamTry),
        ("mailproxy_token_requests_total", "result", enums.TokenResult),
        ("mailproxy_proxy_protocol_headers_total", "result", enums.ProxyHeaderResult),
        ("mailproxy_tls_handshake_failures_total", "reason", enums.TlsFailure),
        ("mailproxy_dns_queries_total", "result", enums.DnsResult),
        ("mailproxy_dns_timeouts_total", "purpose", enums.DnsPurpose),
        ("mailproxy_dns_cache_requests_total", "result", enums.CacheResult),
        ("mailproxy_sessions_active", "state", enums.SessionState),
        ("mailproxy_relayed_bytes_total", "direction", enums.Direction),
        ("mailproxy_limit_rejections_total", "limit", enums.Limit),
        ("mailproxy_limit_zone_events_total", "event", enums.ZoneEvent),
        ("mailproxy_worker_restarts_total", "reason", enums.RestartReason),
    ],
)
def test_label_values_are_those_of_the_enums(name: str, label: str, enum: type[StrEnum]) -> None:
    values = {it.name: it.values for it in BY_NAME[name].labels}[label]
    assert values == tuple(word.value for word in enum)


def test_workers_do_not_import_prometheus_client_or_aiohttp() -> None:
    modules = "metrics, log, log_format, aggregate, definitions"
    probe = (
        f"import sys; from mailproxy.telemetry import {modules};"
        "from mailproxy.supervisor import admin_endpoint;"
        "sys.exit(bool({'prometheus_client', 'aiohttp'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", probe], check=False, env={"PYTHONPATH": ":".join(sys.path)})
    assert run.returncode == 0

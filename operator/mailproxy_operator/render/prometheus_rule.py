# SPDX-License-Identifier: Apache-2.0
"""The PrometheusRule: alerts about one MailProxy, selected by the job that its PodMonitor makes."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy_operator.kinds import PROMETHEUS_RULE, Manifest
from mailproxy_operator.render.plan import Plan


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        expression: PromQL; ``JOB`` stands for the matcher of the job.
        after: How long it has to hold; empty for at once.
        summary: What it means, for whoever is woken by it.
    """

    name: str
    expression: str
    after: str
    severity: str
    summary: str


ALERTS = (
    Alert(
        "MailProxyLoginFailures",
        "sum by (protocol) (rate(mailproxy_logins_total"
        '{JOB, result=~"timeout|unavailable|invalid_response|upstream_failed|upstream_refused"}[10m]))\n'
        "  / sum by (protocol) (rate(mailproxy_logins_total"
        '{JOB, result!~"aborted|bad_credentials_syntax"}[10m])) > 0.05\n'
        "and on (protocol) sum by (protocol) (rate(mailproxy_logins_total{JOB}[10m])) > 0.1",
        "10m",
        "critical",
        "{{ $value | humanizePercentage }} of {{ $labels.protocol }} logins fail, not for a wrong password",
    ),
    Alert(
        "MailProxyLoginsDenied",
        'sum by (protocol) (rate(mailproxy_logins_total{JOB, result="denied"}[10m]))\n'
        "  / sum by (protocol) (rate(mailproxy_logins_total{JOB}[10m])) > 0.8\n"
        "and on (protocol) sum by (protocol) (rate(mailproxy_logins_total{JOB}[10m])) > 1",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of {{ $labels.protocol }} logins are turned away:"
        " passwords are being guessed, or the authentication service lets nobody in",
    ),
    Alert(
        "MailProxyAuthSlow",
        "histogram_quantile(0.99, sum by (le, protocol)"
        " (rate(mailproxy_auth_request_duration_seconds_bucket{JOB}[5m]))) > 2",
        "10m",
        "warning",
        "one in a hundred {{ $labels.protocol }} logins waits {{ $value | humanizeDuration }}"
        " or more for the authentication service",
    ),
    Alert(
        "MailProxyAuthErrors",
        "sum by (reason) (rate(mailproxy_auth_errors_total{JOB}[5m])) > 0.1",
        "5m",
        "critical",
        "the authentication service gives no usable answer ({{ $labels.reason }})",
    ),
    Alert(
        "MailProxyDnsTimeouts",
        "sum by (purpose) (rate(mailproxy_dns_timeouts_total{JOB}[10m])) > 0.1",
        "10m",
        "warning",
        "look-ups for {{ $labels.purpose }} get no answer in time",
    ),
    Alert(
        "MailProxyUpstreamErrors",
        'sum by (protocol, stage) (rate(mailproxy_upstream_errors_total{JOB, stage!="relay"}[5m]))\n'
        "  / on (protocol) group_left sum by (protocol)"
        " (rate(mailproxy_upstream_connect_duration_seconds_count{JOB}[5m])) > 0.05",
        "10m",
        "critical",
        "more than one in twenty {{ $labels.protocol }} sessions fails at the upstream ({{ $labels.stage }})",
    ),
    Alert(
        "MailProxyCertificateExpires",
        "min by (server) (mailproxy_tls_certificate_expiry_timestamp_seconds{JOB}) - time() < 14 * 86400",
        "1h",
        "warning",
        "server {{ $labels.server }} has a certificate that ends in {{ $value | humanizeDuration }}",
    ),
    Alert(
        "MailProxyReloadFailed",
        "min by (pod) (mailproxy_config_last_reload_successful{JOB}) == 0",
        "5m",
        "warning",
        "{{ $labels.pod }} could not use its new configuration and goes on with the old one",
    ),
    Alert(
        "MailProxyConfigSkew",
        "count(count by (hash) (mailproxy_config_info{JOB})) > 1",
        "5m",
        "warning",
        "{{ $value }} different configurations are in use",
    ),
    Alert(
        "MailProxyConnectionsNearLimit",
        "sum by (pod) (mailproxy_connections_active{JOB}) / on (pod) mailproxy_connections_limit{JOB} > 0.8",
        "5m",
        "warning",
        "{{ $labels.pod }} has {{ $value | humanizePercentage }} of the connections it may have",
    ),
    Alert(
        "MailProxyEventLoopSlow",
        "histogram_quantile(0.99, sum by (le, pod)"
        " (rate(mailproxy_event_loop_lag_seconds_bucket{JOB}[5m]))) > 0.1",
        "10m",
        "warning",
        "{{ $labels.pod }} gets too little CPU: it is late by {{ $value | humanizeDuration }}",
    ),
    Alert(
        "MailProxyWorkerCrashes",
        'sum by (pod) (increase(mailproxy_worker_restarts_total{JOB, reason="crash"}[15m])) > 0',
        "",
        "warning",
        "a worker process of {{ $labels.pod }} ended unexpectedly and was replaced",
    ),
    Alert(
        "MailProxyInternalErrors",
        'sum by (pod) (increase(mailproxy_connections_closed_total{JOB, reason="internal_error"}[15m])) > 0',
        "",
        "warning",
        "{{ $labels.pod }} closed connections because of a fault of its own; see its log",
    ),
    Alert(
        "MailProxyDown",
        "absent(up{JOB} == 1)",
        "5m",
        "critical",
        "Prometheus reaches no pod of this mail proxy",
    ),
)


def prometheus_rule(plan: Plan) -> Manifest | None:
    """Render the PrometheusRule, if the resource asks for one."""
    asked = plan.resource.deployment.monitoring.prometheus_rule
    if not asked.enabled:
        return None
    metadata = plan.resource.metadata(plan.resource.name)
    metadata["labels"] = {**asked.labels, **metadata["labels"]}
    key = plan.resource.key
    rules = [_rule(alert, f"{key.namespace}/{key.name}") for alert in ALERTS]
    return {
        "apiVersion": PROMETHEUS_RULE.api_version,
        "kind": PROMETHEUS_RULE.name,
        "metadata": metadata,
        "spec": {"groups": [{"name": f"mailproxy.{key.namespace}.{key.name}", "rules": rules}]},
    }


def _rule(alert: Alert, job: str) -> Manifest:
    rule: Manifest = {"alert": alert.name, "expr": alert.expression.replace("JOB", f'job="{job}"')}
    if alert.after:
        rule["for"] = alert.after
    return rule | {"labels": {"severity": alert.severity}, "annotations": {"summary": alert.summary}}

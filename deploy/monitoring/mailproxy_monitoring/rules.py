# SPDX-License-Identifier: Apache-2.0
"""Prometheus rules: recording rules, and alerts about the operator.

The alerts of a proxy are the operator's to render (``monitoring.prometheusRule``
of a MailProxy); for those who run Prometheus without its operator they are
written out here, about every MailProxy at once.
"""

from __future__ import annotations

from typing import Any, Final

from mailproxy_operator.render.prometheus_rule import ALERTS, Alert, rule_for_all

Json = dict[str, Any]

_BY: Final = "namespace, job, protocol"
_POD: Final = "namespace, job, pod, instance"
_LOGINS: Final = "namespace_job_protocol_result:mailproxy_logins:rate5m"

RECORDS: Final = {
    _LOGINS: f"sum by ({_BY}, result) (rate(mailproxy_logins_total[5m]))",
    "namespace_job_protocol:mailproxy_logins_success:ratio_rate5m": (
        f'sum by ({_BY}) ({_LOGINS}{{result="success"}}) / sum by ({_BY}) ({_LOGINS}{{result!="aborted"}})'
    ),
    "namespace_job_protocol:mailproxy_login_duration_seconds:p99_rate5m": (
        f"histogram_quantile(0.99, sum by (le, {_BY}) (rate(mailproxy_login_duration_seconds_bucket[5m])))"
    ),
    "namespace_job_protocol:mailproxy_auth_request_duration_seconds:p99_rate5m": (
        f"histogram_quantile(0.99, sum by (le, {_BY})"
        " (rate(mailproxy_auth_request_duration_seconds_bucket[5m])))"
    ),
    "namespace_job_protocol_stage:mailproxy_upstream_errors:rate5m": (
        f"sum by ({_BY}, stage) (rate(mailproxy_upstream_errors_total[5m]))"
    ),
    "namespace_job_pod_instance:mailproxy_connections:utilization": (
        f"sum by ({_POD}) (mailproxy_connections_active) / sum by ({_POD}) (mailproxy_connections_limit)"
    ),
}
"""Recording rules for dashboards of several clusters, autoscalers and long ranges, by name."""

# Prometheus renames a label of a metric that its target has as well, unless honorLabels is set.
_CONDITION: Final = (
    "max by (namespace, mailproxy) (label_replace(label_replace(mailproxy_operator_condition{{{0}}},"
    ' "namespace", "$1", "exported_namespace", "(.+)"), "mailproxy", "$1", "name", "(.+)")) == 1'
)
_HAS_RESOURCES: Final = "and on (namespace) sum by (namespace) (mailproxy_operator_resources) > 0"

OPERATOR_ALERTS: Final = (
    Alert(
        "MailProxyOperatorNotReconciling",
        "sum by (namespace)"
        ' (increase(mailproxy_operator_reconciles_total{result!~"error|retry"}[20m])) == 0\n'
        f"{_HAS_RESOURCES}",
        "20m",
        "warning",
        "the operator in {{ $labels.namespace }} has finished no reconcile for more than half an hour",
        "Changes of MailProxy resources have no effect. The proxies go on as they are.",
    ),
    Alert(
        "MailProxyOperatorErrors",
        'sum by (namespace) (rate(mailproxy_operator_reconciles_total{result="error"}[15m]))\n'
        "  / sum by (namespace) (rate(mailproxy_operator_reconciles_total[15m])) > 0.2",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the reconciles of the operator in {{ $labels.namespace }} fail",
        "A fault of the operator, not of a resource: its log has a traceback. Report it.",
    ),
    Alert(
        "MailProxyOperatorDown",
        "(group by (namespace) (max_over_time(mailproxy_operator_leader[1h]))\n"
        "  unless group by (namespace) (mailproxy_operator_leader == 1))\n"
        "or absent_over_time(mailproxy_operator_leader[1h])",
        "5m",
        "warning",
        "no operator holds the Lease {{ with $labels.namespace }}in {{ . }}{{ end }}",
        "Changes of MailProxy resources have no effect. The proxies go on as they are.",
    ),
    Alert(
        "MailProxyNotReady",
        _CONDITION.format('type="Ready", status!="True"'),
        "15m",
        "warning",
        "MailProxy {{ $labels.namespace }}/{{ $labels.mailproxy }} is not Ready",
        "The reason: kubectl describe mailp {{ $labels.mailproxy }} -n {{ $labels.namespace }}",
    ),
    Alert(
        "MailProxyStalled",
        _CONDITION.format('type="Stalled", status="True"'),
        "5m",
        "warning",
        "MailProxy {{ $labels.namespace }}/{{ $labels.mailproxy }} needs somebody to change something",
        "Waiting does not help: the resource, what it refers to, or the cluster has to be changed."
        " The condition Stalled names it.",
    ),
    Alert(
        "MailProxySysctlForbidden",
        'max by (namespace) (mailproxy_operator_circuit_breakers_open{reason="sysctl_forbidden"}) > 0',
        "",
        "warning",
        "nodes refuse a sysctl that {{ $value }} MailProxies ask for",
        "Their pods run without it; MailProxyStalled names them.",
    ),
)


def chart_rules() -> Json:
    """Return the content of the chart's PrometheusRule."""
    return {
        "groups": [
            _records(),
            {"name": "mailproxy-operator", "rules": list(map(rule_for_all, OPERATOR_ALERTS))},
        ]
    }


def plain_rules() -> Json:
    """Return a rule file for a Prometheus without its operator, for every MailProxy that it scrapes."""
    return {"groups": [_records(), {"name": "mailproxy", "rules": list(map(rule_for_all, ALERTS))}]}


def _records() -> Json:
    rules = [{"record": name, "expr": expression} for name, expression in RECORDS.items()]
    return {"name": "mailproxy.records", "rules": rules}

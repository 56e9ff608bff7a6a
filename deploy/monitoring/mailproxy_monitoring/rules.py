# SPDX-License-Identifier: Apache-2.0
"""Rules of Prometheus: what is worth recording, and what the operator should wake somebody for.

The alerts of a proxy are the operator's to render (``monitoring.prometheusRule``
of a MailProxy); for those who run Prometheus without its operator they are
written out here for one job.
"""

from __future__ import annotations

import re
from typing import Any, Final

from mailproxy_operator.render.prometheus_rule import ALERTS, Alert

Json = dict[str, Any]

PLAIN_JOB: Final = "mailproxy"
"""The job of ``scrape/static.yaml``."""

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
"""What dashboards of several clusters, autoscalers and long ranges ask for, by its name."""

OPERATOR_ALERTS: Final = (
    Alert(
        "MailProxyOperatorNotReconciling",
        "time() - max(mailproxy_operator_last_success_timestamp_seconds) > 1800",
        "5m",
        "warning",
        "the operator has finished nothing well for {{ $value | humanizeDuration }}",
    ),
    Alert(
        "MailProxyOperatorErrors",
        'sum(rate(mailproxy_operator_reconciles_total{result=~"error|hopeless"}[15m]))\n'
        "  / sum(rate(mailproxy_operator_reconciles_total[15m])) > 0.2",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of what the operator does fails",
    ),
    Alert(
        "MailProxyOperatorDown",
        "absent(mailproxy_operator_leader == 1)",
        "5m",
        "warning",
        "no operator holds the Lease; the proxies go on as they are",
    ),
    Alert(
        "MailProxyNotReady",
        'max(mailproxy_operator_resources{ready!="true"}) > 0',
        "15m",
        "warning",
        "{{ $value }} MailProxy resources are not Ready; kubectl get mailp -A -o wide names them",
    ),
    Alert(
        "MailProxySysctlForbidden",
        'max(mailproxy_operator_circuit_breakers_open{reason="sysctl_forbidden"}) > 0',
        "",
        "warning",
        "nodes refuse a sysctl that a MailProxy asks for; its status names it",
    ),
)


def chart_rules() -> Json:
    """Give what the chart's PrometheusRule holds."""
    return {
        "groups": [
            _records(),
            {"name": "mailproxy-operator", "rules": [_alert(one) for one in OPERATOR_ALERTS]},
        ]
    }


def plain_rules() -> Json:
    """Give a rule file for a Prometheus without its operator."""
    alerts = [_alert(one) for one in ALERTS]
    return {"groups": [_records(), {"name": "mailproxy", "rules": alerts}]}


def _records() -> Json:
    rules = [{"record": name, "expr": expression} for name, expression in RECORDS.items()]
    return {"name": "mailproxy.records", "rules": rules}


def _alert(alert: Alert) -> Json:
    expression = alert.expression.replace("JOB", f'job="{PLAIN_JOB}"')
    # Where there are no pods, a target is known by its address.
    expression = re.sub(r"\bpod\b", "instance", expression)
    summary = alert.summary.replace("$labels.pod", "$labels.instance")
    rule: Json = {"alert": alert.name, "expr": expression}
    if alert.after:
        rule["for"] = alert.after
    return rule | {"labels": {"severity": alert.severity}, "annotations": {"summary": summary}}

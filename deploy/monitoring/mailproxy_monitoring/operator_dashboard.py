# SPDX-License-Identifier: Apache-2.0
"""The dashboard of the operator: whether MailProxy resources are reconciled."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.grafana import Dashboard, Panel, Row, Variable
from mailproxy_monitoring.queries import JOB, quantile, rate

OVERVIEW: Final = Row(
    "At a glance",
    (
        Panel(
            title="Ready",
            kind="stat",
            width=4,
            height=4,
            queries=((f'sum (mailproxy_operator_resources{{{JOB}, ready="true"}})', ""),),
            help="MailProxy resources whose Ready condition is True.",
        ),
        Panel(
            title="Not ready",
            kind="stat",
            width=4,
            height=4,
            steps=((None, "green"), (1.0, "red")),
            queries=((f'sum (mailproxy_operator_resources{{{JOB}, ready!="true"}})', ""),),
            help="kubectl get mailp -A -o wide names them, and the reason.",
        ),
        Panel(
            title="Held back by a sysctl",
            kind="stat",
            width=4,
            height=4,
            steps=((None, "green"), (1.0, "red")),
            queries=((f"sum (mailproxy_operator_circuit_breakers_open{{{JOB}}})", ""),),
            help="Nodes refuse a sysctl that the resource asks for; its status names it.",
        ),
        Panel(
            title="Operators that work",
            kind="stat",
            width=4,
            height=4,
            steps=((None, "red"), (1.0, "green"), (2.0, "red")),
            queries=((f"sum (mailproxy_operator_leader{{{JOB}}})", ""),),
            help="One, of however many replicas; none while the Lease changes hands.",
        ),
        Panel(
            title="Since the last good reconcile",
            kind="stat",
            unit="s",
            width=4,
            height=4,
            steps=((None, "green"), (1200.0, "orange"), (1800.0, "red")),
            queries=((f"time() - max (mailproxy_operator_last_success_timestamp_seconds{{{JOB}}})", ""),),
            help="Every resource is reconciled every ten minutes, whether or not something changed.",
        ),
        Panel(
            title="Waiting",
            kind="stat",
            width=4,
            height=4,
            queries=((f"sum (mailproxy_operator_queue_depth{{{JOB}}})", ""),),
            help="Resources that wait for a reconcile.",
        ),
    ),
)

RECONCILES: Final = Row(
    "Reconciles",
    (
        Panel(
            title="By result",
            stacked=True,
            unit="ops",
            queries=((rate("mailproxy_operator_reconciles_total", "result", JOB), "{{result}}"),),
            help="retry: it will be tried again. hopeless: the resource must be changed."
            " error: a fault of the operator; its log has the traceback.",
        ),
        Panel(
            title="Time",
            unit="s",
            queries=tuple(
                (quantile(share, "mailproxy_operator_reconcile_duration_seconds", where=JOB), name)
                for share, name in ((0.5, "median"), (0.99, "99 %"))
            ),
            help="One reconcile, requests to the API server and to pods included.",
        ),
        Panel(
            title="Waiting",
            queries=((f"sum (mailproxy_operator_queue_depth{{{JOB}}})", "waiting"),),
            help="A queue that does not empty is an API server that is slow.",
        ),
        Panel(
            title="Resources, by Ready",
            stacked=True,
            queries=((f"sum by (ready) (mailproxy_operator_resources{{{JOB}}})", "{{ready}}"),),
            help="",
        ),
        Panel(
            title="Resources refused, by reason",
            queries=(
                (
                    f"sum by (reason) (increase(mailproxy_operator_config_errors_total{{{JOB}}}"
                    "[$__rate_interval]))",
                    "{{reason}}",
                ),
            ),
            help="What runs is left as it is.",
        ),
        Panel(
            title="Repaired and removed, by kind",
            queries=(
                (rate("mailproxy_operator_drift_repairs_total", "kind", JOB), "repaired: {{kind}}"),
                (rate("mailproxy_operator_prunes_total", "kind", JOB), "removed: {{kind}}"),
            ),
            unit="ops",
            help="Repairs again and again: another client writes the same fields.",
        ),
    ),
)

API: Final = Row(
    "API server",
    (
        Panel(
            title="Requests, by verb",
            stacked=True,
            unit="reqps",
            queries=((rate("mailproxy_operator_api_requests_total", "verb", JOB), "{{verb}}"),),
            help="Without changes nothing is written: patches then are drift.",
        ),
        Panel(
            title="Requests, by answer",
            stacked=True,
            unit="reqps",
            queries=((rate("mailproxy_operator_api_requests_total", "code", JOB), "{{code}}"),),
            help="429: the API server limits our requests. 4xx: rights or quota; see a resource's status.",
        ),
        Panel(
            title="Time, 99th percentile",
            unit="s",
            queries=(
                (
                    quantile(0.99, "mailproxy_operator_api_request_duration_seconds", "verb", JOB),
                    "{{verb}}",
                ),
            ),
            help="",
        ),
        Panel(
            title="Watches begun again, by reason",
            stacked=True,
            queries=(
                (
                    f"sum by (reason) (increase(mailproxy_operator_watch_restarts_total{{{JOB}}}"
                    "[$__rate_interval]))",
                    "{{reason}}",
                ),
            ),
            help="expired and closed now and then are normal. error: the API server refuses,"
            " or cannot be reached. inactive: silent for too long; the next listing finds missed changes.",
        ),
        Panel(
            title="Sidecars asked for, by what became of it",
            stacked=True,
            queries=(
                (
                    f"sum by (result) (increase(mailproxy_operator_sidecar_admissions_total{{{JOB}}}"
                    "[$__rate_interval]))",
                    "{{result}}",
                ),
            ),
            help="ignored: the pod runs without; an event gives the reason. refused: by failurePolicy Fail."
            " error: a fault of the operator; its log has the traceback.",
        ),
        Panel(
            title="Operators, by version",
            stacked=True,
            queries=(
                (
                    f"count by (version, revision) (mailproxy_operator_build_info{{{JOB}}})",
                    "{{version}} {{revision}}",
                ),
            ),
            help="Two for minutes: an upgrade is stuck.",
        ),
    ),
)

OPERATOR: Final = Dashboard(
    uid="mailproxy-operator",
    title="MailProxy operator",
    description="Does what is written in MailProxy resources become true?",
    variables=(
        Variable(
            name="namespace",
            label="Namespace",
            query="label_values(mailproxy_operator_build_info, namespace)",
        ),
        Variable(
            name="job",
            label="Operator",
            query='label_values(mailproxy_operator_build_info{namespace=~"$namespace"}, job)',
        ),
    ),
    rows=(OVERVIEW, RECONCILES, API),
)

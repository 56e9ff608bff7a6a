# SPDX-License-Identifier: Apache-2.0
"""The dashboard of the operator: whether MailProxy resources are reconciled."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring import colours
from mailproxy_monitoring.grafana import EVENTS_PER_SECOND, Dashboard, DashboardLink, Panel, Row, Variable
from mailproxy_monitoring.queries import JOB, count, quantile, rate

OVERVIEW: Final = Row(
    "Overview",
    (
        Panel(
            title="Ready",
            kind="stat",
            width=4,
            height=4,
            queries=((f'sum (mailproxy_operator_resources{{{JOB}, ready="true"}})', ""),),
            description="MailProxy resources whose condition Ready is True.",
        ),
        Panel(
            title="Not ready",
            kind="stat",
            width=4,
            height=4,
            steps=((None, "green"), (1.0, "red")),
            queries=((f'sum (mailproxy_operator_resources{{{JOB}, ready!="true"}})', ""),),
            description="MailProxy resources whose condition Ready is not True. kubectl get mailp -A -o wide"
            " lists them with the reason.",
            alerts=("MailProxyNotReady", "MailProxyStalled"),
        ),
        Panel(
            title="Forbidden sysctls",
            kind="stat",
            width=4,
            height=4,
            steps=((None, "green"), (1.0, "red")),
            queries=((f"sum (mailproxy_operator_circuit_breakers_open{{{JOB}}})", ""),),
            description="MailProxy resources with a sysctl that nodes refuse; their status names it.",
            alerts=("MailProxySysctlForbidden",),
        ),
        Panel(
            title="Leaders",
            kind="stat",
            width=4,
            height=4,
            steps=((None, "red"), (1.0, "green"), (2.0, "red")),
            queries=((f"sum (mailproxy_operator_leader{{{JOB}}})", ""),),
            description="Operator pods that hold the Lease: one, whatever the number of replicas;"
            " none for seconds while the Lease changes.",
            alerts=("MailProxyOperatorDown",),
        ),
        Panel(
            title="Since the last reconcile",
            kind="stat",
            unit="s",
            width=4,
            height=4,
            steps=((None, "green"), (1200.0, "orange"), (1800.0, "red")),
            queries=((f"time() - max (mailproxy_operator_last_success_timestamp_seconds{{{JOB}}})", ""),),
            description="Time since a reconcile finished. Every resource is reconciled every ten minutes,"
            " with or without a change.",
            alerts=("MailProxyOperatorNotReconciling",),
        ),
        Panel(
            title="Queue depth",
            kind="stat",
            width=4,
            height=4,
            queries=((f"sum (mailproxy_operator_queue_depth{{{JOB}}})", ""),),
            description="Resources that wait for a reconcile.",
            alerts=("MailProxyOperatorNotReconciling",),
        ),
    ),
)

RECONCILIATION: Final = Row(
    "Reconciliation",
    (
        Panel(
            title="Reconciles by result",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            queries=((rate("mailproxy_operator_reconciles_total", "result", JOB), "{{result}}"),),
            colours=colours.RECONCILES,
            description="retry: it is repeated with back-off. hopeless: the resource must be changed."
            " error: a fault of the operator; its log has the traceback.",
            alerts=("MailProxyOperatorErrors",),
        ),
        Panel(
            title="Reconcile duration",
            unit="s",
            queries=tuple(
                (quantile(share, "mailproxy_operator_reconcile_duration_seconds", where=JOB), name)
                for share, name in ((0.5, "median"), (0.99, "99 %"))
            ),
            colours=colours.QUANTILES,
            description="Includes requests to the API server and to pods.",
        ),
        Panel(
            title="Queue depth over time",
            queries=((f"sum (mailproxy_operator_queue_depth{{{JOB}}})", "queue depth"),),
            description="A queue that does not become empty: the API server is slow.",
        ),
        Panel(
            title="Resources by Ready condition",
            stacked=True,
            queries=((f"sum by (ready) (mailproxy_operator_resources{{{JOB}}})", "{{ready}}"),),
            colours=colours.READY,
            description="MailProxy resources, by the status of their condition Ready.",
            alerts=("MailProxyNotReady",),
        ),
        Panel(
            title="Rejected resources by reason",
            queries=((count("mailproxy_operator_config_errors_total", "reason", JOB), "{{reason}}"),),
            colours=colours.CONFIG_ERRORS,
            description="Reconciles of invalid resources. Their running pods are not changed.",
            alerts=("MailProxyStalled",),
        ),
        Panel(
            title="Repaired and pruned objects by kind",
            queries=(
                (rate("mailproxy_operator_drift_repairs_total", "kind", JOB), "repaired: {{kind}}"),
                (rate("mailproxy_operator_prunes_total", "kind", JOB), "pruned: {{kind}}"),
            ),
            unit=EVENTS_PER_SECOND,
            description="Repeated repairs: another client writes the same fields. Pruned: the object is no"
            " longer wanted.",
        ),
    ),
)

API: Final = Row(
    "Kubernetes API",
    (
        Panel(
            title="Requests by verb",
            stacked=True,
            unit="reqps",
            queries=((rate("mailproxy_operator_api_requests_total", "verb", JOB), "{{verb}}"),),
            colours=colours.VERBS,
            description="Without changes nothing is written; apply then means drift.",
        ),
        Panel(
            title="Requests by status code",
            stacked=True,
            unit="reqps",
            queries=((rate("mailproxy_operator_api_requests_total", "code", JOB), "{{code}}"),),
            colours=colours.STATUS_CODES,
            description="429: the API server limits the operator's requests. 4xx: permissions or quota;"
            " see the status of the MailProxy. error: no response.",
        ),
        Panel(
            title="Request time, 99th percentile",
            unit="s",
            queries=(
                (
                    quantile(0.99, "mailproxy_operator_api_request_duration_seconds", "verb", JOB),
                    "{{verb}}",
                ),
            ),
            colours=colours.VERBS,
            description="Duration of requests to the API server, by verb.",
        ),
        Panel(
            title="Watch restarts by reason",
            stacked=True,
            queries=((count("mailproxy_operator_watch_restarts_total", "reason", JOB), "{{reason}}"),),
            colours=colours.WATCH_RESTARTS,
            description="A few with expired and closed are normal. error: the API server refuses,"
            " or cannot be reached. inactive: no event for too long; the next list finds missed changes.",
        ),
        Panel(
            title="Sidecar admissions by result",
            stacked=True,
            queries=((count("mailproxy_operator_sidecar_admissions_total", "result", JOB), "{{result}}"),),
            colours=colours.ADMISSIONS,
            description="ignored: the pod runs without a sidecar; an event has the reason. refused: by"
            " failurePolicy Fail. error: a fault of the operator; its log has the traceback.",
        ),
        Panel(
            title="Operators by version",
            stacked=True,
            queries=(
                (
                    f"count by (version, revision) (mailproxy_operator_build_info{{{JOB}}})",
                    "{{version}} {{revision}}",
                ),
            ),
            description="Two versions for minutes: an upgrade does not complete.",
        ),
    ),
)

OPERATOR: Final = Dashboard(
    uid="mailproxy-operator",
    title="MailProxy operator",
    description="Whether MailProxy resources are reconciled and ready.",
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
    rows=(OVERVIEW, RECONCILIATION, API),
    others=(DashboardLink("MailProxy", "mailproxy-proxies"),),
)

# SPDX-License-Identifier: Apache-2.0
"""Dashboard rows: protocol errors, and the proxy's processes."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.colours import (
    LIMITS,
    PROTOCOL_ERRORS,
    PROXY_HEADERS,
    RELOADS,
    WORKERS,
    ZONE_EVENTS,
)
from mailproxy_monitoring.grafana import CONNECTIONS_PER_SECOND, EVENTS_PER_SECOND, Panel, Row
from mailproxy_monitoring.queries import BAD_HIGH, JOB, count, quantile, rate

_OF_PROXIES: Final = f"and on (job, instance) mailproxy_build_info{{{JOB}}}"

PROTOCOL: Final = Row(
    "Protocol errors",
    (
        Panel(
            title="Protocol errors by kind",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            queries=((rate("mailproxy_protocol_errors_total", "error"), "{{error}}"),),
            colours=PROTOCOL_ERRORS,
            description="foreign_protocol: web clients and scanners. no_greeting, unexpected_reply,"
            " reply_too_long: mail servers. The rest: clients.",
        ),
        Panel(
            title="PROXY headers by result",
            stacked=True,
            unit=CONNECTIONS_PER_SECOND,
            queries=((rate("mailproxy_proxy_protocol_headers_total", "result", JOB), "{{result}}"),),
            colours=PROXY_HEADERS,
            description="missing: a health check, or a load balancer that sends none."
            " untrusted: setRealIpFrom does not contain the load balancer's address.",
        ),
    ),
)

LIMITING: Final = Row(
    "Limits",
    (
        Panel(
            title="Rejections by limit",
            stacked=True,
            unit=CONNECTIONS_PER_SECOND,
            queries=((rate("mailproxy_limit_rejections_total", "limit", JOB), "{{limit}}"),),
            colours=LIMITS,
            description="conn_total: workerConnections is reached. max_errors: too many invalid commands."
            " limit_conn, limit_req, limit_preauth: these directives.",
            alerts=("MailProxyConnectionsNearLimit",),
        ),
        Panel(
            title="Events in zones of limits",
            stacked=True,
            unit=EVENTS_PER_SECOND,
            queries=((rate("mailproxy_limit_zone_events_total", "event", JOB), "{{event}}"),),
            colours=ZONE_EVENTS,
            description="dry_run: would be rejected. zone_full: the zone is too small; clients are let in."
            " skipped: the key was too long, or there was an error.",
            alerts=("MailProxyLimitZoneFull",),
        ),
        Panel(
            title="Share of zones in use",
            unit="percentunit",
            maximum=1,
            steps=BAD_HIGH,
            queries=(
                (
                    f"max by (zone) (mailproxy_limit_zone_entries{{{JOB}}}"
                    f" / mailproxy_limit_zone_capacity{{{JOB}}})",
                    "{{zone}}",
                ),
            ),
            description="Of the pod with the most. Near 100 %: make the zone larger.",
            alerts=("MailProxyLimitZoneFull",),
        ),
    ),
)

PROCESS: Final = Row(
    "Configuration and processes",
    (
        Panel(
            title="Pods by configuration",
            stacked=True,
            width=6,
            queries=((f"count by (hash) (mailproxy_config_info{{{JOB}}})", "{{hash}}"),),
            description="Two configurations for minutes: a pod did not load the new one."
            " Compare with status.configHash of the MailProxy.",
            alerts=("MailProxyConfigSkew",),
        ),
        Panel(
            title="Reloads by result",
            width=6,
            queries=(
                (count("mailproxy_config_reloads_total", "result", JOB), "{{result}}"),
                (
                    f"count (mailproxy_config_last_reload_successful{{{JOB}}} == 0) or vector(0)",
                    "pods with an old configuration",
                ),
            ),
            colours=RELOADS,
            description="After a failure the previous configuration stays; the log and /config show why.",
            alerts=("MailProxyReloadFailed",),
        ),
        Panel(
            title="Time since the last reload",
            unit="s",
            width=6,
            queries=(
                (
                    "time() - min by (pod, instance) "
                    f"(mailproxy_config_last_reload_success_timestamp_seconds{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            description="Age of the running configuration. A pod whose line does not fall with the others"
            " has missed a change.",
        ),
        Panel(
            title="Workers and drains",
            width=6,
            queries=(
                (f"sum (mailproxy_workers{{{JOB}}})", "workers"),
                (f"sum (mailproxy_draining{{{JOB}}})", "draining pods"),
                (count("mailproxy_worker_restarts_total", "reason", JOB), "restarts: {{reason}}"),
            ),
            colours=WORKERS,
            description="Restarts with the reason crash or killed are never normal;"
            " the cause of killed is often the memory limit.",
            alerts=("MailProxyWorkerCrashes",),
        ),
        Panel(
            title="Event loop lag, 99th percentile",
            unit="s",
            width=6,
            queries=(
                (
                    quantile(0.99, "mailproxy_event_loop_lag_seconds", "pod, instance", JOB),
                    "{{pod}} {{instance}}",
                ),
            ),
            description="Above 0.1 s a pod has too little CPU, and every session waits.",
            alerts=("MailProxyEventLoopSlow",),
        ),
        Panel(
            title="CPU",
            unit="suffix:cores",
            decimals=2,
            width=6,
            queries=(
                (
                    "sum by (pod, instance) (rate(process_cpu_seconds_total"
                    f"{{{JOB}}}[$__rate_interval]) {_OF_PROXIES})",
                    "{{pod}} {{instance}}",
                ),
            ),
            description="Cores in use; one worker uses at most one.",
        ),
        Panel(
            title="Memory",
            unit="bytes",
            width=6,
            queries=(
                (
                    f"sum by (pod, instance) (process_resident_memory_bytes{{{JOB}}} {_OF_PROXIES})",
                    "{{pod}} {{instance}}",
                ),
            ),
            description="Resident memory of all processes of a pod.",
        ),
        Panel(
            title="Share of the open files limit",
            unit="percentunit",
            maximum=1,
            width=6,
            steps=BAD_HIGH,
            queries=(
                (
                    f"sum by (pod, instance) (process_open_fds{{{JOB}}} {_OF_PROXIES})"
                    f" / sum by (pod, instance) (process_max_fds{{{JOB}}} * on (job, instance) group_left ()"
                    f" mailproxy_workers{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            description="A session uses two file descriptors, and one more while it logs in.",
        ),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Dashboard rows: protocol errors, and the proxy's processes."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.grafana import Panel, Row
from mailproxy_monitoring.queries import BAD_HIGH, JOB, quantile, rate

PROTOCOL: Final = Row(
    "Protocol and abuse",
    (
        Panel(
            title="Protocol errors, by kind",
            stacked=True,
            unit="ops",
            queries=((rate("mailproxy_protocol_errors_total", "error"), "{{error}}"),),
            help="foreign_protocol: web clients and scanners. no_greeting, unexpected_reply, reply_too_long:"
            " mail servers. The rest: clients.",
        ),
        Panel(
            title="PROXY headers, by result",
            stacked=True,
            unit="ops",
            queries=((rate("mailproxy_proxy_protocol_headers_total", "result", JOB), "{{result}}"),),
            help="missing: a health check, or a load balancer that sends none."
            " untrusted: setRealIpFrom does not name the balancer.",
        ),
        Panel(
            title="Turned away by a limit",
            stacked=True,
            unit="ops",
            queries=((rate("mailproxy_limit_rejections_total", "limit", JOB), "{{limit}}"),),
            help="conn_total: workerConnections is reached. max_errors: too many bad commands.",
        ),
    ),
)

PROCESS: Final = Row(
    "Configuration and process",
    (
        Panel(
            title="Pods, by configuration",
            stacked=True,
            width=6,
            queries=((f"count by (hash) (mailproxy_config_info{{{JOB}}})", "{{hash}}"),),
            help="Two for long: drift. Compare with status.configHash of the MailProxy.",
        ),
        Panel(
            title="Loaded, by result",
            width=6,
            queries=(
                (
                    f"sum by (result) (increase(mailproxy_config_reloads_total{{{JOB}}}[$__rate_interval]))",
                    "{{result}}",
                ),
                (
                    f"count (mailproxy_config_last_reload_successful{{{JOB}}} == 0) or vector(0)",
                    "pods that run an old one",
                ),
            ),
            help="A failure changes nothing; the log and /config have the reason.",
        ),
        Panel(
            title="Since the running configuration was loaded",
            unit="s",
            width=6,
            queries=(
                (
                    "time() - min by (pod, instance) "
                    f"(mailproxy_config_last_reload_success_timestamp_seconds{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            help="A pod whose line does not fall with the others has missed a change.",
        ),
        Panel(
            title="Workers and drains",
            width=6,
            queries=(
                (f"sum (mailproxy_workers{{{JOB}}})", "workers"),
                (f"sum (mailproxy_draining{{{JOB}}})", "pods that drain"),
                (
                    f"sum by (reason) (increase(mailproxy_worker_restarts_total{{{JOB}}}[$__rate_interval]))",
                    "restarts: {{reason}}",
                ),
            ),
            help="Restarts for crash or killed are never normal; killed is often the memory limit.",
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
            help="Above 0.1 s a pod has too little CPU: every session waits.",
        ),
        Panel(
            title="CPU",
            width=6,
            queries=(
                (
                    f"sum by (pod, instance) (rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])"
                    f" and on (job, instance) mailproxy_build_info{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            help="Cores in use; one worker uses at most one.",
        ),
        Panel(
            title="Memory",
            unit="bytes",
            width=6,
            queries=(
                (
                    f"sum by (pod, instance) (process_resident_memory_bytes{{{JOB}}}"
                    f" and on (job, instance) mailproxy_build_info{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            help="Of all processes of a pod together.",
        ),
        Panel(
            title="Open files against the limit",
            unit="percentunit",
            width=6,
            steps=BAD_HIGH,
            queries=(
                (
                    f"sum by (pod, instance) (process_open_fds{{{JOB}}}"
                    f" and on (job, instance) mailproxy_build_info{{{JOB}}})"
                    f" / sum by (pod, instance) (process_max_fds{{{JOB}}} * on (job, instance) group_left ()"
                    f" mailproxy_workers{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            help="A session takes two, one more while it logs in.",
        ),
    ),
)

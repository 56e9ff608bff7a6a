# SPDX-License-Identifier: Apache-2.0
"""Dashboard row: whether logins work, and where they fail."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.colours import AUTH_ERRORS, LOGIN_RESULTS, UPSTREAM_STAGES
from mailproxy_monitoring.grafana import LOGINS_PER_SECOND, Panel, Row
from mailproxy_monitoring.queries import (
    BAD_LOW,
    COMPLETED,
    FAILED,
    FILTER,
    JOB,
    LOGIN,
    SUCCESSFUL,
    quantile,
    ranking,
    rate,
)

OVERVIEW: Final = Row(
    "Overview",
    (
        Panel(
            title="Active connections",
            kind="stat",
            width=4,
            height=4,
            queries=((f"sum (mailproxy_connections_active{{{FILTER}}})", ""),),
            description="Clients that are connected now.",
            alerts=("MailProxyConnectionsNearLimit", "MailProxyDown"),
        ),
        Panel(
            title="Logins",
            kind="stat",
            unit=LOGINS_PER_SECOND,
            width=4,
            height=4,
            queries=((rate(LOGIN), ""),),
            description="Logins per second, successful or not.",
        ),
        Panel(
            title="Successful logins",
            kind="stat",
            unit="percentunit",
            width=4,
            height=4,
            steps=BAD_LOW,
            decimals=1,
            maximum=1,
            queries=((f"{rate(LOGIN, where=SUCCESSFUL)} / {rate(LOGIN, where=COMPLETED)}", ""),),
            description="The share of logins that succeeded, without those that clients aborted."
            " Wrong passwords count as failures here.",
            alerts=("MailProxyLoginFailures", "MailProxyLoginsDenied"),
        ),
        Panel(
            title="Login time, 99th percentile",
            kind="stat",
            unit="s",
            width=4,
            height=4,
            steps=((None, "green"), (1.0, "orange"), (5.0, "red")),
            queries=((quantile(0.99, "mailproxy_login_duration_seconds"), ""),),
            description="From complete credentials to the reply, without pauses that the authentication"
            " service requested (Auth-Wait).",
        ),
        Panel(
            title="Pods and configurations",
            kind="stat",
            width=4,
            height=4,
            queries=(
                (f"count (mailproxy_build_info{{{JOB}}})", "pods"),
                (
                    f"max (count by (job) (count by (job, hash) (mailproxy_config_info{{{JOB}}})))",
                    "configurations",
                ),
            ),
            description="More than one configuration of one proxy for minutes: a pod rejected the new one.",
            alerts=("MailProxyConfigSkew", "MailProxyReloadFailed"),
        ),
        Panel(
            title="Next certificate expiry",
            kind="stat",
            unit="suffix:days",
            width=4,
            height=4,
            decimals=0,
            steps=((None, "red"), (7.0, "orange"), (21.0, "green")),
            queries=(
                (
                    f"(min (mailproxy_tls_certificate_expiry_timestamp_seconds{{{JOB}}}) - time()) / 86400",
                    "",
                ),
            ),
            description="Time until the first of all loaded certificates expires.",
            alerts=("MailProxyCertificateExpires",),
        ),
        Panel(
            title="Failed logins by result",
            kind="bargauge",
            queries=((ranking(LOGIN, "result", FAILED), "{{result}}"),),
            colours=LOGIN_RESULTS,
            description="In the time range of the dashboard. denied, upstream_denied: passwords. unavailable,"
            " timeout, invalid_response: the authentication service. upstream_failed, upstream_refused:"
            " the mail servers.",
            alerts=("MailProxyLoginFailures", "MailProxyLoginsDenied"),
        ),
        Panel(
            title="Authentication service errors by reason",
            kind="bargauge",
            queries=((ranking("mailproxy_auth_errors_total", "reason", JOB), "{{reason}}"),),
            colours=AUTH_ERRORS,
            description="Requests without a usable response, in the time range of the dashboard.",
            alerts=("MailProxyAuthErrors",),
        ),
        Panel(
            title="Mail server errors by stage",
            kind="bargauge",
            queries=((ranking("mailproxy_upstream_errors_total", "stage", FILTER), "{{stage}}"),),
            colours=UPSTREAM_STAGES,
            description="The step of the login at the mail server that failed, in the time range of the"
            " dashboard.",
            alerts=("MailProxyUpstreamErrors",),
        ),
    ),
)

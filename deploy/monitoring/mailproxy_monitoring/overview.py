# SPDX-License-Identifier: Apache-2.0
"""Dashboard row: whether logins work, and where they fail."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.grafana import Panel, Row
from mailproxy_monitoring.queries import (
    BAD_LOW,
    COMPLETED,
    FILTER,
    JOB,
    LOGIN,
    SUCCESSFUL,
    quantile,
    rate,
)

OVERVIEW: Final = Row(
    "At a glance",
    (
        Panel(
            title="Active connections",
            kind="stat",
            width=4,
            height=4,
            queries=((f"sum (mailproxy_connections_active{{{FILTER}}})", ""),),
            help="Clients connected now.",
        ),
        Panel(
            title="Logins",
            kind="stat",
            unit="ops",
            width=4,
            height=4,
            queries=((rate("mailproxy_logins_total"), ""),),
            help="Logins per second, successful or not.",
        ),
        Panel(
            title="Successful logins",
            kind="stat",
            unit="percentunit",
            width=4,
            height=4,
            steps=BAD_LOW,
            decimals=1,
            queries=((f"{rate(LOGIN, where=SUCCESSFUL)} / {rate(LOGIN, where=COMPLETED)}", ""),),
            help="Of all logins that clients did not abort. Wrong passwords count as failures here.",
        ),
        Panel(
            title="Login time, 99th percentile",
            kind="stat",
            unit="s",
            width=4,
            height=4,
            steps=((None, "green"), (1.0, "orange"), (5.0, "red")),
            queries=((quantile(0.99, "mailproxy_login_duration_seconds"), ""),),
            help="From complete credentials to the reply, without pauses that the service requested.",
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
            help="More than one configuration of one proxy for minutes: a pod rejected the new one.",
        ),
        Panel(
            title="Next certificate ends in",
            kind="stat",
            unit="d",
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
            help="The first of all certificates that are loaded.",
        ),
        Panel(
            title="Logins that failed, by result",
            kind="bargauge",
            queries=(
                (
                    "sort_desc (sum by (result) (increase(mailproxy_logins_total"
                    f'{{{FILTER}, result!~"success|aborted"}}[$__range])) > 0)',
                    "{{result}}",
                ),
            ),
            steps=((None, "orange"),),
            help="denied, upstream_denied: passwords. unavailable, timeout, invalid_response:"
            " the authentication service. upstream_failed, upstream_refused: the mail servers.",
        ),
        Panel(
            title="Where it broke: authentication service",
            kind="bargauge",
            queries=(
                (
                    "sort_desc (sum by (reason) (increase("
                    f"mailproxy_auth_errors_total{{{JOB}}}[$__range])) > 0)",
                    "{{reason}}",
                ),
            ),
            steps=((None, "orange"),),
            help="Requests without a usable response.",
        ),
        Panel(
            title="Where it broke: mail servers",
            kind="bargauge",
            queries=(
                (
                    "sort_desc (sum by (stage) (increase("
                    f"mailproxy_upstream_errors_total{{{FILTER}}}[$__range])) > 0)",
                    "{{stage}}",
                ),
            ),
            steps=((None, "orange"),),
            help="The step of the login at the mail server that failed.",
        ),
    ),
)

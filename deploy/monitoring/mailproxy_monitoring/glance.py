# SPDX-License-Identifier: Apache-2.0
"""The first row: is mail login working, and if not, where does it break?"""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.grafana import Panel, Row
from mailproxy_monitoring.queries import ASKED, BAD_LOW, LOGIN, SEEN_THROUGH, SUCCESSFUL, WHO, quantile, rate

GLANCE: Final = Row(
    "At a glance",
    (
        Panel(
            title="Active connections",
            kind="stat",
            width=4,
            height=4,
            queries=((f"sum (mailproxy_connections_active{{{ASKED}}})", ""),),
            help="Clients connected now.",
        ),
        Panel(
            title="Logins",
            kind="stat",
            unit="ops",
            width=4,
            height=4,
            queries=((rate("mailproxy_logins_total"), ""),),
            help="Attempts to log in per second, whatever became of them.",
        ),
        Panel(
            title="Successful logins",
            kind="stat",
            unit="percentunit",
            width=4,
            height=4,
            steps=BAD_LOW,
            decimals=1,
            queries=((f"{rate(LOGIN, where=SUCCESSFUL)} / {rate(LOGIN, where=SEEN_THROUGH)}", ""),),
            help="Of all attempts that clients did not break off. Wrong passwords count as failures here.",
        ),
        Panel(
            title="Login time, 99th percentile",
            kind="stat",
            unit="s",
            width=4,
            height=4,
            steps=((None, "green"), (1.0, "orange"), (5.0, "red")),
            queries=((quantile(0.99, "mailproxy_login_duration_seconds"), ""),),
            help="From complete credentials to the answer, pauses that the service asked for left out.",
        ),
        Panel(
            title="Pods and configurations",
            kind="stat",
            width=4,
            height=4,
            queries=(
                (f"count (mailproxy_build_info{{{WHO}}})", "pods"),
                (
                    f"max (count by (job) (count by (job, hash) (mailproxy_config_info{{{WHO}}})))",
                    "configurations",
                ),
            ),
            help="More than one configuration of one proxy for minutes: some pod refused the new one.",
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
                    f"(min (mailproxy_tls_certificate_expiry_timestamp_seconds{{{WHO}}}) - time()) / 86400",
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
                    f'{{{ASKED}, result!~"success|aborted"}}[$__range])) > 0)',
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
                    f"mailproxy_auth_errors_total{{{WHO}}}[$__range])) > 0)",
                    "{{reason}}",
                ),
            ),
            steps=((None, "orange"),),
            help="Requests that gave no usable answer.",
        ),
        Panel(
            title="Where it broke: mail servers",
            kind="bargauge",
            queries=(
                (
                    "sort_desc (sum by (stage) (increase("
                    f"mailproxy_upstream_errors_total{{{ASKED}}}[$__range])) > 0)",
                    "{{stage}}",
                ),
            ),
            steps=((None, "orange"),),
            help="How far the login at the mail server had come.",
        ),
    ),
)

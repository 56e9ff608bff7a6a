# SPDX-License-Identifier: Apache-2.0
"""Dashboard rows: connections of clients, and logins."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.grafana import Panel, Row
from mailproxy_monitoring.queries import BAD_HIGH, DENIED, FILTER, JOB, LOGIN, buckets, rate

CONNECTIONS: Final = Row(
    "Connections",
    (
        Panel(
            title="Accepted, by server",
            unit="cps",
            queries=((rate("mailproxy_connections_accepted_total", "server"), "{{server}}"),),
            help="New client connections per second.",
        ),
        Panel(
            title="Active, by protocol",
            stacked=True,
            queries=((f"sum by (protocol) (mailproxy_connections_active{{{FILTER}}})", "{{protocol}}"),),
            help="Clients connected.",
        ),
        Panel(
            title="Sessions, by what they are doing",
            stacked=True,
            queries=((f"sum by (state) (mailproxy_sessions_active{{{FILTER}}})", "{{state}}"),),
            help="Many in auth: the authentication service is slow. Many in upstream: the mail servers are.",
        ),
        Panel(
            title="Saturation: active against the limit",
            unit="percentunit",
            steps=BAD_HIGH,
            queries=(
                (
                    f"sum by (pod, instance) (mailproxy_connections_active{{{JOB}}})"
                    f" / sum by (pod, instance) (mailproxy_connections_limit{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            help="At 100 % new clients are rejected with the protocol's busy reply.",
        ),
        Panel(
            title="Closed, by reason",
            stacked=True,
            unit="cps",
            queries=((rate("mailproxy_connections_closed_total", "reason"), "{{reason}}"),),
            help="By the first cause of the end.",
        ),
        Panel(
            title="How long connections lasted",
            kind="heatmap",
            unit="s",
            queries=((buckets("mailproxy_session_duration_seconds"), "{{le}}"),),
            help="Short: clients that fail or retry all the time. Long: clients that wait for mail.",
        ),
    ),
)

LOGINS: Final = Row(
    "Logins",
    (
        Panel(
            title="By result",
            stacked=True,
            unit="ops",
            queries=((rate("mailproxy_logins_total", "result"), "{{result}}"),),
            help="Per second.",
            width=12,
        ),
        Panel(
            title="By method",
            stacked=True,
            unit="ops",
            queries=((rate("mailproxy_logins_total", "method"), "{{method}}"),),
            help="The authentication methods of clients.",
            width=12,
        ),
        Panel(
            title="Login time",
            kind="heatmap",
            unit="s",
            queries=((buckets("mailproxy_login_duration_seconds"), "{{le}}"),),
            help="Successful and failed ones.",
            width=12,
        ),
        Panel(
            title="Denied share",
            unit="percentunit",
            queries=(
                (
                    f"{rate(LOGIN, 'protocol', DENIED)} / {rate(LOGIN, 'protocol')}",
                    "{{protocol}}",
                ),
            ),
            help="Near 100 %: passwords are being guessed, or the service denies all logins.",
            width=12,
        ),
    ),
)

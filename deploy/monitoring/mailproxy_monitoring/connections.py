# SPDX-License-Identifier: Apache-2.0
"""Dashboard rows: connections of clients, and logins."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.colours import CLOSE_REASONS, LOGIN_RESULTS, METHODS, PROTOCOLS, SESSION_STATES
from mailproxy_monitoring.grafana import CONNECTIONS_PER_SECOND, LOGINS_PER_SECOND, Panel, Row
from mailproxy_monitoring.queries import BAD_HIGH, DENIED, FILTER, JOB, LOGIN, buckets, rate

CONNECTIONS: Final = Row(
    "Connections",
    (
        Panel(
            title="Accepted connections by server",
            unit=CONNECTIONS_PER_SECOND,
            queries=((rate("mailproxy_connections_accepted_total", "server"), "{{server}}"),),
            description="New client connections per second, by server block.",
        ),
        Panel(
            title="Active connections by protocol",
            stacked=True,
            queries=((f"sum by (protocol) (mailproxy_connections_active{{{FILTER}}})", "{{protocol}}"),),
            colours=PROTOCOLS,
            description="Connected clients.",
        ),
        Panel(
            title="Sessions by state",
            stacked=True,
            queries=((f"sum by (state) (mailproxy_sessions_active{{{FILTER}}})", "{{state}}"),),
            colours=SESSION_STATES,
            description="Many sessions in auth: the authentication service is slow. Many in upstream:"
            " the mail servers are slow.",
        ),
        Panel(
            title="Share of the connection limit",
            unit="percentunit",
            maximum=1,
            steps=BAD_HIGH,
            queries=(
                (
                    f"sum by (pod, instance) (mailproxy_connections_active{{{JOB}}})"
                    f" / sum by (pod, instance) (mailproxy_connections_limit{{{JOB}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
            description="At 100 % new clients are rejected with the protocol's busy reply.",
            alerts=("MailProxyConnectionsNearLimit",),
        ),
        Panel(
            title="Closed connections by reason",
            stacked=True,
            unit=CONNECTIONS_PER_SECOND,
            queries=((rate("mailproxy_connections_closed_total", "reason"), "{{reason}}"),),
            colours=CLOSE_REASONS,
            description="The first cause of the end of each connection.",
            alerts=("MailProxyInternalErrors",),
        ),
        Panel(
            title="Connection duration",
            kind="heatmap",
            unit="s",
            queries=((buckets("mailproxy_session_duration_seconds"), "{{le}}"),),
            description="Short: clients that fail or retry all the time. Long: clients that wait for mail.",
        ),
    ),
)

LOGINS: Final = Row(
    "Logins",
    (
        Panel(
            title="Logins by result",
            stacked=True,
            unit=LOGINS_PER_SECOND,
            queries=((rate(LOGIN, "result"), "{{result}}"),),
            colours=LOGIN_RESULTS,
            description="Logins per second. Green: successful. Red: the authentication service or the mail"
            " servers failed. Orange: wrong credentials.",
            width=12,
            alerts=("MailProxyLoginFailures", "MailProxyLoginsDenied"),
        ),
        Panel(
            title="Logins by method",
            stacked=True,
            unit=LOGINS_PER_SECOND,
            queries=((rate(LOGIN, "method"), "{{method}}"),),
            colours=METHODS,
            description="The authentication methods of clients.",
            width=12,
        ),
        Panel(
            title="Login time",
            kind="heatmap",
            unit="s",
            queries=((buckets("mailproxy_login_duration_seconds"), "{{le}}"),),
            description="Of successful and failed logins.",
            width=12,
        ),
        Panel(
            title="Share of denied logins",
            unit="percentunit",
            maximum=1,
            queries=(
                (
                    f"{rate(LOGIN, 'protocol', DENIED)} / {rate(LOGIN, 'protocol')}",
                    "{{protocol}}",
                ),
            ),
            colours=PROTOCOLS,
            description="Near 100 %: passwords are being guessed, or the authentication service denies all"
            " logins.",
            width=12,
            alerts=("MailProxyLoginsDenied",),
        ),
    ),
)

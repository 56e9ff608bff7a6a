# SPDX-License-Identifier: Apache-2.0
"""The dashboard of the proxies: whether logins work, and where they fail."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.connections import CONNECTIONS, LOGINS
from mailproxy_monitoring.failed_logins import FAILED_LOGINS
from mailproxy_monitoring.grafana import Dashboard, DashboardLink, Variable
from mailproxy_monitoring.overview import OVERVIEW
from mailproxy_monitoring.policy import POLICY
from mailproxy_monitoring.processes import LIMITING, PROCESS, PROTOCOL
from mailproxy_monitoring.queries import JOB
from mailproxy_monitoring.upstreams import AUTHENTICATION, DNS, PASSWORDS, TLS, TOKENS, UPSTREAMS

PROXIES: Final = Dashboard(
    uid="mailproxy-proxies",
    title="MailProxy",
    description="Whether logins work, and which part fails if they do not.",
    variables=(
        Variable(name="namespace", label="Namespace", query="label_values(mailproxy_build_info, namespace)"),
        Variable(
            name="job",
            label="Proxy",
            query='label_values(mailproxy_build_info{namespace=~"$namespace"}, job)',
        ),
        Variable(
            name="protocol",
            label="Protocol",
            query=f"label_values(mailproxy_connections_active{{{JOB}}}, protocol)",
        ),
    ),
    rows=(
        OVERVIEW,
        CONNECTIONS,
        LOGINS,
        FAILED_LOGINS,
        AUTHENTICATION,
        POLICY,
        UPSTREAMS,
        TOKENS,
        PASSWORDS,
        TLS,
        DNS,
        PROTOCOL,
        LIMITING,
        PROCESS,
    ),
    others=(DashboardLink("MailProxy operator", "mailproxy-operator"),),
)

# SPDX-License-Identifier: Apache-2.0
"""The dashboard of the proxies: is mail login working, and if not, where does it break?"""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.clients import CONNECTIONS, LOGINS
from mailproxy_monitoring.glance import GLANCE
from mailproxy_monitoring.grafana import Dashboard, Variable
from mailproxy_monitoring.peers import AUTHENTICATION, NAMES, TLS, UPSTREAMS
from mailproxy_monitoring.process import PROCESS, PROTOCOL
from mailproxy_monitoring.queries import WHO

PROXIES: Final = Dashboard(
    uid="mailproxy-proxies",
    title="MailProxy",
    description="Is mail login working, and if not, where does it break?",
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
            query=f"label_values(mailproxy_connections_active{{{WHO}}}, protocol)",
        ),
    ),
    rows=(GLANCE, CONNECTIONS, LOGINS, AUTHENTICATION, UPSTREAMS, TLS, NAMES, PROTOCOL, PROCESS),
)

# SPDX-License-Identifier: Apache-2.0
"""The PodMonitor of the Prometheus operator."""

from __future__ import annotations

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import POD_MONITOR, Manifest
from mailproxy_operator.render.plan import Plan


def pod_monitor(plan: Plan) -> Manifest | None:
    """Render the PodMonitor, if the resource enables it."""
    asked = plan.resource.deployment.monitoring.pod_monitor
    if not asked.enabled:
        return None
    metadata = plan.resource.metadata(plan.resource.name)
    metadata["labels"] = {**asked.labels, **metadata["labels"]}
    return {
        "apiVersion": POD_MONITOR.api_version,
        "kind": POD_MONITOR.name,
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": names.proxy_labels(plan.resource.name)},
            "podMetricsEndpoints": [
                {
                    "port": names.ADMIN_PORT_NAME,
                    "path": "/metrics",
                    "interval": asked.interval or "30s",
                    # In addition to job (NAMESPACE/NAME): alerts and dashboards for all proxies group by it.
                    "relabelings": [{"targetLabel": "mailproxy", "replacement": plan.resource.name}],
                }
            ],
        },
    }

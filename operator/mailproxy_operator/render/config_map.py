# SPDX-License-Identifier: Apache-2.0
"""The ConfigMap: the configuration in the form that the proxy reads."""

from __future__ import annotations

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import CONFIG_MAP, Manifest
from mailproxy_operator.render.plan import Plan


def config_map(plan: Plan) -> Manifest:
    """Render the ConfigMap."""
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": plan.resource.metadata(names.config_map_name(plan.resource.name)),
        "data": {names.CONFIG_KEY: plan.document},
    }

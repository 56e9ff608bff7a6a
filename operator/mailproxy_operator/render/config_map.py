# SPDX-License-Identifier: Apache-2.0
"""The ConfigMaps: the configuration in the form that the proxy reads, and the members of Services."""

from __future__ import annotations

from mailproxy_config.upstream_members import MEMBERS_KEY
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


def members_config_map(plan: Plan) -> Manifest | None:
    """Render the ConfigMap with the members of Services, once they are known."""
    if not plan.has_members or not plan.members.text:
        return None
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": plan.resource.metadata(names.members_name(plan.resource.name)),
        "data": {MEMBERS_KEY: plan.members.text},
    }

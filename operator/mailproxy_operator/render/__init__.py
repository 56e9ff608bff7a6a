# SPDX-License-Identifier: Apache-2.0
"""Renders a resource to Kubernetes objects: pure functions, one file per kind."""

from __future__ import annotations

from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.render.autoscaler import autoscaler
from mailproxy_operator.render.config_map import config_map, members_config_map
from mailproxy_operator.render.disruption_budget import disruption_budget
from mailproxy_operator.render.network_policy import network_policy
from mailproxy_operator.render.plan import Plan, planned
from mailproxy_operator.render.pod_monitor import pod_monitor
from mailproxy_operator.render.prometheus_rule import prometheus_rule
from mailproxy_operator.render.service import metrics_service, service
from mailproxy_operator.render.service_account import service_account
from mailproxy_operator.render.workload import workload

__all__ = ["Plan", "planned", "render"]

_RENDERERS = (
    service_account,
    config_map,
    members_config_map,
    service,
    metrics_service,
    network_policy,
    disruption_budget,
    workload,
    autoscaler,
    pod_monitor,
    prometheus_rule,
)


def render(plan: Plan) -> tuple[Manifest, ...]:
    """Render all objects of a resource, in the order in which they are applied."""
    rendered = (renderer(plan) for renderer in _RENDERERS)
    return tuple(manifest for manifest in rendered if manifest is not None)

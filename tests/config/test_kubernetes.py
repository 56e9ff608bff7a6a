# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes part of a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.errors import Problem, Problems
from mailproxy_config.kubernetes import (
    Autoscaling,
    DeploymentSpec,
    Mode,
    PodDisruptionBudgetSpec,
    PortStrategy,
    SidecarFailure,
    Sysctl,
    SysctlMode,
    UnsafeSysctls,
    read_deployment,
    snake_case,
)
from mailproxy_config.model import DrainConfig, Seconds
from mailproxy_config.value_types import ErrorPath


def read(**spec: object) -> DeploymentSpec:
    problems = Problems()
    found = read_deployment(spec, ErrorPath("spec", problems))
    assert problems.found == []
    return found


def test_defaults_of_deployment() -> None:
    found = read()
    assert found == DeploymentSpec()
    assert (found.mode, found.replicas, found.port_strategy) == (Mode.DEPLOYMENT, 2, PortStrategy.DIRECT)
    assert found.drain == DrainConfig(delay=Seconds(5), timeout=Seconds(300))
    assert found.pod_disruption_budget == PodDisruptionBudgetSpec(max_unavailable=1)
    assert found.resources.requests == {"cpu": "100m", "memory": "64Mi"}
    assert (found.service.type, found.service.ip_family_policy) == ("ClusterIP", "PreferDualStack")
    assert found.monitoring.is_annotated
    assert not found.monitoring.pod_monitor.enabled


def test_all_deployment_fields_are_read() -> None:
    found = read(
        mode="DaemonSet",
        replicas=3,
        autoscaling={"minReplicas": 1, "maxReplicas": 9, "targetCPUUtilizationPercentage": 70},
        image="proxy:1",
        imagePullPolicy="Always",
        imagePullSecrets=[{"name": "registry"}],
        service={"type": "LoadBalancer", "ipFamilies": ["IPv6"], "externalTrafficPolicy": "Local"},
        portStrategy="HighPort",
        sysctls={"mode": "None", "unsafe": "Allow", "extra": [{"name": "a.b", "value": "1"}]},
        drain={"delay": "0", "timeout": "1m"},
        monitoring={"podMonitor": {"enabled": True, "interval": "5s"}, "scrapeAnnotations": False},
        podDisruptionBudget={"minAvailable": "50%"},
        networkPolicy={"enabled": True, "egress": [{"to": []}]},
        resources={"limits": {"cpu": 1}},
        pod={"hostNetwork": True, "tolerations": [{"operator": "Exists"}], "dnsPolicy": "Default"},
        paused=True,
        mail={},
        servers=[],
    )
    assert found.autoscaling == Autoscaling(
        min_replicas=1, max_replicas=9, target_cpu_utilization_percentage=70
    )
    assert (found.image, found.image_pull_policy, found.image_pull_secrets) == (
        "proxy:1",
        "Always",
        ("registry",),
    )
    assert (found.service.ip_families, found.service.external_traffic_policy) == (("IPv6",), "Local")
    assert found.sysctls.mode is SysctlMode.NONE
    assert found.sysctls.unsafe is UnsafeSysctls.ALLOW
    assert found.sysctls.extra == (Sysctl(name="a.b", value="1"),)
    assert found.drain == DrainConfig(delay=Seconds(0), timeout=Seconds(60))
    assert (found.monitoring.pod_monitor.interval, found.monitoring.scrape_annotations) == ("5s", False)
    assert found.pod_disruption_budget == PodDisruptionBudgetSpec(min_available="50%")
    assert found.network_policy.egress == ({"to": []},)
    assert (found.pod.host_network, found.pod.tolerations) == (True, ({"operator": "Exists"},))
    assert (found.mode, found.port_strategy, found.paused) == (Mode.DAEMON_SET, PortStrategy.HIGH_PORT, True)


@pytest.mark.parametrize(
    ("resources", "requests"),
    [({"limits": {"cpu": "50m"}}, {}), ({"requests": {"cpu": "1m"}}, {"cpu": "1m"})],
)
def test_given_resources_replace_default_requests(
    resources: dict[str, Any], requests: dict[str, str]
) -> None:
    assert read(resources=resources).resources.requests == requests


def test_empty_pod_disruption_budget_is_the_default() -> None:
    assert read(podDisruptionBudget={}).pod_disruption_budget == PodDisruptionBudgetSpec(max_unavailable=1)


def test_too_long_drain_time_is_reported() -> None:
    problems = Problems()
    read_deployment({"drain": {"delay": "9999999999"}}, ErrorPath("spec", problems))
    assert problems.found == [Problem("spec.drain.delay", "9999999999 is more than 2147483647 seconds")]


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("replicas", "replicas"),
        ("hostNetwork", "host_network"),
        ("targetCPUUtilizationPercentage", "target_cpu_utilization_percentage"),
    ],
)
def test_snake_case_of_field_names(name: str, snake: str) -> None:
    assert snake_case(name) == snake


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"app": "dovecot"}}, {"app": "dovecot", "x": "y"}, True),
        ({"matchLabels": {"app": "dovecot"}}, {"app": "postfix"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}, {"app": "b"}, True),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}, {}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}, {}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}, {"app": "a"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {"app": ""}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {"app": ""}, False),
    ],
)
def test_label_selector_matches_as_in_kubernetes(
    selector: dict[str, Any], labels: dict[str, str], expected: bool
) -> None:
    found = read(mode="Sidecar", sidecar={"selector": selector, "failurePolicy": "Fail"})
    assert found.sidecar.failure_policy is SidecarFailure.FAIL
    assert found.sidecar.selector.selects(labels) is expected

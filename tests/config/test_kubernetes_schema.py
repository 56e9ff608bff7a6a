# SPDX-License-Identifier: Apache-2.0
"""The schema of the Kubernetes part of a manifest."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from mailproxy_config.errors import Problem, Problems
from mailproxy_config.kubernetes import DeploymentSpec, snake_case
from mailproxy_config.kubernetes_schema import DEPLOYMENT_FIELDS, DEPLOYMENT_MEANINGS


def problems_of(field: str, value: object) -> list[Problem]:
    problems = Problems()
    DEPLOYMENT_FIELDS[field].check(value, field, problems)
    return problems.found


def test_every_field_has_a_description_and_an_attribute() -> None:
    assert DEPLOYMENT_FIELDS.keys() == DEPLOYMENT_MEANINGS.keys()
    attributes = {each.name for each in fields(DeploymentSpec)} - {
        "host_ports"
    }  # hostPort is a field of the listeners
    assert {snake_case(name) for name in DEPLOYMENT_FIELDS} == attributes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("autoscaling", {"minReplicas": 2, "maxReplicas": 2, "behavior": {"scaleUp": {}}}),
        ("service", {"type": "NodePort", "externalTrafficPolicy": "Local", "annotations": {"a/b": "c"}}),
        ("sysctls", {"extra": [{"name": "net.ipv4.tcp_fin_timeout", "value": "15"}]}),
        ("sysctls", {"unsafe": "Allow", "extra": [{"name": "net.core.somaxconn", "value": "9999"}]}),
        ("sysctls", {"extra": [{"name": "net.ipv4.tcp_rmem", "value": "4096 8192 16384"}]}),
        ("drain", {"delay": 5, "timeout": "1h"}),
        ("podDisruptionBudget", {"maxUnavailable": "50%"}),
        ("resources", {"requests": {"cpu": "100m", "memory": 64}, "limits": {"memory": "1.5Gi"}}),
        ("sidecar", {}),
        ("sidecar", {"selector": {"matchLabels": {"app": "dovecot"}}, "failurePolicy": "Fail"}),
        ("sidecar", {"selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}),
        ("pod", {"affinity": {"any": "thing"}, "hostUsers": False, "extraEnv": [{"name": "A"}]}),
    ],
)
def test_valid_deployment_fields_are_accepted(field: str, value: Any) -> None:
    assert problems_of(field, value) == []


_VALUE = "sysctls.extra[0].value"


@pytest.mark.parametrize(
    ("field", "value", "path", "reason"),
    [
        ("mode", "Pod", "mode", "'Pod' is not one of Deployment, DaemonSet, Sidecar"),
        ("autoscaling", {"minReplicas": 3, "maxReplicas": 2}, "autoscaling",
         "minReplicas must not be greater than maxReplicas"),
        ("autoscaling", {}, "autoscaling.maxReplicas", "is required"),
        ("service", {"externalTrafficPolicy": "Local"}, "service",
         "externalTrafficPolicy needs type LoadBalancer or NodePort"),
        ("sidecar", {"failurePolicy": "Deny"}, "sidecar.failurePolicy", "'Deny' is not one of Ignore, Fail"),
        ("sidecar", {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
         "sidecar.selector.matchExpressions[0]",
         "In and NotIn need values; Exists and DoesNotExist take none"),
        ("sidecar", {"selector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
         "sidecar.selector.matchExpressions[0]",
         "In and NotIn need values; Exists and DoesNotExist take none"),
        ("sysctls", {"extra": [{"name": "net.core.somaxconn", "value": "9"}]}, "sysctls",
         "extra names a sysctl outside the kubelet's safe set; "
         "that needs unsafe: Allow and a node that allows it"),
        ("sysctls", {"extra": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "32769"}]}, _VALUE,
         "net.ipv4.ip_unprivileged_port_start takes 0 to 32768 "
         "(the low end of net.ipv4.ip_local_port_range)"),
        ("sysctls", {"extra": [{"name": "net.ipv4.tcp_keepalive_time", "value": "0"}]}, _VALUE,
         "net.ipv4.tcp_keepalive_time and _intvl take 1 to 32767 seconds"),
        ("sysctls", {"extra": [{"name": "net.ipv4.tcp_keepalive_probes", "value": "1 2"}]}, _VALUE,
         "net.ipv4.tcp_keepalive_probes takes 1 to 127"),
        ("sysctls", {"extra": [{"name": "net.ipv4.tcp_wmem", "value": "2 1 3"}]}, _VALUE,
         "net.ipv4.tcp_rmem and tcp_wmem take three sizes in ascending order: min default max"),
        ("sysctls", {"extra": [{"name": "net.ipv4.tcp_wmem", "value": "1 2"}]}, _VALUE,
         "net.ipv4.tcp_rmem and tcp_wmem take three sizes in ascending order: min default max"),
        ("sysctls", {"extra": [{"name": "net/ipv4/x", "value": "1"}]}, "sysctls.extra[0].name",
         "'net/ipv4/x' is not valid: must be a sysctl's name with dots, such as net.ipv4.tcp_fin_timeout"),
        ("sysctls", {"extra": [{"name": "a.b", "value": 15}]}, _VALUE, "must be text, not a number"),
        ("podDisruptionBudget", {"minAvailable": 1, "maxUnavailable": 1}, "podDisruptionBudget",
         "set only one of minAvailable and maxUnavailable"),
        ("podDisruptionBudget", {"minAvailable": "half"}, "podDisruptionBudget.minAvailable",
         "'half' is not valid: must be a number or a percentage such as 50%"),
        ("resources", {"limits": {"cpu": "much"}}, "resources.limits['cpu']",
         "'much' is not valid: must be a quantity such as 100m or 64Mi"),
        ("pod", {"hostNetwrok": True}, "pod.hostNetwrok", "unknown field; did you mean hostNetwork?"),
        ("drain", {"delay": "soon"}, "drain.delay",
         "must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds"),
    ],
)  # fmt: skip
def test_invalid_deployment_fields_are_rejected(field: str, value: Any, path: str, reason: str) -> None:
    assert problems_of(field, value) == [Problem(path, reason)]

# SPDX-License-Identifier: Apache-2.0
"""Ports of nodes (``hostPort``, ``hostNetwork``): how pods that use them are rolled out and spread."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.errors import ConfigError
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.settings import Platform
from support.operator_bodies import body

HOST_143 = [{"name": "imap", "protocol": "imap", "listen": [{"port": 143, "hostPort": 143}]}]


def rendered(kind: str, **spec: Any) -> Manifest:
    found = render(planned(Resource.read(body(**spec)), Platform()))
    return next(
        one for one in found if one["kind"] == kind and not one["metadata"]["name"].endswith("-metrics")
    )


def refused(**spec: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Resource.read(body(**spec))
    return [str(problem) for problem in caught.value.problems]


def container_ports(workload: Manifest) -> dict[str, Any]:
    return {one["name"]: one for one in workload["spec"]["template"]["spec"]["containers"][0]["ports"]}


@pytest.mark.parametrize("mode", ["Deployment", "DaemonSet"])
def test_host_port_opens_the_port_of_the_node(mode: str) -> None:
    ports = container_ports(rendered(mode, mode=mode, servers=HOST_143))
    assert ports["imap-143"]["hostPort"] == 143
    assert "hostPort" not in ports["admin"]


def test_host_port_is_forwarded_to_high_container_port() -> None:
    ports = container_ports(rendered("Deployment", servers=HOST_143, portStrategy="HighPort"))
    assert (ports["imap-143"]["containerPort"], ports["imap-143"]["hostPort"]) == (10143, 143)


@pytest.mark.parametrize(
    "spec", [{"servers": HOST_143}, {"pod": {"hostNetwork": True}, "portStrategy": "HighPort"}]
)
def test_deployment_with_node_ports_deletes_old_pod_first(spec: dict[str, Any]) -> None:
    strategy = rendered("Deployment", **spec)["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxUnavailable": 1, "maxSurge": 0}


def test_host_port_is_not_part_of_the_configuration_of_the_pods() -> None:
    with_it = planned(Resource.read(body(servers=HOST_143)), Platform())
    without = planned(Resource.read(body()), Platform())
    assert with_it.config_hash == without.config_hash


def test_node_ports_have_notice_about_pod_security() -> None:
    notices = planned(Resource.read(body(servers=HOST_143)), Platform()).notices
    assert any("Pod Security Standard" in notice for notice in notices)


def listeners(*listen: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "imap", "protocol": "imap", "listen": list(listen)}]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (
            {"mode": "Sidecar", "servers": HOST_143},
            "spec.servers[0].listen[0].hostPort: needs mode Deployment or DaemonSet",
        ),
        (
            {"servers": HOST_143, "portStrategy": "HighPort", "pod": {"hostNetwork": True}},
            "spec.servers[0].listen[0].hostPort: 143 must be the container port 10143",
        ),
        (
            {"servers": listeners({"port": 143, "hostPort": 143}, {"port": 143, "address": "[::]"})},
            "spec.servers[0].listen[1].hostPort: differs from spec.servers[0].listen[0].hostPort (143)",
        ),
        (
            {"servers": listeners({"port": 143, "hostPort": 1143}, {"port": 993, "hostPort": 1143})},
            "spec.servers[0].listen[1].hostPort: 1143 is also the host port of port 143",
        ),
        (
            {"servers": listeners({"port": 143}, {"address": "unix:/run/a", "hostPort": 143})},
            "spec.servers[0].listen[1].hostPort: cannot be used with a UNIX socket",
        ),
        (
            {"service": {"type": "NodePort", "nodePorts": [{"port": 993, "nodePort": 30993}]}},
            "spec.service.nodePorts[0].port: no listener has port 993; ports of listeners: 143",
        ),
        (
            {"service": {"nodePorts": [{"port": 143, "nodePort": 30143}]}},
            "spec.service.nodePorts: nodePorts needs type NodePort or LoadBalancer",
        ),
    ],
)
def test_invalid_ports_are_reported_with_path(spec: dict[str, Any], problem: str) -> None:
    assert any(one.startswith(problem) for one in refused(**spec)), refused(**spec)


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_service_has_configured_node_ports(kind: str) -> None:
    servers = listeners({"port": 143}, {"port": 1143})
    spec = {"type": kind, "nodePorts": [{"port": 143, "nodePort": 30143}]}
    ports = rendered("Service", servers=servers, service=spec)["spec"]["ports"]
    assert [(one["port"], one.get("nodePort")) for one in ports] == [(143, 30143), (1143, None)]


def test_pods_of_a_deployment_spread_over_nodes_and_zones() -> None:
    spread = rendered("Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [(one["topologyKey"], one["whenUnsatisfiable"]) for one in spread] == [
        ("kubernetes.io/hostname", "ScheduleAnyway"),
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [({"pod": {"topologySpreadConstraints": []}}, "Deployment"), ({"mode": "DaemonSet"}, "DaemonSet")],
)
def test_no_default_spread_if_disabled_or_without_effect(spec: dict[str, Any], kind: str) -> None:
    assert "topologySpreadConstraints" not in rendered(kind, **spec)["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"replicas": 3, "autoscaling": {"maxReplicas": 10}}, 3),
        ({"replicas": 3, "autoscaling": {"maxReplicas": 2}}, 2),
        ({"replicas": 0, "autoscaling": {"maxReplicas": 2}}, 1),
        ({"replicas": 3, "autoscaling": {"minReplicas": 1, "maxReplicas": 10}}, 1),
        ({"autoscaling": {"maxReplicas": 10}}, 2),
    ],
)
def test_autoscaler_keeps_at_least_the_replicas(spec: dict[str, Any], expected: int) -> None:
    assert rendered("HorizontalPodAutoscaler", **spec)["spec"]["minReplicas"] == expected


@pytest.mark.parametrize(
    ("monitoring", "is_annotated", "is_noticed"),
    [
        ({}, True, False),
        ({"podMonitor": {"enabled": True}}, False, False),
        ({"podMonitor": {"enabled": True}, "scrapeAnnotations": True}, True, True),
        ({"scrapeAnnotations": False}, False, False),
    ],
)
def test_pods_are_not_scraped_twice(monitoring: dict[str, Any], is_annotated: bool, is_noticed: bool) -> None:
    annotations = rendered("Deployment", monitoring=monitoring)["spec"]["template"]["metadata"]["annotations"]
    assert ("prometheus.io/scrape" in annotations) is is_annotated
    notices = planned(Resource.read(body(monitoring=monitoring)), Platform()).notices
    assert any("twice" in notice for notice in notices) is is_noticed

# SPDX-License-Identifier: Apache-2.0
"""The NetworkPolicies of the chart and of the operator together: the product's parts reach each other."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.cli import argument_parser as operator_arguments
from mailproxy_operator.command import settings_from
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.inject import Injected, inject
from support.helm import ROOT, Helm, Object, find_object, objects_of_kind
from support.network_policies import Peer, allows_connection
from support.operator_bodies import body
from support.sidecars import pod

ADMIN = 9113
RESTRICTED: Object = {"networkPolicy": {"enabled": True}}


def _operator(objects: list[Object]) -> tuple[Peer, Platform]:
    """The operator's pod, and the platform settings from its arguments and variables."""
    deployment = find_object(objects, "Deployment")
    namespace = deployment["metadata"]["namespace"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    options = operator_arguments().parse_args(container["args"])
    given = {one["name"]: one.get("value", namespace) for one in container["env"]}
    platform = settings_from(options, given).platform(KubeVersion(1, 36))
    return Peer.of(namespace, deployment["spec"]["template"]), platform


def _proxy(platform: Platform, **spec: Any) -> tuple[Peer, list[Object]]:
    """A proxy's pod in the namespace mail, and the policies that the operator renders for it."""
    objects = list(render(planned(Resource.read(body(**spec)), platform)))
    [workload] = objects_of_kind(objects, "Deployment") + objects_of_kind(objects, "DaemonSet")
    return Peer.of("mail", workload["spec"]["template"]), objects_of_kind(objects, "NetworkPolicy")


@pytest.mark.parametrize("mode", ["Deployment", "DaemonSet"])
@pytest.mark.parametrize("metrics_from", [[], [{"namespaceSelector": {}, "podSelector": {}}]])
def test_operator_reads_the_configuration_of_pods_with_a_network_policy(
    helm: Helm, mode: str, metrics_from: list[Any]
) -> None:
    objects = helm.objects({**RESTRICTED, "nameOverride": "post"})
    operator, platform = _operator(objects)
    asked = {"enabled": True, "metricsFrom": metrics_from}
    target, policies = _proxy(platform, mode=mode, networkPolicy=asked)
    everything = [*policies, *objects_of_kind(objects, "NetworkPolicy")]
    assert allows_connection(everything, operator, target, ADMIN)
    # Neither pods of another namespace with the operator's labels, nor pods of its namespace without them.
    for other in (Peer("elsewhere", operator.labels, {}), Peer(operator.namespace, {"app": "x"}, {})):
        assert allows_connection(everything, other, target, ADMIN) == bool(metrics_from)


def test_policies_admit_the_operator_of_the_plain_manifests() -> None:
    objects = [one for one in yaml.safe_load_all((ROOT / "deploy/operator.yaml").read_text()) if one]
    operator, platform = _operator(objects)
    target, policies = _proxy(platform, networkPolicy={"enabled": True})
    assert allows_connection(policies, operator, target, ADMIN)


def test_operator_reaches_sidecars(helm: Helm) -> None:
    objects = helm.objects(RESTRICTED)
    operator, platform = _operator(objects)
    made = inject(sidecar(planned(Resource.read(body(mode="Sidecar")), platform)), pod())
    assert isinstance(made, Injected)
    target = Peer.of("mail", made.pod)
    assert allows_connection(objects_of_kind(objects, "NetworkPolicy"), operator, target, ADMIN)
    other = Peer("mail", {"app": "x"}, {})
    assert not allows_connection(objects_of_kind(objects, "NetworkPolicy"), operator, other, ADMIN)


def test_helm_test_reaches_the_operator_where_its_metrics_are_restricted(helm: Helm) -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    objects = helm.objects({"networkPolicy": {"enabled": True, "metricsFrom": [prometheus]}})
    operator, _ = _operator(objects)
    job = find_object(objects, "Job", "-test")
    tester = Peer.of(job["metadata"]["namespace"], job["spec"]["template"])
    policies = objects_of_kind(objects, "NetworkPolicy")
    assert allows_connection(policies, tester, operator, 8080)
    assert allows_connection(policies, Peer("monitoring", {"app": "prometheus"}, {}), operator, 8080)
    assert not allows_connection(policies, Peer("mail", {"app": "x"}, {}), operator, 8080)


def test_api_server_reaches_the_webhook(helm: Helm) -> None:
    objects = helm.objects({**RESTRICTED, "webhook": {"enabled": True}})
    operator, _ = _operator(objects)
    assert allows_connection(
        objects_of_kind(objects, "NetworkPolicy"), Peer("kube-system", {}, {}), operator, 9443
    )


def test_without_operator_namespace_policy_selects_by_labels_only() -> None:
    """As in the output of ``render``, and with an operator outside of the cluster."""
    target, policies = _proxy(Platform(), networkPolicy={"enabled": True})
    labels = {"mailproxy.dev/component": "operator"}
    assert allows_connection(policies, Peer("anywhere", labels, {}), target, ADMIN)
    assert not allows_connection(policies, Peer("anywhere", {}, {}), target, ADMIN)


def test_proxy_reaches_the_name_servers_of_its_resolver() -> None:
    """Also on other ports than 53."""
    resolver = {"addresses": ["10.0.0.1:5353", "[fd00::1]:5300", "10.0.0.2"]}
    mail = {"authHttp": "http://auth.mail.svc:9000/auth", "resolver": resolver}
    source, policies = _proxy(Platform(), networkPolicy={"enabled": True}, mail=mail)
    [policy] = policies
    udp = {
        port["port"]
        for rule in policy["spec"]["egress"]
        for port in rule["ports"]
        if port["protocol"] == "UDP"
    }
    assert udp == {53, 5300, 5353}
    for port in (53, 5300, 5353, 9000):
        assert allows_connection(policies, source, Peer("dns", {}, {}), port)
    assert not allows_connection(policies, source, Peer("dns", {}, {}), 25)

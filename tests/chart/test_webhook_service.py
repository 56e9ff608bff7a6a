# SPDX-License-Identifier: Apache-2.0
"""The chart's webhook on a real API server, called as in a cluster: by its Service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from support.helm import CHART, Helm, Object, given
from support.helm_cluster import (
    NAMESPACE,
    RELEASE,
    ChartCluster,
    chart_cluster,
    own_address,
    serving_endpoints,
)
from support.kube_api import Answer
from support.kube_cluster import Operator
from support.kube_server import ABSENT, programs
from support.servers.programs import Ports, eventually

pytestmark = pytest.mark.kubernetes

OPERATOR = "mp-mailproxy-operator"
SERVICE = f"{OPERATOR}-webhook"
ELSEWHERE = "other"  # the release's own namespace is left out
SPEC: Object = {
    "mode": "Sidecar",
    "mail": {"authHttp": "http://127.0.0.1:9000/auth"},
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 1143}]}],
}


@dataclass
class Site:
    """The API server, and the operator as the chart's Deployment would run it."""

    cluster: ChartCluster
    operator: Operator


@pytest.fixture(scope="module")
def site(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The chart, installed; its operator, ready; and what controllers would do for its Service."""
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    address, port = own_address(), Ports().take()
    with chart_cluster(found, tmp_path_factory.mktemp("webhook"), helm, reaches_services=True) as cluster:
        values = given({"webhook": {"enabled": True, "port": port}})
        helm.good("install", RELEASE, str(CHART), "--namespace", NAMESPACE, *values)
        for manifest in serving_endpoints(cluster, SERVICE, OPERATOR, address):
            _ = cluster.api.asker.ask("POST", manifest.pop("path"), manifest).good
        operator = _operator(cluster)
        try:
            operator.started()
            eventually(lambda: operator.admin.ask("GET", "/readyz").status == 200, "the webhook's trust")
            account = {"name": "default", "namespace": ELSEWHERE}
            _ = cluster.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}).good
            yield Site(cluster, operator)
        finally:
            operator.stop()


def _operator(cluster: ChartCluster) -> Operator:
    """The program with the arguments and the service account of the chart's Deployment."""
    pod = cluster.api.found("Deployment", NAMESPACE, OPERATOR)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    options = [one for one in container["args"][1:] if not one.startswith("--admin")]
    kubeconfig = cluster.cluster.kubeconfig(
        "chart", cluster.server.token(NAMESPACE, pod["serviceAccountName"])
    )
    return Operator(cluster.cluster, "chart", kubeconfig, [*options, f"--lease-namespace={NAMESPACE}"])


@pytest.fixture(scope="module")
def resource(site: Site) -> str:
    """A MailProxy for sidecars."""
    body = {"apiVersion": "mailproxy.dev/v1alpha1", "kind": "MailProxy", "spec": SPEC}
    made = {**body, "metadata": {"name": "edge", "namespace": ELSEWHERE}}
    eventually(lambda: site.cluster.api.create(made).status == 201, "the kind to be served")
    return "edge"


def _pod(site: Site, name: str, wanted: str, namespace: str = ELSEWHERE) -> Answer:
    metadata = {"name": name, "namespace": namespace, "labels": {"mailproxy.dev/inject": wanted}}
    spec: dict[str, Any] = {"containers": [{"name": "a", "image": "a"}], "serviceAccountName": "default"}
    return site.cluster.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def _sidecars(answer: Answer) -> list[str]:
    return [one["name"] for one in answer.good["spec"].get("initContainers", [])]


def _asked_about(site: Site, name: str, wanted: str, found: Callable[[Answer], bool]) -> None:
    """Make pods until one was asked about: on a busy machine an answer may be late, and is ignored then."""
    numbers = count()
    eventually(lambda: found(_pod(site, f"{name}-{next(numbers)}", wanted)), "an answer of the webhook")


def test_a_pod_gets_its_sidecar_through_the_service(site: Site, resource: str) -> None:
    """Port, path, the name in the certificate, the trust in it and the rights: all have to be right."""
    _asked_about(site, "a", resource, lambda answer: _sidecars(answer) == ["mailproxy"])


def test_the_webhook_tells_why_a_pod_gets_none(site: Site) -> None:
    def is_warned(answer: Answer) -> bool:
        assert _sidecars(answer) == []
        return any("nobody" in warning for warning in answer.warnings)

    _asked_about(site, "b", "nobody", is_warned)


def test_pods_beside_the_operator_are_not_asked_about(site: Site) -> None:
    account = {"name": "default", "namespace": NAMESPACE}
    site.cluster.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    answer = _pod(site, "a-2", "nobody", NAMESPACE)
    assert not [warning for warning in answer.warnings if "nobody" in warning]


def test_without_the_operator_pods_are_created_all_the_same(site: Site, resource: str) -> None:
    """The last test here: it ends the operator."""
    site.operator.stop()
    assert _sidecars(_pod(site, "a-3", resource)) == []

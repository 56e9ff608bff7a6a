# SPDX-License-Identifier: Apache-2.0
"""The chart's webhook on a real API server, called through its Service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from support.helm import CHART, Helm, Object, value_options
from support.helm_cluster import (
    NAMESPACE,
    RELEASE,
    ChartCluster,
    chart_cluster,
    own_address,
    serving_endpoints,
)
from support.kube_api import Response
from support.kube_cluster import Operator
from support.kube_server import ABSENT, programs
from support.servers.programs import Ports, eventually

pytestmark = pytest.mark.kubernetes

OPERATOR = "mp-mailproxy-operator"
SERVICE = f"{OPERATOR}-webhook"
ELSEWHERE = "other"  # the webhook ignores the release's namespace
SPEC: Object = {
    "mode": "Sidecar",
    "mail": {"authHttp": "http://127.0.0.1:9000/auth"},
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 1143}]}],
}


@dataclass
class Site:
    """The API server, and an operator with the arguments of the chart's Deployment."""

    cluster: ChartCluster
    operator: Operator


@pytest.fixture(scope="module")
def site(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The installed chart, its ready operator, and the endpoints that a controller would create."""
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    address, port = own_address(), Ports().take()
    with chart_cluster(found, tmp_path_factory.mktemp("webhook"), helm, reaches_services=True) as cluster:
        values = value_options({"webhook": {"enabled": True, "port": port}})
        helm.check_output("install", RELEASE, str(CHART), "--namespace", NAMESPACE, *values)
        for manifest in serving_endpoints(cluster, SERVICE, OPERATOR, address):
            _ = cluster.api.user.request("POST", manifest.pop("path"), manifest).checked_body
        operator = _operator(cluster)
        try:
            operator.started()
            eventually(lambda: operator.admin.request("GET", "/readyz").status == 200, "the webhook's trust")
            account = {"name": "default", "namespace": ELSEWHERE}
            _ = cluster.api.create(
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
            ).checked_body
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


def _pod(site: Site, name: str, wanted: str, namespace: str = ELSEWHERE) -> Response:
    metadata = {"name": name, "namespace": namespace, "labels": {"mailproxy.dev/inject": wanted}}
    spec: dict[str, Any] = {"containers": [{"name": "a", "image": "a"}], "serviceAccountName": "default"}
    return site.cluster.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def _sidecars(response: Response) -> list[str]:
    return [one["name"] for one in response.checked_body["spec"].get("initContainers", [])]


def _wait_for_review(site: Site, name: str, wanted: str, found: Callable[[Response], bool]) -> None:
    """Create pods until the webhook has responded for one: on a busy machine it may exceed its timeout."""
    numbers = count()
    eventually(lambda: found(_pod(site, f"{name}-{next(numbers)}", wanted)), "an answer of the webhook")


def test_pod_gets_its_sidecar_through_the_service(site: Site, resource: str) -> None:
    """Port, path, certificate name, CA bundle and permissions are all correct."""
    _wait_for_review(site, "a", resource, lambda response: _sidecars(response) == ["mailproxy"])


def test_webhook_warns_why_a_pod_gets_no_sidecar(site: Site) -> None:
    def is_warned(response: Response) -> bool:
        assert _sidecars(response) == []
        return any("nobody" in warning for warning in response.warnings)

    _wait_for_review(site, "b", "nobody", is_warned)


def test_webhook_ignores_pods_in_the_operators_namespace(site: Site) -> None:
    account = {"name": "default", "namespace": NAMESPACE}
    site.cluster.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    response = _pod(site, "a-2", "nobody", NAMESPACE)
    assert not [warning for warning in response.warnings if "nobody" in warning]


def test_pods_are_created_without_the_operator(site: Site, resource: str) -> None:
    """The last test of this module, because it stops the operator."""
    site.operator.stop()
    assert _sidecars(_pod(site, "a-3", resource)) == []

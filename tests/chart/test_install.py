# SPDX-License-Identifier: Apache-2.0
"""Installing, upgrading, testing and uninstalling the chart on a real API server, with Helm 3 and Helm 4."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.helm import CHART, Helm, Object, objects_of_kind, value_options
from support.helm_cluster import CRD, NAMESPACE, RELEASE, ChartCluster, chart_cluster
from support.kube_cluster import Operator
from support.kube_server import ABSENT, programs
from support.kubectl import ABSENT as NO_KUBECTL
from support.kubectl import find_kubectl
from support.servers.programs import eventually

pytestmark = pytest.mark.kubernetes

SPEC: Object = {
    "mail": {"serverName": "mail.example.com", "authHttp": "http://auth.mail.svc:9000/auth"},
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}],
}
PROXIES = value_options({"proxies": {"edge": {"spec": SPEC}}})
OPERATOR = "mp-mailproxy-operator"
# The lists of objects that the chart creates, which must be empty after uninstalling.
LEFT = (
    "/api/v1/namespaces/mail/services",
    "/apis/apps/v1/namespaces/mail/deployments",
    "/apis/batch/v1/namespaces/mail/jobs",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/mail/roles",
    "/apis/rbac.authorization.k8s.io/v1/namespaces/mail/rolebindings",
    f"/api/v1/namespaces/mail/serviceaccounts?fieldSelector=metadata.name={OPERATOR}",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles?labelSelector=app.kubernetes.io/instance=mp",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings?labelSelector=app.kubernetes.io/instance=mp",
)


@pytest.fixture(scope="module")
def cluster(each_helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChartCluster]:
    """The API server."""
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    with chart_cluster(found, tmp_path_factory.mktemp("chart"), each_helm) as made:
        yield made


@pytest.fixture
def empty(cluster: ChartCluster) -> Iterator[ChartCluster]:
    """The API server; objects that the test leaves are removed."""
    yield cluster
    cluster.helm.run("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found")
    cluster.api.asker.ask("DELETE", CRD)
    eventually(lambda: not cluster.exists(CRD), "the CRD to be gone")


def _helm(cluster: ChartCluster, *args: str) -> str:
    return cluster.helm.check_output(*args, "--namespace", NAMESPACE)


def _state(cluster: ChartCluster) -> tuple[int, int, str]:
    """The generations of the operator's Deployment and of the proxy, and the uid of the proxy."""
    deployment = cluster.api.found("Deployment", NAMESPACE, OPERATOR)["metadata"]
    proxy = cluster.api.found("MailProxy", NAMESPACE, "edge")["metadata"]
    return deployment["generation"], proxy["generation"], proxy["uid"]


def _left(cluster: ChartCluster) -> list[str]:
    return [
        item["metadata"]["name"]
        for path in LEFT
        for item in cluster.api.get(path).good["items"]
        if item["metadata"]["name"] != "kubernetes"
    ]


def test_one_install_creates_operator_and_proxies(empty: ChartCluster) -> None:
    """A first install without the CRD in the cluster; then upgrades, rollback, uninstall, install."""
    command = ["install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--timeout", "60s", *PROXIES]
    with empty.helm.start(*command) as installing:
        empty.run_job(f"{OPERATOR}-await-crd")
        output, _ = installing.communicate(timeout=60)
    assert installing.returncode == 0, output
    assert "mailp/edge" in output
    first = _state(empty)

    _helm(empty, "upgrade", RELEASE, str(CHART), *PROXIES)
    assert _state(empty) == first, "an upgrade that changes nothing changes something"
    _helm(empty, "upgrade", RELEASE, str(CHART), *PROXIES, "--set", "log.level=debug")
    assert _state(empty) == (first[0] + 1, *first[1:])
    _helm(empty, "rollback", RELEASE, "1")
    assert _state(empty)[1:] == first[1:]

    _helm(empty, "uninstall", RELEASE)
    assert _left(empty) == []
    assert empty.exists(CRD)
    assert empty.api.found("MailProxy", NAMESPACE, "edge")["metadata"]["uid"] == first[2]
    _helm(empty, "install", RELEASE, str(CHART), *PROXIES)
    assert _state(empty)[1:] == first[1:], "the kept MailProxy has changed"


def test_killed_installation_is_repaired_by_uninstalling(empty: ChartCluster) -> None:
    """The state that ``make kind`` reports, and the command that it prints."""
    command = ["install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--wait", "--timeout", "60s"]
    with empty.helm.start(*command) as installing:
        deployment = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{OPERATOR}"
        eventually(lambda: empty.exists(deployment), "the Deployment, which no node can run")
        installing.kill()
    status = json.loads(_helm(empty, "status", RELEASE, "--output", "json"))
    assert status["info"]["status"] == "pending-install"
    again = ["upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE]
    assert "another operation" in empty.helm.run(*again).stderr
    _helm(empty, "uninstall", RELEASE)
    empty.helm.check_output(*again)


def test_uninstall_without_keep_removes_everything(empty: ChartCluster) -> None:
    _helm(empty, "install", RELEASE, str(CHART), "--set", "crds.keep=false")
    assert empty.exists(CRD)
    _helm(empty, "uninstall", RELEASE)
    eventually(lambda: not empty.exists(CRD), "the CRD to be gone")
    assert _left(empty) == []


def test_proxies_without_the_crd_are_rejected(empty: ChartCluster) -> None:
    done = empty.helm.run(
        "install", RELEASE, str(CHART), "--namespace", NAMESPACE, *PROXIES, "--set", "crds.enabled=false"
    )
    assert done.returncode != 0
    assert "proxies needs the CRD" in done.stderr


def test_permissions_suffice_and_helm_test_passes(empty: ChartCluster) -> None:
    """An operator with the Deployment's arguments and service account creates a proxy; then ``helm test``."""
    _helm(empty, "install", RELEASE, str(CHART))
    [container] = empty.api.found("Deployment", NAMESPACE, OPERATOR)["spec"]["template"]["spec"]["containers"]
    options = [one for one in container["args"][1:] if not one.startswith("--admin")]
    pod = {"POD_NAMESPACE": NAMESPACE, "POD_NAME": "op-0", "POD_UID": "uid-0"}
    body = {"apiVersion": "mailproxy.dev/v1alpha1", "kind": "MailProxy", "spec": SPEC}
    token = empty.server.token(NAMESPACE, OPERATOR)
    kubeconfig = empty.cluster.kubeconfig("chart", token)
    operator = Operator(empty.cluster, "chart", kubeconfig, options, pod).started()
    try:
        made = {**body, "metadata": {"name": "edge", "namespace": NAMESPACE}}
        eventually(lambda: empty.api.create(made).status == 201, "the kind to be served")
        eventually(lambda: empty.api.find("Deployment", NAMESPACE, "edge"), "the proxy's Deployment")
        with empty.helm.start("test", RELEASE, "--namespace", NAMESPACE, "--timeout", "60s") as testing:
            output = empty.run_job(f"{OPERATOR}-test", OPERATOR_URL=operator.admin.url)
            assert "as a dry run: 201" in output
            output, _ = testing.communicate(timeout=60)
        assert testing.returncode == 0, output
    finally:
        operator.stop()
    assert [one["metadata"]["name"] for one in empty.api.list("MailProxy", NAMESPACE)] == ["edge"]
    [owner] = empty.api.found("Lease", NAMESPACE, OPERATOR)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Pod", "uid-0")


@pytest.mark.parametrize("more", [{}, {"sysctlPolicy": {"enabled": True}}, {"webhook": {"enabled": True}}])
def test_api_server_accepts_every_object_with_strict_validation(
    cluster: ChartCluster, tmp_path: Path, more: Object
) -> None:
    kubectl = find_kubectl(tmp_path)
    if kubectl is None:
        pytest.skip(NO_KUBECTL)
    values = {
        "replicas": 2,
        "networkPolicy": {"enabled": True},
        "metrics": {"dashboards": {"enabled": True}, "scrapeAnnotations": True},
        **more,
    }
    objects = cluster.helm.objects(values, "--kube-version", "1.36")
    assert objects_of_kind(objects, "NetworkPolicy")
    command = [str(kubectl), f"--kubeconfig={cluster.kubeconfig}", "apply", "--server-side",
               "--dry-run=server", "--validate=strict", "-f", "-"]  # fmt: skip
    done = subprocess.run(
        command, input=yaml.safe_dump_all(objects), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # Warnings of the namespace's Pod Security Standard are on standard error.
    assert done.stderr == ""

# SPDX-License-Identifier: Apache-2.0
"""Upgrading a release of chart 0.1.0 with resources in place, on a real API server, with Helm 3 and Helm 4.

``data/mailproxy-operator-0.1.0.tgz`` is the chart 0.1.0 without README and dashboards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from support.helm import CHART, Helm, Object, load_objects, value_options
from support.helm_cluster import CRD, NAMESPACE, RELEASE, ChartCluster, chart_cluster
from support.kube_api import CHILDREN, PLURALS, path_of
from support.kube_cluster import Operator
from support.kube_server import ABSENT, programs
from support.servers.programs import eventually

pytestmark = pytest.mark.kubernetes

PREVIOUS: Final = Path(__file__).parent / "data/mailproxy-operator-0.1.0.tgz"
OPERATOR: Final = "mp-mailproxy-operator"
ELSEWHERE: Final = "other"
SPEC: Final[Object] = {
    "mail": {"serverName": "mail.example.com", "authHttp": "http://auth.mail.svc:9000/auth"},
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}],
}
VALUES: Final = value_options(
    {"proxies": {"edge": {"spec": SPEC}}, "log": {"format": "json", "level": "debug"}}
)
PROXIES: Final = ((NAMESPACE, "edge"), (ELSEWHERE, "own"))
"""One MailProxy of the release, and one that a user applied in another namespace."""

Identities = dict[tuple[str, str, str], str]


class Upgrade:
    """A release, its MailProxy resources and its operator."""

    def __init__(self, cluster: ChartCluster) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self._operators: list[Operator] = []

    def helm(self, command: str, *arguments: str) -> None:
        self.cluster.helm.check_output(command, RELEASE, *arguments, "--namespace", NAMESPACE)

    def install_previous(self) -> None:
        """Install chart 0.1.0, and create a MailProxy in another namespace."""
        command = ["install", RELEASE, str(PREVIOUS), "--namespace", NAMESPACE, "--timeout", "60s", *VALUES]
        with self.cluster.helm.start(*command) as installing:
            self.cluster.run_job(f"{OPERATOR}-await-crd")
            output, _ = installing.communicate(timeout=60)
        assert installing.returncode == 0, output
        metadata = {"name": "own", "namespace": ELSEWHERE}
        _ = self.api.create(
            {"apiVersion": "mailproxy.dev/v1alpha1", "kind": "MailProxy", "metadata": metadata, "spec": SPEC}
        ).checked_body

    def start_operator(self) -> None:
        """Start an operator as the Deployment describes it, in place of the one before."""
        self.stop_operator()
        pod = self.api.found("Deployment", NAMESPACE, OPERATOR)["spec"]["template"]["spec"]
        options = [one for one in pod["containers"][0]["args"][1:] if not one.startswith("--admin")]
        name = f"operator-{len(self._operators)}"
        token = self.cluster.server.token(NAMESPACE, pod["serviceAccountName"])
        kubeconfig = self.cluster.cluster.kubeconfig(name, token)
        environment = {"POD_NAMESPACE": NAMESPACE}
        self._operators.append(Operator(self.cluster.cluster, name, kubeconfig, options, environment))
        self._operators[-1].started()

    def stop_operator(self) -> None:
        for one in self._operators[-1:]:
            one.stop()

    def wait_until_settled(self) -> None:
        """Wait until this operator has accepted and applied every MailProxy, and is ready."""
        admin = self._operators[-1].admin
        eventually(lambda: admin.request("GET", "/readyz").status == 200, "the operator to be ready")
        for namespace, name in PROXIES:
            eventually(lambda at=namespace, name=name: self._is_settled(at, name), f"{namespace}/{name}")

    def wait_until_applied(self) -> None:
        """Wait until the operator has created the Deployment of every MailProxy, which it applies last.

        The CRD of chart 0.1.0 has no field ``status.ready``, so that this operator cannot write the status.
        """
        for namespace, name in PROXIES:
            eventually(lambda at=namespace, name=name: self.api.find("Deployment", at, name), name)

    def _is_settled(self, namespace: str, name: str) -> bool:
        found = self.api.found("MailProxy", namespace, name)
        status = found.get("status", {})
        conditions = {one["type"]: one for one in status.get("conditions", [])}
        return (
            status.get("observedGeneration") == found["metadata"]["generation"]
            and conditions.get("Accepted", {}).get("status") == "True"
            and self.api.find("Deployment", namespace, name) is not None
        )

    def identities(self) -> Identities:
        """The uid of every object of the release and of every MailProxy."""
        objects = load_objects(self.cluster.helm.check_output("get", "manifest", RELEASE, "-n", NAMESPACE))
        places = {
            (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in objects
        }
        places |= {("MailProxy", *proxy) for proxy in PROXIES}
        places |= {
            (kind, namespace, one["metadata"]["name"])
            for namespace, _ in PROXIES
            for kind in CHILDREN
            for one in self.api.list(kind, namespace)
            if one["metadata"].get("ownerReferences")
        }
        found = {place: self.api.get(path_of(*place)) for place in places if place[0] in PLURALS}
        return {place: one.checked_body["metadata"]["uid"] for place, one in found.items()}


@pytest.fixture
def upgrade(each_helm: Helm, tmp_path: Path) -> Iterator[Upgrade]:
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    with chart_cluster(found, tmp_path, each_helm) as cluster:
        made = Upgrade(cluster)
        try:
            yield made
        finally:
            made.stop_operator()


def _schema(crd: Object) -> Object:
    [version] = crd["spec"]["versions"]
    schema: Object = version["schema"]["openAPIV3Schema"]["properties"]
    return schema


def test_upgrade_from_the_previous_chart_recreates_nothing(upgrade: Upgrade) -> None:
    """Neither objects of the release, nor MailProxy resources, nor the objects that these own."""
    upgrade.install_previous()
    upgrade.start_operator()
    upgrade.wait_until_applied()
    before = upgrade.identities()
    assert {"CustomResourceDefinition", "ClusterRole", "MailProxy", "Deployment", "Service", "ConfigMap"} <= {
        kind for kind, _, _ in before
    }
    specs = [upgrade.api.found("MailProxy", *proxy)["spec"] for proxy in PROXIES]
    upgrade.stop_operator()

    upgrade.helm("upgrade", str(CHART), "--reset-then-reuse-values")
    [crd] = [one for one in load_objects((CHART / "files/crd.yaml").read_text())]
    live = upgrade.api.get(CRD).checked_body
    assert yaml.safe_dump(_schema(live)) == yaml.safe_dump(_schema(crd)), "the CRD was not upgraded"
    container = upgrade.api.found("Deployment", NAMESPACE, OPERATOR)["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert f"--lease-name={OPERATOR}" in container["args"]
    assert "--log-level=debug" in container["args"], "the values of the release were lost"

    upgrade.start_operator()
    upgrade.wait_until_settled()
    after = upgrade.identities()
    assert {place: after.get(place) for place in before} == before
    assert [upgrade.api.found("MailProxy", *proxy)["spec"] for proxy in PROXIES] == specs


def test_rollback_to_the_previous_chart_recreates_nothing(upgrade: Upgrade) -> None:
    upgrade.install_previous()
    before, crd = upgrade.identities(), _schema(upgrade.api.get(CRD).checked_body)
    upgrade.helm("upgrade", str(CHART), "--reset-then-reuse-values")
    assert _schema(upgrade.api.get(CRD).checked_body) != crd, "both charts have the same CRD"
    upgrade.helm("rollback", "1")
    assert _schema(upgrade.api.get(CRD).checked_body) == crd
    assert upgrade.identities() == before

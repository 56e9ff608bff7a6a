# SPDX-License-Identifier: Apache-2.0
"""Switching to a certificate in a Secret and back, on a real API server: every pod gets its sidecar."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from support.helm import ABSENT as NO_HELM
from support.helm import CHART, Helm, Object, value_options
from support.helm_cluster import (
    NAMESPACE,
    RELEASE,
    ChartCluster,
    chart_cluster,
    own_address,
    serving_endpoints,
)
from support.kube_cluster import Operator
from support.kube_server import ABSENT, programs
from support.servers.programs import Ports, eventually

pytestmark = pytest.mark.kubernetes

OPERATOR = "mp-mailproxy-operator"
SERVICE = f"{OPERATOR}-webhook"
ELSEWHERE = "other"
SPEC: Object = {
    "mode": "Sidecar",
    "mail": {"authHttp": "http://127.0.0.1:9000/auth"},
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 1143}]}],
}


@dataclass
class Release:
    """A release with the webhook, and its operator."""

    cluster: ChartCluster
    port: int
    certificates: Path
    upgrade_options: tuple[str, ...]
    operators: list[Operator] = field(default_factory=list)

    def helm(self, command: str, webhook: Object) -> None:
        values = value_options(
            {"webhook": {"enabled": True, "port": self.port, "failurePolicy": "Fail", **webhook}}
        )
        options = self.upgrade_options if command == "upgrade" else ()
        self.cluster.helm.check_output(
            command, RELEASE, str(CHART), "--namespace", NAMESPACE, *options, *values
        )

    def roll(self) -> None:
        """Start an operator with the Deployment's current arguments, in place of the old one."""
        pod = self.cluster.api.found("Deployment", NAMESPACE, OPERATOR)["spec"]["template"]["spec"]
        [container] = pod["containers"]
        options = [
            one.replace("/etc/webhook", str(self.certificates))
            for one in container["args"][1:]
            if not one.startswith("--admin")
        ]
        token = self.cluster.server.token(NAMESPACE, pod["serviceAccountName"])
        name = f"operator-{len(self.operators)}"
        kubeconfig = self.cluster.cluster.kubeconfig(name, token)
        # Both have the same address, so the old one is stopped first.  A Service would switch over.
        if self.operators:
            self.operators[-1].stop()
        lease = f"--lease-namespace={NAMESPACE}"
        self.operators.append(Operator(self.cluster.cluster, name, kubeconfig, [*options, lease]))
        self.operators[-1].started()
        ready = "the webhook's trust"
        eventually(lambda: self.operators[-1].admin.ask("GET", "/readyz").status == 200, ready)

    def sidecars(self, name: str) -> list[str]:
        """Create a pod with the label; without a response of the webhook it would be rejected."""
        metadata = {"name": name, "namespace": ELSEWHERE, "labels": {"mailproxy.dev/inject": "edge"}}
        spec: dict[str, Any] = {
            "containers": [{"name": "a", "image": "a"}],
            "serviceAccountName": "default",
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        made = self.cluster.api.create(pod).good
        return [one["name"] for one in made["spec"].get("initContainers", [])]


@pytest.fixture(
    params=[(3, ()), (4, ("--server-side=true",)), (4, ("--server-side=false",))],
    ids=["helm3", "helm4", "helm4 client-side"],
)
def release(helms: dict[int, Helm], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Release]:
    """With server-side apply, as Helm 4 does by default, and without, as Helm 3 does."""
    major, options = request.param
    if major not in helms:
        pytest.skip(NO_HELM[major])
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    address, port = own_address(), Ports().take()
    with chart_cluster(found, tmp_path, helms[major], reaches_services=True) as cluster:
        made = Release(cluster, port, tmp_path / "certificates", options)
        made.helm("install", {})
        for manifest in serving_endpoints(cluster, SERVICE, OPERATOR, address):
            _ = cluster.api.asker.ask("POST", manifest.pop("path"), manifest).good
        account = {"name": "default", "namespace": ELSEWHERE}
        _ = cluster.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}).good
        try:
            yield made
        finally:
            for operator in made.operators:
                operator.stop()


def test_switching_to_a_secret_and_back_keeps_sidecars(release: Release) -> None:
    release.roll()
    body = {"apiVersion": "mailproxy.dev/v1alpha1", "kind": "MailProxy", "spec": SPEC}
    made = {**body, "metadata": {"name": "edge", "namespace": ELSEWHERE}}
    eventually(lambda: release.cluster.api.create(made).status == 201, "the kind to be served")
    assert release.sidecars("own") == ["mailproxy"]

    company = trustme.CA()
    issued = company.issue_cert(f"{SERVICE}.{NAMESPACE}.svc")
    release.certificates.mkdir()
    issued.private_key_pem.write_to_path(str(release.certificates / "tls.key"))
    issued.cert_chain_pems[0].write_to_path(str(release.certificates / "tls.crt"))
    bundle = base64.b64encode(company.cert_pem.bytes()).decode()
    release.helm("upgrade", {"certificateSecret": "webhook-tls", "caBundle": bundle})
    assert release.sidecars("between") == ["mailproxy"], "the old operator still answers"
    release.roll()
    assert release.sidecars("secret") == ["mailproxy"]

    release.helm("upgrade", {})
    assert release.sidecars("between-again") == ["mailproxy"]
    release.roll()
    assert release.sidecars("own-again") == ["mailproxy"]

# SPDX-License-Identifier: Apache-2.0
"""The files in ``deploy/`` work: every example is accepted and settles."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from support.kube_api import Object
from support.kube_cluster import ROOT, SYSTEM, Cluster, manifests
from support.kube_world import World
from support.kubectl import Kubectl

pytestmark = pytest.mark.kubernetes

EXAMPLES: Final = sorted(path.name for path in (ROOT / "deploy" / "examples").glob("*.yaml"))


def in_namespace(manifest: Object, namespace: str) -> Object:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}


def mail_proxies(name: str) -> list[Object]:
    return [one for one in manifests("examples", name) if one["kind"] == "MailProxy"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_accepted_and_settles(world: World, name: str) -> None:
    examples = mail_proxies(name)
    assert examples, f"{name} has no MailProxy"
    for manifest in examples:
        wanted = manifest["metadata"]["name"]
        strictly = {"fieldValidation": "Strict"} if world.cluster.is_real else {}
        _ = world.api.apply(in_namespace(manifest, world.namespace), **strictly).checked_body
        mode = manifest["spec"].get("mode", "Deployment")
        if mode == "Sidecar":
            world.until(lambda: world.condition(name=wanted) == ("True", "Ready"), wanted)  # noqa: B023
            continue
        made = world.settle(wanted, kind=mode, count=1 if mode == "DaemonSet" else None)
        assert made["status"]["podsSynced"] >= 1
        assert len(made["status"]["listeners"]) == sum(
            len(server["listen"]) for server in manifest["spec"]["servers"]
        )


def test_expected_examples_exist() -> None:
    wanted = {
        "minimal.yaml",
        "cert-manager.yaml",
        "proxy-protocol.yaml",
        "submission.yaml",
        "everything.yaml",
        "nginx-example.yaml",
        "demo.yaml",
    }
    assert wanted <= set(EXAMPLES)


def test_operator_manifests_are_accepted(real: Cluster) -> None:
    for manifest in manifests("operator.yaml"):
        response = real.api.apply(_somewhere(manifest), fieldValidation="Strict", dryRun="All")
        assert response.checked_body
        assert [one for one in response.warnings if "would violate" in one] == []


def test_operator_runs_in_restricted_namespace(real: Cluster) -> None:
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    _ = real.api.patch("Namespace", "", SYSTEM, label).checked_body
    for manifest in manifests("operator.yaml"):
        response = real.api.apply(_somewhere(manifest), dryRun="All")
        assert [one for one in response.warnings if "would violate" in one] == []
    nothing = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": None}}}
    _ = real.api.patch("Namespace", "", SYSTEM, nothing).checked_body


def _somewhere(manifest: Object) -> Object:
    if manifest["kind"] == "Namespace":
        return manifest
    return {**manifest, "metadata": {"namespace": SYSTEM, **manifest["metadata"]}}


def test_kustomization_installs_everything(kubectl: Kubectl) -> None:
    folder: Path = ROOT / "deploy"
    output = kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", str(folder))
    assert "error" not in output.lower(), output
    for word in ("customresourcedefinition", "clusterrole", "deployment", "serviceaccount"):
        assert word in output, output

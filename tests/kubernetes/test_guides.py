# SPDX-License-Identifier: Apache-2.0
"""The guides' manifests on an API server; health for Argo CD and Flux; drift of the webhook."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.guides.argo_health import health
from support.guides.blocks import GUIDES, Object, Page
from support.guides.third_party import is_known
from support.helm import Helm, find_object, find_tool, release_objects
from support.kube_world import World
from support.kubectl import Kubectl
from support.needs import Needs
from support.servers.programs import eventually

pytestmark = pytest.mark.kubernetes

CRDS: Final = os.environ.get("GUIDE_CRDS", "")
"""A folder with CRDs of Argo CD, cert-manager, Envoy Gateway, Flux, Gateway API and MetalLB."""


def _objects(*, known: bool) -> list[Any]:
    found = []
    for name in (*GUIDES, "routes.md"):
        for block in Page(name).blocks:
            if block.language == "yaml":
                for body in yaml.safe_load_all(block.text):
                    if "apiVersion" in body and is_known(body) == known:
                        title = f"{name}:{body['kind']}/{body['metadata']['name']}"
                        found.append(pytest.param(body, id=title))
    return found


def _dry_run(kubectl: Kubectl, body: Object) -> str:
    namespace = body["metadata"].get("namespace")
    if namespace:
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(made))
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    return kubectl(*arguments, stdin=json.dumps(body))


@pytest.mark.parametrize("body", _objects(known=False))
def test_api_server_accepts_the_guides_manifests(kubectl: Kubectl, body: Object) -> None:
    said = _dry_run(kubectl, body)
    assert "serverside-applied (server dry run)" in said, said


@pytest.mark.skipif(not CRDS, reason="needs CRDs of other products, in the folder $GUIDE_CRDS")
@pytest.mark.parametrize("body", _objects(known=True))
def test_api_server_with_the_products_own_crds_accepts_their_objects(kubectl: Kubectl, body: Object) -> None:
    _install(kubectl, body["apiVersion"].partition("/")[0], body["kind"])
    said = eventually(lambda: _served(_dry_run(kubectl, body)), body["kind"])
    assert "serverside-applied (server dry run)" in said, said


def _served(said: str) -> str:
    return "" if "no matches for kind" in said else said


def _install(kubectl: Kubectl, group: str, kind: str) -> None:
    for path in sorted(Path(CRDS).glob("*.y*ml")):
        for body in yaml.safe_load_all(path.read_text()):
            if body and body.get("spec", {}).get("group") == group and body["spec"]["names"]["kind"] == kind:
                said = kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(body))
                assert "serverside-applied" in said, said
                return
    pytest.fail(f"no CRD for {kind} of {group} in {CRDS}")


# -- health


def _spec(**changes: Any) -> Object:
    spec: Object = Page("gitops.md").object("proxy")["spec"]
    spec["mail"].pop("sslCertificate")
    return {**spec, "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 143}]}], **changes}


def _apply(world: World, spec: Object) -> None:
    body = {**Page("gitops.md").object("proxy"), "spec": spec}
    body["metadata"] = {"name": "edge", "namespace": world.namespace}
    _ = world.api.apply(body).checked_body


def test_operators_status_is_health_for_argo_cd_and_kstatus(world: World, needs: Needs) -> None:
    lua = needs("lua5.1")
    _apply(world, _spec())
    assert health(lua, world.mail_proxy())[0] == "Progressing"
    settled = world.settle()
    assert health(lua, settled)[0] == "Healthy"
    assert _kstatus(settled) == "Current"

    _apply(world, _spec(paused=True))
    world.until(lambda: _kstatus(world.mail_proxy()) == "Current", "a status of the new generation")
    assert health(lua, world.mail_proxy())[0] == "Suspended"

    if world.cluster.is_real:
        _apply(world, _spec(pod={"extraEnv": [{"name": "A", "valu": "b"}]}))
        world.until(lambda: health(lua, world.mail_proxy())[0] == "Degraded", "the rejection")
        assert _kstatus(world.mail_proxy()) == "Failed"


def _kstatus(body: Object) -> str:
    """The rules of kstatus for a custom resource, in their order."""
    status = body.get("status") or {}
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        return "InProgress"
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    if conditions["Reconciling"] == "True":
        return "InProgress"
    if conditions["Stalled"] == "True":
        return "Failed"
    return "Current" if conditions["Ready"] == "True" else "InProgress"


# -- drift


BUNDLE: Final = base64.b64encode(b"an authority").decode()
SERVER_SIDE: Final = ("--server-side", "--force-conflicts", "--field-manager=argocd-controller")


@pytest.fixture
def webhook(tmp_path: Path) -> Object:
    """The webhook's configuration, as the chart renders it."""
    path = find_tool("helm", tmp_path)
    if path is None:
        pytest.skip("needs helm: https://helm.sh/docs/intro/install/, on the path or in $HELM")
    objects = release_objects(Helm(path, tmp_path), "mp", "mail", {"webhook": {"enabled": True}})
    return find_object(objects, "MutatingWebhookConfiguration")


def _bundle(kubectl: Kubectl, name: str) -> str:
    where = "jsonpath={.webhooks[0].clientConfig.caBundle}"
    return kubectl("get", "mutatingwebhookconfiguration", name, "-o", where)


def _write_bundle(kubectl: Kubectl, webhook: Object) -> None:
    """Act as the operator."""
    change = {
        "webhooks": [
            {"name": one["name"], "clientConfig": {"caBundle": BUNDLE}} for one in webhook["webhooks"]
        ]
    }
    name = webhook["metadata"]["name"]
    said = kubectl(
        "patch", "mutatingwebhookconfiguration", name, "--type=strategic", "-p", json.dumps(change)
    )
    assert "patched" in said, said
    assert _bundle(kubectl, name) == BUNDLE


@pytest.mark.parametrize("options", [SERVER_SIDE, ()], ids=["server-side", "client-side"])
def test_applying_the_chart_again_keeps_the_ca_bundle(
    kubectl: Kubectl, webhook: Object, options: tuple[str, ...]
) -> None:
    webhook["metadata"]["name"] = name = f"applied-{len(options)}"
    for _ in range(2):
        said = kubectl("apply", *options, "-f", "-", stdin=json.dumps(webhook))
        assert name in said, said
        if not _bundle(kubectl, name):
            _write_bundle(kubectl, webhook)
    assert _bundle(kubectl, name) == BUNDLE
    difference = kubectl("diff", *options, "-f", "-", stdin=json.dumps(webhook))
    assert "caBundle" not in difference, difference


def test_replacing_the_configuration_loses_the_ca_bundle(kubectl: Kubectl, webhook: Object) -> None:
    webhook["metadata"]["name"] = name = "replaced"
    kubectl("create", "-f", "-", stdin=json.dumps(webhook))
    _write_bundle(kubectl, webhook)
    said = kubectl("replace", "-f", "-", stdin=json.dumps(webhook))
    assert "replaced" in said, said
    assert _bundle(kubectl, name) == ""

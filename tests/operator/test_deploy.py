# SPDX-License-Identifier: Apache-2.0
"""The shipped manifests: the examples are valid, and the rights are exactly those that are used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_config.decode import parse_json
from mailproxy_config.rendered import parse_rendered
from mailproxy_demo.manifest_file import read_resource
from mailproxy_operator.api.kinds import (
    BACKEND_TLS_POLICY,
    DAEMON_SET,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    LEASE,
    MAIL_PROXY,
    OWNED,
    POD,
    Kind,
)
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.render.manifest_text import rendered_text
from mailproxy_operator.settings import Platform
from support.backend_tls import policy
from support.operator_bodies import body
from support.operator_fakekube import KINDS, FakeKube
from support.operator_running import running, until

DEPLOY = Path(__file__).parents[2] / "deploy"
EXAMPLES = sorted((DEPLOY / "examples").glob("*.yaml"))
Permission = tuple[str, str, str]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_rendered_configuration_of_every_example_loads(example: Path) -> None:
    plan = planned(Resource.read(read_resource(example.read_text(), example.name)), Platform())
    loaded, _ = parse_rendered(parse_json(plan.document))
    assert loaded == plan.config
    assert rendered_text(example.read_text(), example.name, Platform())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", [KubeVersion(1, 29), KubeVersion(1, 30), KubeVersion(1, 36)])
def test_every_example_meets_the_restricted_standard(example: Path, version: KubeVersion) -> None:
    resource = Resource.read(read_resource(example.read_text(), example.name))
    for manifest in render(planned(resource, Platform(kube_version=version))):
        if manifest["kind"] in {"Deployment", "DaemonSet"}:
            _assert_restricted(manifest["spec"]["template"]["spec"])


def test_operator_pod_meets_restricted_standard() -> None:
    [deployment] = [one for one in _documents("operator.yaml") if one["kind"] == "Deployment"]
    _assert_restricted(deployment["spec"]["template"]["spec"])


def _assert_restricted(spec: dict[str, Any]) -> None:
    context = spec["securityContext"]
    assert context["runAsNonRoot"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.get("hostNetwork")
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", []))
        assert all(
            "host" not in probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")
        )
    for volume in spec["volumes"]:
        assert {"configMap", "secret", "projected", "emptyDir"} & volume.keys()


def test_kustomization_lists_all_manifests() -> None:
    [kustomization] = _documents("kustomization.yaml")
    assert sorted(kustomization["resources"]) == ["crd.yaml", "operator.yaml", "rbac.yaml"]


def _documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DEPLOY / name).read_text()) if one]


def _granted() -> set[Permission]:
    documents = _documents("rbac.yaml")
    # The roles for users have no binding: they are aggregated into the cluster's own roles.
    bound = {one["roleRef"]["name"] for one in documents if "roleRef" in one}
    roles = [one for one in documents if one["metadata"]["name"] in bound]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role.get("rules", [])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_no_permission_for_secrets_and_no_wildcard() -> None:
    granted = _granted()
    assert not [right for right in granted if right[1].startswith("secrets") or "*" in right]


async def test_permissions_are_exactly_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy_operator.api.leader_election.RENEW_SECONDS", 0.2)
    async with FakeKube() as kube:
        async with running(kube, lease_namespace="mail", identity="test"):
            await _exercise_all_permissions(kube)
        used = {right for verb, kind, sub in kube.requests for right in _permissions(verb, kind, sub)}
    # Required by an admission plugin of OpenShift, not by a request of the operator.
    used.add(("mailproxy.dev", "mailproxies/finalizers", "update"))
    used.add(("coordination.k8s.io", "leases", "delete"))
    # An object that exists but is not in the cache is read by name; the webhook reads MailProxies.
    used |= {right for kind in (*OWNED, MAIL_PROXY) for right in _permissions("get", kind.name, "")}
    assert used == _granted()


async def _exercise_all_permissions(kube: FakeKube) -> None:
    """One resource uses every kind, stops using them, and gets pods in every state."""
    everything = {
        "autoscaling": {"maxReplicas": 3},
        "networkPolicy": {"enabled": True},
        "monitoring": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
    }
    kube.put(policy())
    mail = {"authHttp": "http://auth/", "proxySsl": "Enabled", "proxySslService": {"name": "dovecot"}}
    upstreams = [{"name": "dovecot", "service": {"name": "dovecot"}}]
    kube.put(body(**everything, mail=mail, upstreams=upstreams))
    await until(lambda: "status" in kube.found(BACKEND_TLS_POLICY, "dovecot"))
    await until(lambda: kube.find(DEPLOYMENT, "edge") and len(kube.names(OWNED[-1])) == 1)
    template = kube.found(DEPLOYMENT, "edge")["spec"]["template"]["metadata"]
    _put_pod(kube, "edge-starting", template, {"phase": "Pending"})
    refused = {"phase": "Failed", "reason": "SysctlForbidden", "message": 'forbidden sysctl: "a.b"'}
    _put_pod(kube, "edge-refused", template, refused)
    await until(lambda: kube.names(POD) == ["edge-starting"])
    await until(
        lambda: kube.found(POD, "edge-starting")["metadata"]["annotations"].get("mailproxy.dev/config-hash")
    )
    kube.put(body(mode="DaemonSet"))
    await until(lambda: kube.find(DAEMON_SET, "edge"))
    _set_available(kube)
    await until(lambda: not kube.names(DEPLOYMENT))
    kube.put(body(mode="Sidecar"))
    await until(lambda: not kube.names(DAEMON_SET))
    await asyncio.sleep(0.3)


def _put_pod(kube: FakeKube, name: str, template: dict[str, Any], status: dict[str, Any]) -> None:
    owner = {"kind": "ReplicaSet", "name": "edge-1", "uid": "of-a-replica-set", "controller": True}
    metadata = {"name": name, "namespace": "mail", "ownerReferences": [owner], **template}
    kube.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status})


def _set_available(kube: FakeKube) -> None:
    live = kube.found(DAEMON_SET, "edge")
    numbers = (
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "updatedNumberScheduled",
        "numberAvailable",
    )
    live["status"] = {"observedGeneration": 1, **dict.fromkeys(numbers, 1)}
    kube.put(live, manager="kube-controller-manager")


_VERBS = {"post": ("create",), "put": ("update",), "apply": ("patch", "create")}


def _permissions(verb: str, kind_name: str, sub: str) -> set[Permission]:
    kinds = {
        kind.name: kind
        for kind in KINDS
        if kind.name not in {"Event", "Namespace", "CustomResourceDefinition"}
    }
    if kind_name == "Event":
        return {("events.k8s.io", "events", "create")} if verb == "post" else {("", "events", "list")}
    kind: Kind = kinds[kind_name]
    group = kind.api_version.rpartition("/")[0]
    resource = f"{kind.plural}/{sub}" if sub else kind.plural
    # An apply may create, except for a subresource; the right to create is then required as well.
    verbs = ("patch",) if sub else _VERBS.get(verb, (verb,))
    assert kind in {*OWNED, MAIL_PROXY, POD, LEASE, BACKEND_TLS_POLICY, ENDPOINT_SLICE}
    return {(group, resource, one) for one in verbs}

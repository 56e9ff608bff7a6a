# SPDX-License-Identifier: Apache-2.0
"""Sidecars on a real API server: pods are created through the webhook, and the result is validated."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from support.kube_api import PLURALS, Object, Response, path_of
from support.kube_cluster import Cluster, Operator, manifests
from support.kube_world import Addresses, World
from support.operator_bodies import server
from support.servers.programs import Ports, eventually

pytestmark = pytest.mark.kubernetes

INJECT: Final = "mailproxy.dev/inject"
WEBHOOK: Final = "MutatingWebhookConfiguration"
RESTRICTED: Final = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
APPLICATION: Final[Object] = {
    "name": "dovecot",
    "image": "dovecot",
    "ports": [{"containerPort": 31143}],
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
SPEC: Final[dict[str, Any]] = {
    "mode": "Sidecar",
    "drain": {"delay": "2s", "timeout": "10s"},
    "mail": {"authHttp": "http://127.0.0.1:9000/auth", "sslCertificate": [{"secretName": "mail-tls"}]},
    "servers": [
        {"name": "imap", "protocol": "imap", "listen": [{"port": 993, "ssl": True}]},
        {"name": "local", "protocol": "imap", "listen": [{"address": "unix:/run/mailproxy/imap.sock"}]},
    ],
}


@dataclass
class Site:
    """An API server that calls a webhook, and the operator that serves it."""

    cluster: Cluster
    operator: Operator
    options: list[str]


@pytest.fixture(scope="module")
def site(real: Cluster) -> Iterator[Site]:
    """The operator with its webhook, with the rights of ``deploy/`` and no others."""
    PLURALS.setdefault(WEBHOOK, ("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"))
    PLURALS.setdefault("StatefulSet", ("apps/v1", "statefulsets"))
    port = Ports().take()
    for manifest in manifests("webhook", "rbac.yaml"):
        _ = real.api.apply(manifest).checked_body
    [configuration] = [one for one in manifests("webhook", "webhook.yaml") if one["kind"] == WEBHOOK]
    # The API server of a test cannot connect to Services.
    configuration["webhooks"][0]["clientConfig"] = {"url": f"https://127.0.0.1:{port}/inject"}
    configuration["metadata"]["namespace"] = ""
    _ = real.api.apply(configuration).checked_body
    options = [f"--webhook=127.0.0.1:{port}", "--resync=30"]
    operator = Operator(real, "sidecars", real.kubeconfig("sidecars", real.operator_token()), options)
    found = Site(real, operator, options)
    try:
        operator.started()
        eventually(
            lambda: operator.admin.request("GET", "/readyz").status == 200, "the webhook to be trusted"
        )
        yield found
    finally:
        found.operator.stop()
        real.api.delete(WEBHOOK, "", "mailproxy-operator")


@pytest.fixture
def place(site: Site, addresses: Addresses) -> Iterator[World]:
    """A namespace that enforces the *restricted* Pod Security standard."""
    world = World(site.cluster, site.operator, addresses)
    _ = world.api.patch("Namespace", "", world.namespace, {"metadata": {"labels": RESTRICTED}}).checked_body
    account = {"metadata": {"name": "default", "namespace": world.namespace}}
    _ = world.api.create({"apiVersion": "v1", "kind": "ServiceAccount", **account}).checked_body
    yield world
    world.close()


def pod(world: World, name: str, label: str | None = "edge", **spec: Any) -> Object:
    labels = {"app": "dovecot", **({INJECT: label} if label else {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": world.namespace, "labels": labels},
        "spec": {"containers": [copy.deepcopy(APPLICATION)], **spec},
    }


def created(world: World, made: Object, **query: str) -> Response:
    return world.api.create(made, **query)


def sidecar_of(made: Object) -> Object | None:
    found = [one for one in made["spec"].get("initContainers", []) if one["name"] == "mailproxy"]
    return found[0] if found else None


def test_labelled_pod_is_created_with_sidecar(place: World) -> None:
    place.put(**SPEC)
    response = created(place, pod(place, "dovecot-0"))
    made = response.checked_body
    container = sidecar_of(made)
    assert container is not None
    assert made["metadata"]["labels"]["mailproxy.dev/proxy"] == "edge"
    assert container["restartPolicy"] == "Always"
    assert container["args"][:2] == ["run", "-f"]
    assert [port["containerPort"] for port in container["ports"]] == [993, 9113]
    assert made["spec"]["securityContext"]["sysctls"] == [
        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "993"}
    ]
    digest = eventually(lambda: place.status().get("configHash"), "the status")
    assert made["metadata"]["annotations"]["mailproxy.dev/config-hash"] == digest
    assert not response.warnings


def test_proxy_has_no_token_of_application(place: World) -> None:
    place.put(**SPEC)
    made = created(place, pod(place, "dovecot-0")).checked_body
    container = sidecar_of(made)
    assert container is not None
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    token = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert mounts[token] == "mailproxy-no-token"
    application = {one["mountPath"]: one["name"] for one in made["spec"]["containers"][0]["volumeMounts"]}
    assert application[token].startswith("kube-api-access")
    assert application["/run/mailproxy"] == mounts["/run/mailproxy"] == "mailproxy-sockets"


def test_resync_changes_nothing(place: World) -> None:
    place.put(**SPEC)
    first = created(place, pod(place, "dovecot-0")).checked_body
    again = {**first, "metadata": {"name": "dovecot-1", "namespace": place.namespace}}
    again["metadata"] |= {key: first["metadata"][key] for key in ("labels", "annotations")}
    assert created(place, again).checked_body["spec"] == first["spec"]


def test_other_pods_are_not_changed(place: World) -> None:
    place.put(**SPEC)
    plain = pod(place, "postfix-0", label=None)
    made = created(place, plain).checked_body
    assert "initContainers" not in made["spec"]
    assert "annotations" not in made["metadata"]


@pytest.mark.parametrize(
    ("label", "spec", "expected"),
    [
        ("nobody", {}, "there is no MailProxy nobody"),
        ("edge", {"mode": "Deployment"}, "MailProxy edge has mode Deployment"),
        ("edge", {"sidecar": {"selector": {"matchLabels": {"app": "cyrus"}}}}, "is for other pods"),
        ("edge", {"servers": [server("imap", "imap", 31143)]}, "port 31143 is used by container dovecot"),
    ],
)
def test_conflicting_pod_runs_without_sidecar_and_is_reported(
    place: World, label: str, spec: dict[str, Any], expected: str
) -> None:
    place.put(**{**SPEC, **spec})
    response = created(place, pod(place, "dovecot-0", label))
    assert sidecar_of(response.checked_body) is None
    assert any(expected in warning for warning in response.warnings)
    events = place.api.list("Event", place.namespace)
    assert [one["reason"] for one in events if expected in one["note"]] == ["SidecarMissing"]


def test_failure_policy_fail_denies_pods(place: World) -> None:
    place.put(**{**SPEC, "sidecar": {"failurePolicy": "Fail", "selector": {"matchLabels": {"app": "cyrus"}}}})
    response = created(place, pod(place, "dovecot-0"))
    assert response.status == 403
    assert "is for other pods" in response.message
    assert place.find("Pod", "dovecot-0") is None


def test_dry_run_request_creates_no_event(place: World) -> None:
    response = created(place, pod(place, "dovecot-0", "nobody"), dryRun="All")
    assert any("there is no MailProxy nobody" in warning for warning in response.warnings)
    assert place.api.list("Event", place.namespace) == []


def test_sidecar_mode_creates_only_needed_objects(place: World) -> None:
    place.put(**SPEC)
    eventually(lambda: place.find("ConfigMap", "edge-config"), "the ConfigMap")
    eventually(lambda: place.condition("Ready") == ("True", "Ready"), "the status")
    assert set(place.children()) == {("ConfigMap", "edge-config")}
    place.put(**{**SPEC, "service": {}})
    service = eventually(lambda: place.find("Service"), "the Service")
    assert service["spec"]["selector"] == {INJECT: "edge"}
    assert [(one["port"], one["targetPort"]) for one in service["spec"]["ports"]] == [(993, 993)]


def test_status_counts_pods_by_sidecar_and_configuration(place: World) -> None:
    place.put(**SPEC)
    for name in ("dovecot-0", "dovecot-1"):
        _ = created(place, pod(place, name)).checked_body
    eventually(lambda: numbers(place) == (2, 0, 0), "the pods to be counted")
    digest = place.status()["configHash"]
    for name in ("dovecot-0", "dovecot-1"):
        run(place, name)
    place.endpoints["dovecot-0"].hash = digest
    place.endpoints["dovecot-1"].hash = "an older one"
    eventually(lambda: numbers(place) == (2, 2, 1), "the older one to be noticed")
    assert place.condition("ConfigSynced") == ("False", "ConfigPropagating")
    place.endpoints["dovecot-1"].hash = digest
    eventually(lambda: place.condition("Ready") == ("True", "Ready"), "both to be in sync", timeout=60.0)
    assert numbers(place) == (2, 2, 2)
    assert "pods with the sidecar: 2, ready: 2" in place.message("Available")
    place.put(**{**SPEC, "workerConnections": 99})
    eventually(lambda: place.status()["configHash"] != digest, "the new configuration")
    newer = place.status()["configHash"]

    def config_hashes() -> list[str]:
        pods = [place.found("Pod", name) for name in ("dovecot-0", "dovecot-1")]
        return [one["metadata"]["annotations"]["mailproxy.dev/config-hash"] for one in pods]

    eventually(lambda: config_hashes() == [newer, newer], "the pods to be annotated")


def numbers(world: World) -> tuple[int | None, ...]:
    """Return the counts of pods with the sidecar, of ready pods, and of pods with the new configuration."""
    return tuple(world.status().get(name) for name in ("replicas", "readyReplicas", "podsSynced"))


def run(world: World, name: str) -> None:
    """Act as the kubelet: the proxy runs and is ready in its init container."""
    world.run_pod(name)
    status = world.found("Pod", name)["status"]
    [running] = status["containerStatuses"]
    _ = world.api.patch_status(
        "Pod", world.namespace, name, {"initContainerStatuses": [running]}
    ).checked_body


def test_pods_are_created_while_operator_is_down(site: Site, place: World) -> None:
    place.put(**SPEC)
    site.operator.stop()
    assert site.operator.process.returncode == 0
    try:
        made = created(place, pod(place, "dovecot-0")).checked_body
        assert sidecar_of(made) is None
    finally:
        kubeconfig = site.cluster.kubeconfig("sidecars", site.cluster.operator_token())
        site.operator = Operator(site.cluster, "sidecars-2", kubeconfig, site.options).started()
    ready = "/readyz"
    eventually(
        lambda: site.operator.admin.request("GET", ready).status == 200, "the webhook to be trusted again"
    )
    assert sidecar_of(created(place, pod(place, "dovecot-1")).checked_body) is not None
    without = "1 pod requests the sidecar and runs without it"
    eventually(lambda: without in place.message("Available"), "the other one to be counted")


def test_permissions_of_webhook_are_exactly_those_in_use(site: Site, place: World) -> None:
    assert site.cluster.server is not None
    used = {
        (one.verb, one.name)
        for one in site.cluster.server.requests()
        if one.resource == "mutatingwebhookconfigurations" and one.user.startswith("system:serviceaccount")
    }
    assert used == {("get", "mailproxy-operator"), ("patch", "mailproxy-operator")}
    path = path_of("Secret", place.namespace)
    token = site.cluster.operator_token()
    assert site.cluster.server.as_bearer(token).request("GET", path).status == 403


def test_example_runs_in_restricted_namespace(place: World) -> None:
    for manifest in manifests("examples", "sidecar.yaml"):
        _ = place.api.apply(
            {**manifest, "metadata": {**manifest["metadata"], "namespace": place.namespace}}
        ).checked_body
    template = place.found("StatefulSet", "dovecot")["spec"]["template"]
    claim = {"name": "mail", "persistentVolumeClaim": {"claimName": "mail-dovecot-0"}}
    spec = {**template["spec"], "volumes": [*template["spec"]["volumes"], claim]}
    metadata = {"name": "dovecot-0", "namespace": place.namespace, "labels": template["metadata"]["labels"]}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    response = created(place, made)
    assert sidecar_of(response.checked_body) is not None
    assert not response.warnings
    eventually(lambda: place.status("dovecot").get("replicas") == 1, "the pod to be counted")
    service = place.found("Service", "dovecot")["spec"]
    assert service["selector"] == {INJECT: "dovecot"}
    assert {one["targetPort"] for one in service["ports"]} == {143, 993}

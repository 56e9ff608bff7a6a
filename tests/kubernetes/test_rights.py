# SPDX-License-Identifier: Apache-2.0
"""Least privilege: ``deploy/rbac.yaml`` grants exactly the rights that a real API server has seen used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from mailproxy_operator.api.kinds import MAIL_PROXY, OWNED
from support.backend_tls import definition, policy
from support.kube_api import Object
from support.kube_cluster import SYSTEM, USER, Cluster, Operator, manifests, real_cluster
from support.kube_server import Request, programs
from support.kube_world import Addresses, World
from support.servers.programs import eventually

pytestmark = pytest.mark.kubernetes

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""

MONITORING: Final = {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}
EVERYTHING: Final = {
    "autoscaling": {"minReplicas": 2, "maxReplicas": 3, "targetCPUUtilizationPercentage": 70},
    "networkPolicy": {"enabled": True},
    "monitoring": MONITORING,
}
ASKED_BY_ADMISSION: Final[set[Right]] = {
    ("mailproxy.dev", "mailproxies/finalizers", "update"),
    ("coordination.k8s.io", "leases", "delete"),
}
"""Required by OwnerReferencesPermissionEnforcement, which this API server enables, and by no request."""


@dataclass
class Life:
    """An API server on which an operator has been through every kind of event."""

    cluster: Cluster
    world: World

    def requests(self) -> list[Request]:
        """Return the requests of the operator."""
        assert self.cluster.server is not None
        return self.cluster.server.requests(USER)


def additional_kind(name: str, plural: str) -> Object:
    """Return a definition like those of the Prometheus operator, without its schema."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": name, "plural": plural, "singular": name.lower(), "listKind": f"{name}List"},
            "versions": [version],
        },
    }


@pytest.fixture(scope="module")
def life(real: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A separate API server, so that the requests of other tests are not counted."""
    found = programs()
    assert found is not None, "there is one already"
    del real
    with real_cluster(found, tmp_path_factory.mktemp("rights")) as cluster:
        kubeconfig = cluster.kubeconfig("operator", cluster.operator_token())
        options = ["--resync=5", f"--lease-namespace={SYSTEM}"]
        before = Operator(cluster, "without-monitoring", kubeconfig, options)
        world = World(cluster, before, Addresses())
        try:
            _without_monitoring(world)
            before.stop()
            after = Operator(cluster, "with-monitoring", kubeconfig, options)
            world.operator = after
            try:
                _with_everything(world)
                yield Life(cluster, world)
            finally:
                after.stop()
        finally:
            before.stop()
            world.close()


def _without_monitoring(world: World) -> None:
    """A cluster without the kinds of the Prometheus operator: those are skipped, the others are created."""
    world.put(monitoring=MONITORING)
    world.settle()
    _ = world.api.apply(definition("v1")).checked_body
    policies = "/apis/gateway.networking.k8s.io/v1/backendtlspolicies"
    eventually(lambda: world.api.get(policies).status == 200, "BackendTLSPolicy")
    for name, plural in (("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")):
        _ = world.api.apply(additional_kind(name, plural)).checked_body
        listing = f"/apis/monitoring.coreos.com/v1/{plural}"
        eventually(lambda listing=listing: world.api.get(listing).status == 200, name)  # type: ignore[misc]


def _with_everything(world: World) -> None:
    """One resource uses every kind, stops using them, and gets pods in every state."""
    _ = world.api.apply(policy(namespace=world.namespace)).checked_body
    mail = {"authHttp": "http://auth/", "proxySsl": "Enabled", "proxySslService": {"name": "dovecot"}}
    upstreams = [{"name": "dovecot", "service": {"name": "dovecot"}}]
    world.put(**EVERYTHING, mail=mail, upstreams=upstreams)
    world.until(lambda: world.condition("GroupsReady") == ("False", "ServiceNotFound"), "the condition")
    world.until(lambda: "status" in world.found("BackendTLSPolicy", "dovecot"), "the status of the policy")
    kinds = ("HorizontalPodAutoscaler", "NetworkPolicy", "PodMonitor", "PrometheusRule")
    world.until(lambda: all(world.find(kind) for kind in kinds), "every kind")
    _edit_a_port(world)
    _handle_pods(world)
    world.put(mode="DaemonSet", pod={"serviceAccountName": "their-own"})
    world.until(lambda: world.find("DaemonSet"), "the DaemonSet")
    world.report(world.found("DaemonSet"), 1)
    world.until(lambda: not any(world.find(kind) for kind in ("Deployment", *kinds)), "the pruning")
    world.put(mode="Sidecar")
    world.until(lambda: world.find("DaemonSet") is None and world.find("Service") is None, "the pruning")
    world.until(lambda: world.condition() == ("True", "Ready"), "the end")


def _edit_a_port(world: World) -> None:
    edited = world.found("Service")
    edited["spec"]["ports"][0]["port"] = 144
    _ = world.api.replace(edited).checked_body
    world.until(lambda: world.found("Service")["spec"]["ports"][0]["port"] == 143, "the repair")


def _handle_pods(world: World) -> None:
    world.make_pod("edge-starting", world.found("Deployment"))
    world.make_pod("edge-refused", world.found("Deployment"))
    message = 'forbidden sysctl: "net.ipv4.ip_unprivileged_port_start" not allowlisted'
    world.set_pod_status("edge-refused", {"phase": "Failed", "reason": "SysctlForbidden", "message": message})
    world.until(lambda: world.find("Pod", "edge-refused") is None, "the refused pod to go")
    hashed = "mailproxy.dev/config-hash"
    world.until(lambda: hashed in world.found("Pod", "edge-starting")["metadata"]["annotations"], "the hash")
    world.remove_pod("edge-starting")


def granted() -> dict[str, set[Right]]:
    """Return the rights in ``deploy/rbac.yaml``, by scope: the whole cluster, or the operator's namespace."""
    documents = manifests("rbac.yaml")
    bound = {
        (one["roleRef"]["kind"], one["roleRef"]["name"])
        for one in documents
        if any(subject["name"] == "mailproxy-operator" for subject in one.get("subjects", []))
    }
    found: dict[str, set[Right]] = {"ClusterRole": set(), "Role": set()}
    for role in documents:
        if (role["kind"], role["metadata"]["name"]) in bound:
            found[role["kind"]] |= {right for rule in role["rules"] for right in _permissions(rule)}
    return found


def _permissions(rule: dict[str, Any]) -> Iterator[Right]:
    for group in rule.get("apiGroups", []):
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                yield group, resource, verb


def used(requests: list[Request]) -> set[Right]:
    """Return the rights that these requests needed."""
    found = {(one.group, one.resource, one.verb) for one in requests if one.resource}
    return found | {(one.group, one.resource, "create") for one in requests if one.created}


def test_no_request_of_operator_is_forbidden(life: Life) -> None:
    assert [one for one in life.requests() if one.code in {401, 403}] == []


def test_permissions_are_exactly_those_in_use(life: Life) -> None:
    rights = granted()
    # An object that exists but is not in the cache is read by name; the webhook reads MailProxies.
    by_name = {(kind.api_version.rpartition("/")[0], kind.plural, "get") for kind in (*OWNED, MAIL_PROXY)}
    by_name = {("" if group == "v1" else group, plural, verb) for group, plural, verb in by_name}
    assert used(life.requests()) | ASKED_BY_ADMISSION | by_name == rights["ClusterRole"] | rights["Role"]


def test_lease_is_used_only_in_operator_namespace(life: Life) -> None:
    leases = [one for one in life.requests() if one.resource == "leases"]
    assert {one.namespace for one in leases} == {SYSTEM}
    of_leases = {right for right in ASKED_BY_ADMISSION if right[1] == "leases"}
    assert used(leases) | of_leases == granted()["Role"]


def test_no_secret_is_requested(life: Life) -> None:
    assert [one.path for one in life.requests() if one.resource.startswith("secrets")] == []
    everything = granted()["ClusterRole"] | granted()["Role"]
    assert not any("*" in right or right[1].startswith("secrets") for right in everything)


def test_service_account_has_no_other_permissions(life: Life) -> None:
    assert life.cluster.server is not None
    account = life.cluster.server.as_bearer(life.cluster.operator_token())
    namespace = life.world.namespace
    for method, path in (
        ("GET", f"/api/v1/namespaces/{namespace}/secrets"),
        ("GET", "/api/v1/nodes"),
        ("POST", f"/api/v1/namespaces/{namespace}/pods"),
        ("DELETE", f"/apis/mailproxy.dev/v1alpha1/namespaces/{namespace}/mailproxies/edge"),
        ("DELETE", f"/api/v1/namespaces/{namespace}/configmaps/edge-config"),
        ("GET", f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
    ):
        assert account.request(method, path, {} if method == "POST" else None).status == 403, path


def test_owner_references_need_permission_on_finalizers(life: Life) -> None:
    """This shows that the right is needed, although no request uses it."""
    owner = {
        "apiVersion": "mailproxy.dev/v1alpha1",
        "kind": "MailProxy",
        "name": "edge",
        "uid": life.world.mail_proxy()["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    child = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "child", "namespace": life.world.namespace, "ownerReferences": [owner]},
    }
    for role in ("mailproxy-operator", "without"):
        response = _user_with_role(life, role).request("POST", life.world.path("ConfigMap", ""), child)
        assert response.status == (201 if role == "mailproxy-operator" else 403), response
    assert "finalizers" in response.message


def _user_with_role(life: Life, role: str) -> Any:
    """Return a client with the operator's role, or with that role without the right on finalizers."""
    assert life.cluster.server is not None
    [rules] = [
        one["rules"]
        for one in manifests("rbac.yaml")
        if (one["kind"], one["metadata"]["name"]) == ("ClusterRole", "mailproxy-operator")
    ]
    if role == "without":
        kept = [rule for rule in rules if rule["resources"] != ["mailproxies/finalizers"]]
        made = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": kept}
        _ = life.cluster.api.apply({**made, "metadata": {"name": role}}).checked_body
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": role, "namespace": SYSTEM}}
    _ = life.cluster.api.apply(account).checked_body
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"test-{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": role, "namespace": SYSTEM}],
    }
    _ = life.cluster.api.apply(binding).checked_body
    user = life.cluster.server.as_bearer(life.cluster.server.token(SYSTEM, role))
    listing = life.world.path("ConfigMap", "")
    eventually(lambda: user.request("GET", listing).status == 200, "the rights")
    return user

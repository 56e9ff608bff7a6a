# SPDX-License-Identifier: Apache-2.0
"""BackendTLSPolicies on a real API server: each version of the kind, and its arrival in a running cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy_operator import main as operator_main
from support.backend_tls import config_map, definition, policy
from support.kube_api import APPLY, Object
from support.kube_cluster import Cluster, Operator, real_cluster
from support.kube_server import programs
from support.kube_world import Addresses, World
from support.servers.programs import eventually

pytestmark = pytest.mark.kubernetes

MAIL: Final = {
    "authHttp": "http://auth/",
    "proxySsl": "Starttls",
    "proxySslService": {"name": "dovecot"},
}
FOREIGN: Final = {
    "ancestorRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
    "controllerName": "example.org/gateway",
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "Accepted",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}


@pytest.fixture
def cluster(real: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """A separate API server: the kind would end the operators of other tests, which then start again."""
    del real
    found = programs()
    assert found is not None, "there is one already"
    with real_cluster(found, tmp_path) as made:
        yield made


@contextmanager
def world_of(cluster: Cluster, name: str) -> Iterator[World]:
    """A namespace with an operator that has the permissions of ``deploy/rbac.yaml``."""
    kubeconfig = cluster.kubeconfig(name, cluster.operator_token())
    operator = Operator(cluster, name, kubeconfig, ["--resync=30"])
    try:
        world = World(cluster, operator.started(), Addresses())
        try:
            yield world
        finally:
            world.close()
    finally:
        operator.stop()


class Policies:
    """The policies of a namespace, in one version."""

    def __init__(self, world: World, version: str) -> None:
        self.world = world
        self.version = version
        self.root = (
            f"/apis/gateway.networking.k8s.io/{version}/namespaces/{world.namespace}/backendtlspolicies"
        )

    def put(self, name: str = "dovecot", **more: Any) -> None:
        made = policy(name, namespace=self.world.namespace, version=self.version, **more)
        del made["metadata"]["creationTimestamp"]
        path = f"{self.root}/{name}?fieldManager=kubectl&force=true"
        _ = self.world.api.user.request("PATCH", path, made, APPLY).checked_body

    def set_ancestors(self, *entries: Object, name: str = "dovecot") -> None:
        change = {"status": {"ancestors": list(entries)}}
        path = f"{self.root}/{name}/status"
        response = self.world.api.user.request("PATCH", path, change, "application/merge-patch+json")
        _ = response.checked_body

    def ancestors(self, name: str = "dovecot") -> list[Object]:
        body = self.world.api.get(f"{self.root}/{name}").checked_body
        return list((body.get("status") or {}).get("ancestors") or [])

    def reported(self, name: str = "dovecot") -> dict[str, str]:
        """Return the reasons of the operator's entry."""
        own = [one for one in self.ancestors(name) if one["controllerName"] == "mailproxy.dev/operator"]
        return {one["type"]: one["reason"] for entry in own for one in entry["conditions"]}


def install(cluster: Cluster, *versions: str) -> None:
    _ = cluster.api.apply(definition(*versions)).checked_body
    for version in versions:
        path = f"/apis/gateway.networking.k8s.io/{version}/backendtlspolicies"
        eventually(lambda path=path: cluster.api.get(path).status == 200, path)  # type: ignore[misc]


def rendered(world: World) -> str:
    found = world.find("ConfigMap", "edge-config")
    return str(found["data"]["mailproxy.json"]) if found else ""


@pytest.mark.parametrize("versions", [("v1",), ("v1alpha3",), ("v1", "v1alpha3")], ids="+".join)
def test_policy_from_creation_to_deletion(cluster: Cluster, versions: tuple[str, ...]) -> None:
    install(cluster, *versions)
    with world_of(cluster, "policies") as world:
        policies = Policies(world, versions[0])
        world.put(mail=MAIL)
        world.until(lambda: "no BackendTLSPolicy is for" in world.message("Accepted"), "the notice")
        policies.put()
        policies.set_ancestors(FOREIGN)
        world.until(lambda: world.condition("ResolvedRefs")[1] == "InvalidBackendTLSPolicy", "the finding")
        world.until(
            lambda: policies.reported().get("ResolvedRefs") == "InvalidCACertificateRef", "its status"
        )
        _ = world.api.apply(config_map(namespace=world.namespace)).checked_body
        policies.put(hostname="new.example.com")  # an event: ConfigMaps of others are not watched
        world.until(lambda: "new.example.com" in rendered(world), "the change of the policy")
        world.until(lambda: policies.reported().get("ResolvedRefs") == "ResolvedRefs", "the ConfigMap")
        assert "configmaps/mail-ca/ca.crt" in rendered(world)
        policies.put("later")
        world.until(lambda: policies.reported("later").get("Accepted") == "Conflicted", "the conflict")
        assert FOREIGN in policies.ancestors()
        before = [world.api.get(f"{policies.root}/{name}").checked_body for name in ("dovecot", "later")]
        world.api.delete("MailProxy", world.namespace, "edge")
        world.until(lambda: policies.ancestors() == [FOREIGN], "the removal of the entry")
        world.until(lambda: policies.ancestors("later") == [], "the removal of the other entry")
        assert [one["metadata"]["generation"] for one in before] == [2, 1]


def test_kind_that_is_installed_later(cluster: Cluster) -> None:
    """Without the kind everything works; when it arrives, the operator ends, to be started again."""
    with world_of(cluster, "before") as world:
        world.put(mail=MAIL)
        world.settle()
        assert "the cluster has no BackendTLSPolicy" in world.message("Accepted")
        install(cluster, "v1")
        operator = world.operator
        assert operator is not None
        seconds = operator_main.KINDS_SECONDS + 30
        world.until(operator.has_exited, "the end of the operator", timeout=seconds)
        assert "the kinds of the cluster have changed: BackendTLSPolicy" in operator.output_text()
        world.operator = Operator(
            cluster, "after", cluster.kubeconfig("after", cluster.operator_token()), ["--resync=30"]
        ).started()
        try:
            _ = world.api.apply(config_map(namespace=world.namespace)).checked_body
            Policies(world, "v1").put()
            world.until(lambda: "imap.example.com" in rendered(world), "the policy")
        finally:
            world.operator.stop()

# SPDX-License-Identifier: Apache-2.0
"""An API server that refuses requests, or is restarted; credentials that expire; objects that disappear."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.kube_api import Object
from support.kube_cluster import ACCOUNT, SYSTEM, Cluster, Operator, real_cluster
from support.kube_server import KubeServer, programs
from support.kube_world import Addresses, World
from support.operator_bodies import server
from support.servers.programs import eventually

pytestmark = pytest.mark.kubernetes

LONG = 90.0
"""Seconds: the API server caches a valid token for ten, and the back-off after failures adds to that."""


@pytest.fixture(scope="module")
def own_cluster(real: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server that a test may stop without effect on other tests."""
    found = programs()
    assert found is not None, "there is one already"
    del real
    with real_cluster(found, tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture
def site(own_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[World]:
    """A namespace and an operator for these tests; the operator resyncs every few seconds."""
    kubeconfig = own_cluster.kubeconfig("operator", own_cluster.operator_token())
    operator = Operator(own_cluster, request.node.name, kubeconfig, ["--resync=5"])
    world = World(own_cluster, operator, Addresses())
    try:
        operator.started()
        yield world
    finally:
        operator.stop()
        world.close()


def api_server(world: World) -> KubeServer:
    assert world.cluster.server is not None
    return world.cluster.server


def running_operator(world: World) -> Operator:
    assert world.operator is not None
    return world.operator


def is_ready(operator: Operator) -> bool:
    return operator.admin.request("GET", "/readyz").status == 200


def test_restart_of_api_server(site: World) -> None:
    site.put()
    site.settle()
    api_server(site).stop()
    api_server(site).start()
    site.put(servers=[server("imap", "imap", 143, 993)])
    site.until(lambda: site.condition("Reconciling") == ("True", "RollingOut"), "work", timeout=LONG)
    site.api.delete("Service", site.namespace, "edge")
    site.until(lambda: site.find("Service"), "the Service again", timeout=LONG)


def test_changes_while_operator_is_down_are_found(site: World) -> None:
    site.put()
    site.settle()
    running_operator(site).stop()
    site.api.delete("Service", site.namespace, "edge")
    _ = site.api.patch("Deployment", site.namespace, "edge", {"spec": {"replicas": 9}}).checked_body
    _ = site.put("second")
    token = site.cluster.operator_token()
    again = Operator(site.cluster, "again", site.cluster.kubeconfig("operator", token))
    try:
        site.until(lambda: site.find("Service"), "the Service")
        site.until(lambda: site.found("Deployment")["spec"]["replicas"] == 2, "the replicas")
        site.until(lambda: site.find("Deployment", "second"), "the second one")
    finally:
        again.stop()


def test_operator_with_expired_token_waits_for_new_token(own_cluster: Cluster) -> None:
    world = World(own_cluster, None, Addresses())
    expired = api_server(world).expired_token(SYSTEM, ACCOUNT)
    operator = Operator(own_cluster, "expired", own_cluster.kubeconfig("expired", expired)).started()
    world.operator = operator
    try:
        operator.eventually(lambda: "may have expired" in operator.output_text(), "to be logged")
        assert not is_ready(operator)
        assert operator.admin.request("GET", "/healthz").status == 200, "starting it again would not help"
        assert expired not in operator.output_text()
        world.put()
        own_cluster.kubeconfig("expired", own_cluster.operator_token())
        world.until(lambda: world.find("Deployment"), "work")
        assert is_ready(operator)
        assert own_cluster.operator_token() not in operator.output_text()
    finally:
        operator.stop()
        world.close()


def test_expired_credentials_are_read_again(site: World) -> None:
    site.put()
    site.settle()
    operator = running_operator(site)
    site.api.delete("ServiceAccount", SYSTEM, ACCOUNT)
    api_server(site).stop()
    api_server(site).start()  # watches end, and start again with the old token
    site.operator.eventually(
        lambda: "watching: the API server" in site.operator.output_text(), "to be logged"
    )  # type: ignore[union-attr]
    assert not is_ready(site.operator)
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": ACCOUNT, "namespace": SYSTEM},
    }
    _ = site.api.apply(account).checked_body
    site.cluster.kubeconfig("operator", site.cluster.new_operator_token())
    site.put(servers=[server("imap", "imap", 143, 993)])
    site.until(lambda: site.condition("Reconciling") == ("True", "RollingOut"), "work", timeout=LONG)
    site.put("second")
    site.until(lambda: site.find("Deployment", "second"), "the watch", timeout=LONG)
    assert is_ready(operator)


def test_permissions_removed_and_restored(site: World) -> None:
    binding = "mailproxy-operator"
    before = site.api.found("ClusterRoleBinding", "", binding)
    site.api.delete("ClusterRoleBinding", "", binding)
    site.put()
    refused = "cannot get resource"
    operator = running_operator(site)
    operator.eventually(
        lambda: refused in operator.output_text() or "cannot list" in operator.output_text(), "to be logged"
    )
    kept = {"name": binding, "labels": before["metadata"]["labels"]}
    _ = site.api.create({**before, "metadata": kept}).checked_body
    site.until(lambda: site.condition() == ("False", "PodsNotReady"), "work", timeout=LONG)
    assert operator.process.poll() is None


def test_admission_policy_that_rejects_object_is_reported(site: World) -> None:
    policy: Object = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "no-services"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["services"],
                    }
                ]
            },
            "validations": [{"expression": "false", "message": "services are made by hand here"}],
        },
    }
    bound: Object = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no-services"},
        "spec": {"policyName": "no-services", "validationActions": ["Deny"]},
    }
    root = "/apis/admissionregistration.k8s.io/v1"
    _ = site.api.post(f"{root}/validatingadmissionpolicies", policy).checked_body
    _ = site.api.post(f"{root}/validatingadmissionpolicybindings", bound).checked_body
    probe = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "probe", "namespace": site.namespace},
        "spec": {"ports": [{"port": 1}]},
    }
    eventually(lambda: site.api.create(probe, dryRun="All").status >= 400, "the policy")
    site.put()
    site.until(lambda: site.condition("Accepted")[0] == "False", "the refusal")
    assert "services are made by hand here" in site.message("Accepted")
    assert "Service edge" in site.message("Accepted")
    for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        _ = site.api.user.request("DELETE", f"{root}/{plural}/no-services").checked_body
    eventually(lambda: site.api.create(probe, dryRun="All").status == 201, "the end of the policy")
    site.put(workers=2)
    site.until(lambda: site.condition("Accepted") == ("True", "Accepted"), "acceptance")


def test_resource_deleted_during_reconcile(site: World) -> None:
    for number in range(30):
        site.put(f"brief-{number}")
    for number in range(30):
        site.api.delete("MailProxy", site.namespace, f"brief-{number}")
    site.put("last")
    site.until(lambda: site.condition(name="last")[0], "the last one")
    assert [line for line in running_operator(site).lines() if "exception" in line] == []
    site.collect_garbage()
    site.put("later")
    site.until(lambda: site.condition(name="later")[0], "a later one")
    assert {name.split("-")[0] for _, name in site.children()} == {"last", "later"}

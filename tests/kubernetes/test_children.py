# SPDX-License-Identifier: Apache-2.0
"""The objects that the operator creates for a resource, and the repair of drift."""

from __future__ import annotations

from typing import Any

import pytest

from support.kube_api import Object
from support.kube_cluster import REAL
from support.kube_world import TEMPLATE_HASH, World
from support.operator_bodies import server

pytestmark = pytest.mark.kubernetes

only_real = pytest.mark.parametrize("cluster", [REAL], indirect=True, scope="session")
"""The emulated API server collects garbage at once."""

AUTH = {"authHttp": "http://auth.mail.svc:9000/auth"}


def settled_at(world: World, ready: tuple[str, str]) -> None:
    world.until(lambda: world.condition() == ready, f"Ready={ready}")


def container(deployment: Object) -> Object:
    found: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def managers(one: Object) -> set[str]:
    return {entry["manager"] for entry in one["metadata"]["managedFields"]}


def test_resource_owns_its_objects(world: World) -> None:
    made = world.put()
    settled_at(world, ("False", "PodsNotReady"))
    children = world.children()
    assert set(children) == {
        ("ServiceAccount", "edge"),
        ("ConfigMap", "edge-config"),
        ("Service", "edge"),
        ("Service", "edge-metrics"),
        ("PodDisruptionBudget", "edge"),
        ("Deployment", "edge"),
    }
    for child in children.values():
        [owner] = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (made["metadata"]["uid"], True)
        assert {entry["operation"] for entry in child["metadata"]["managedFields"]} == {"Apply"}
    metadata = world.settle()["metadata"]
    assert not {"finalizers", "annotations"} & metadata.keys()


@pytest.mark.parametrize(
    ("kind", "name", "edit", "kept"),
    [
        (
            "ConfigMap",
            "edge-config",
            {"data": {"mailproxy.json": "by hand", "theirs": "kept"}},
            lambda one: one["data"]["theirs"] == "kept",
        ),
        (
            "Service",
            "edge",
            {
                "metadata": {"annotations": {"theirs": "kept"}},
                "spec": {"selector": {"app.kubernetes.io/name": "x"}},
            },
            lambda one: one["metadata"]["annotations"] == {"theirs": "kept"},
        ),
        (
            "Deployment",
            "edge",
            {"metadata": {"annotations": {"theirs": "kept"}}, "spec": {"replicas": 7, "minReadySeconds": 99}},
            lambda one: one["metadata"]["annotations"]["theirs"] == "kept",
        ),
        (
            "PodDisruptionBudget",
            "edge",
            {"metadata": {"labels": {"theirs": "kept"}}, "spec": {"maxUnavailable": 9}},
            lambda one: one["metadata"]["labels"]["theirs"] == "kept",
        ),
    ],
)
def test_drift_is_repaired_and_foreign_fields_are_kept(
    world: World, kind: str, name: str, edit: Object, kept: Any
) -> None:
    world.put()
    world.settle()
    content = "data" if kind == "ConfigMap" else "spec"
    good = world.found(kind, name)[content]
    _ = world.api.patch(kind, world.namespace, name, edit).checked_body

    def is_repaired() -> bool:
        now = world.found(kind, name)[content]
        return all(now.get(field) == value for field, value in good.items())

    world.until(is_repaired, f"{kind} to be as it was")
    assert kept(world.found(kind, name))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ServiceAccount", "edge"),
        ("ConfigMap", "edge-config"),
        ("Service", "edge"),
        ("Service", "edge-metrics"),
        ("PodDisruptionBudget", "edge"),
        ("Deployment", "edge"),
    ],
)
def test_deleted_objects_are_created_again(world: World, kind: str, name: str) -> None:
    world.put()
    world.settle()
    old = world.found(kind, name)["metadata"]["uid"]
    world.api.delete(kind, world.namespace, name)
    made = world.until(lambda: world.find(kind, name), f"{kind} {name} again")
    assert made["metadata"]["uid"] != old


def test_removed_label_is_restored(world: World) -> None:
    world.put()
    world.settle()
    lost = {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}
    _ = world.api.patch("Service", world.namespace, "edge", lost).checked_body
    label = "app.kubernetes.io/managed-by"
    world.until(lambda: world.found("Service")["metadata"]["labels"].get(label), "the label")


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_edited_port_is_repaired_without_new_field_manager(world: World, kind: str) -> None:
    world.put(servers=[server("imap", "imap", 143, 993)])
    world.settle()
    field = "port" if kind == "Service" else "containerPort"

    def ports(one: Object) -> list[Object]:
        found: list[Object] = one["spec"]["ports"] if kind == "Service" else container(one)["ports"]
        return found

    def numbers() -> list[int]:
        return [port[field] for port in ports(world.found(kind))]

    good = numbers()
    edited = world.found(kind)
    next(port for port in ports(edited) if port["name"] == "imap-143")[field] = 144
    assert world.api.replace(edited).status == 200
    assert 144 in numbers() or numbers() == good
    world.until(lambda: numbers() == good, "the ports")
    world.until(lambda: not any("repair" in one for one in managers(world.found(kind))), "no trace")
    world.put(servers=[server("imap", "imap", 143)])
    world.until(lambda: numbers() == [number for number in good if number != 993], "the port to go")


def test_unused_objects_are_pruned(world: World) -> None:
    everything = {
        "autoscaling": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 70},
        "networkPolicy": {"enabled": True},
    }
    world.put(**everything)
    world.until(lambda: world.find("HorizontalPodAutoscaler") and world.find("NetworkPolicy"), "both")
    world.put()
    optional = ("HorizontalPodAutoscaler", "NetworkPolicy")
    world.until(lambda: not any(world.find(kind) for kind in optional), "the pruning")
    assert world.find("Deployment")


def test_foreign_object_of_same_name_is_reported_and_not_changed(world: World) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "edge-config", "namespace": world.namespace},
        "data": {"theirs": "kept"},
    }
    before = world.api.create(foreign).checked_body
    world.put()
    settled_at(world, ("False", "NameConflict"))
    assert "ConfigMap edge-config" in world.message()
    assert world.condition("Stalled") == ("True", "NameConflict")
    after = world.found("ConfigMap", "edge-config")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert {kind for kind, _ in world.children()} == {"ServiceAccount"}, "what comes before it in the order"
    world.api.delete("ConfigMap", world.namespace, "edge-config")
    world.put(workers=2)
    settled_at(world, ("False", "PodsNotReady"))


def test_invalid_resource_keeps_running_objects(world: World) -> None:
    world.put()
    good = world.settle()["status"]
    before = {at: one["spec"] for at, one in world.children().items() if "spec" in one}
    world.put(mail={**AUTH, "setRealIpFrom": ["192.0.2.0/99"]})
    settled_at(world, ("False", "InvalidSpec"))
    assert "spec.mail.setRealIpFrom[0]" in world.message()
    assert world.condition("Available") == ("True", "MinimumReplicasAvailable")
    assert world.condition("ConfigSynced") == ("True", "AllPodsSynced")
    assert world.status()["configHash"] == good["configHash"]
    assert {at: one["spec"] for at, one in world.children().items() if "spec" in one} == before
    world.put(mail={**AUTH, "setRealIpFrom": ["192.0.2.0/24"]})
    world.until(lambda: world.condition("Accepted") == ("True", "Accepted"), "acceptance")


def test_conflicting_listeners_are_reported(world: World) -> None:
    twice = [
        {"name": name, "protocol": "imap", "listen": [{"address": "[::]", "port": 143}]}
        for name in ("a", "b")
    ]
    world.put(servers=twice)
    settled_at(world, ("False", "ListenerConflict"))
    assert "spec.servers[1].listen[0]" in world.message()


def test_changed_port_replaces_pods_and_changed_directive_does_not(world: World) -> None:
    world.put()
    world.settle()
    template = world.found("Deployment")["spec"]["template"]
    world.put(mail={**AUTH, "timeout": "30s"})
    world.until(lambda: world.condition("ConfigSynced") == ("False", "ConfigPropagating"), "propagation")
    wanted = world.status()["configHash"]
    for pod in world.pods():
        assert pod["metadata"]["annotations"]["mailproxy.dev/config-hash"] == wanted
    assert world.found("Deployment")["spec"]["template"] == template
    world.report_config(wanted)
    settled_at(world, ("True", "Ready"))
    world.put(servers=[server("imap", "imap", 143, 993)])
    world.until(lambda: world.condition("Reconciling") == ("True", "RollingOut"), "a roll-out")
    after = world.found("Deployment")
    assert (
        after["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH]
        != (template["metadata"]["annotations"][TEMPLATE_HASH])
    )
    assert after["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    world.settle()


def test_replicas_are_handed_to_autoscaler_and_back(world: World) -> None:
    world.put(replicas=4)
    world.settle()
    world.put(autoscaling={"minReplicas": 2, "maxReplicas": 9, "targetCPUUtilizationPercentage": 70})
    world.until(lambda: world.find("HorizontalPodAutoscaler"), "the autoscaler")
    world.until(lambda: world.condition("Accepted")[0] == "True", "acceptance")
    assert world.found("Deployment")["spec"]["replicas"] == 4
    _ = world.api.patch("Deployment", world.namespace, "edge", {"spec": {"replicas": 6}}).checked_body
    world.put(
        autoscaling={"minReplicas": 2, "maxReplicas": 9, "targetCPUUtilizationPercentage": 70},
        servers=[server("imap", "imap", 143, 993)],
    )
    world.until(lambda: len(container(world.found("Deployment"))["ports"]) == 3, "the new port")
    assert world.found("Deployment")["spec"]["replicas"] == 6
    world.put(replicas=3)
    world.until(lambda: world.found("Deployment")["spec"]["replicas"] == 3, "three")
    assert world.until(lambda: world.find("HorizontalPodAutoscaler") is None, "its end")


def test_new_workload_is_available_before_old_one_is_deleted(world: World) -> None:
    world.put(replicas=1)
    before = world.settle()["status"]
    world.put(mode="DaemonSet")
    world.until(lambda: world.find("DaemonSet"), "the DaemonSet")
    world.until(lambda: world.condition("Available") == ("False", "PodsNotReady"), "the change")
    assert world.find("Deployment"), "the old pods serve until the new ones do"
    world.settle(kind="DaemonSet", count=1)
    world.until(lambda: world.find("Deployment") is None, "the end of the Deployment")
    assert world.find("PodDisruptionBudget") is None
    assert world.status().get("addresses") == before.get("addresses"), "clients need not notice"
    world.put(mode="Sidecar")
    settled_at(world, ("True", "Ready"))
    assert world.find("DaemonSet") is None
    assert world.find("ConfigMap", "edge-config")


def test_paused_resource_writes_status_only(world: World) -> None:
    world.put()
    world.settle()
    world.put(paused=True, mail={**AUTH, "timeout": "30s"}, replicas=5)
    world.until(lambda: world.condition("Reconciling") == ("False", "Paused"), "the pause")
    before = {at: version for at, version in world.versions().items() if at[0] != "MailProxy"}
    _ = world.api.patch("Deployment", world.namespace, "edge", {"spec": {"replicas": 7}}).checked_body
    world.put(paused=True, replicas=6)
    world.until(lambda: world.condition("Reconciling") == ("False", "Paused"), "the next reconcile")
    after = {at: version for at, version in world.versions().items() if at[0] != "MailProxy"}
    assert [at for at in before if before[at] != after.get(at)] == [("Deployment", "edge")]
    world.put(replicas=1)
    world.until(lambda: world.found("Deployment")["spec"]["replicas"] == 1, "work again")


def test_deletion_has_no_finalizer(world: World) -> None:
    world.put()
    world.settle()
    assert world.api.delete("MailProxy", world.namespace, "edge").status == 200
    assert world.find("MailProxy") is None, "no finalizer holds it"
    world.collect_garbage()
    assert world.children() == {}


@only_real
def test_recreated_resource_waits_for_garbage_collection(world: World) -> None:
    world.put()
    world.settle()
    _ = world.api.user.request(
        "DELETE", world.path("MailProxy"), {"propagationPolicy": "Background"}
    ).checked_body
    second = world.put()
    settled_at(world, ("False", "NameConflict"))
    world.collect_garbage()
    world.until(lambda: world.condition("Accepted") == ("True", "Accepted"), "acceptance")
    for child in world.children().values():
        assert child["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"]

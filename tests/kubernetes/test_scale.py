# SPDX-License-Identifier: Apache-2.0
"""The number of pods: set by the resource, by its scale, by our autoscaler or by the user's own."""

from __future__ import annotations

import pytest

from support.kube_api import Object
from support.kube_cluster import REAL
from support.kube_world import World
from support.kubectl import Kubectl
from support.operator_bodies import server

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.parametrize("cluster", [REAL], indirect=True, scope="session"),
]

AUTOSCALING = {"minReplicas": 2, "maxReplicas": 9, "targetCPUUtilizationPercentage": 70}


def replicas(world: World) -> int:
    return int((world.find("Deployment") or {"spec": {"replicas": 0}})["spec"]["replicas"])


def scale_of(world: World) -> Object:
    found: Object = world.api.get(world.path("MailProxy") + "/scale").checked_body
    return found


def scale_deployment(world: World, count: int) -> None:
    """Act as the controller of the autoscaler."""
    path = world.path("Deployment") + "/scale"
    scale = {"spec": {"replicas": count}}
    _ = world.api.user.request("PATCH", path, scale, "application/merge-patch+json").checked_body


def test_kubectl_scale_changes_number_of_pods(world: World, kubectl: Kubectl) -> None:
    world.put()
    world.settle()
    for count in (5, 0, 1):
        kubectl("-n", world.namespace, "scale", "mailproxy", "edge", f"--replicas={count}")
        world.until(lambda wanted=count: replicas(world) == wanted, f"{count} replicas")  # type: ignore[misc]
    world.settle()
    world.until(lambda: scale_of(world)["status"]["replicas"] == 1, "one pod")
    scale = scale_of(world)
    assert scale["spec"] == {"replicas": 1}
    selected = world.api.list("Pod", world.namespace, labelSelector=scale["status"]["selector"])
    assert len(selected) == 1, "by which an autoscaler finds the pods"


def test_autoscaler_of_resource_overrides_replicas(world: World, kubectl: Kubectl) -> None:
    world.put(autoscaling=AUTOSCALING)
    world.until(lambda: world.find("HorizontalPodAutoscaler"), "the autoscaler")
    target = world.found("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "edge"}
    world.until(lambda: world.condition("Accepted")[0] == "True", "acceptance")
    scale_deployment(world, 7)
    kubectl("-n", world.namespace, "scale", "mailproxy", "edge", "--replicas=3")
    world.until(lambda: world.condition("Accepted")[0] == "True", "the new generation to be reconciled")
    assert "spec.replicas is not used" in world.message("Accepted")
    assert replicas(world) == 7
    world.put(autoscaling=AUTOSCALING, replicas=3, servers=[server("imap", "imap", 143, 993)])
    world.until(lambda: world.condition("Accepted")[0] == "True", "the next reconcile")
    assert replicas(world) == 7


def test_autoscaler_of_user_scales_resource(world: World) -> None:
    world.put()
    world.settle()
    scale = {"spec": {"replicas": 6}}
    path = world.path("MailProxy") + "/scale"
    _ = world.api.user.request("PATCH", path, scale, "application/merge-patch+json").checked_body
    world.until(lambda: replicas(world) == 6, "six replicas")
    before = world.found("Deployment")["metadata"]["generation"]
    world.settle()
    assert world.found("Deployment")["metadata"]["generation"] == before, (
        "no other manager changes the replicas"
    )
    assert world.mail_proxy()["spec"]["replicas"] == 6

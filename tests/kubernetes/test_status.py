# SPDX-License-Identifier: Apache-2.0
"""The status of a MailProxy while pods are created, run an old configuration, are refused and fail."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import pytest

from support.kube_api import Object
from support.kube_cluster import REAL
from support.kube_world import World
from support.operator_bodies import server

pytestmark = pytest.mark.kubernetes

only_real = pytest.mark.parametrize("cluster", [REAL], indirect=True, scope="session")
"""For features that the emulated API server does not have."""

PACE: Final = 0.23
"""Seconds between two pods that a ReplicaSet creates while a kubelet refuses them: 77 in 18 seconds."""
AUTH: Final = {"authHttp": "http://auth.mail.svc:9000/auth"}
TYPES: Final = ["Ready", "Accepted", "ResolvedRefs", "Available", "ConfigSynced", "Reconciling", "Stalled"]
BACKLOG: Final = {"name": "imap", "protocol": "imap", "listen": [{"port": 143, "backlog": 16384}]}
UNSAFE: Final[Object] = {"servers": [BACKLOG], "sysctls": {"unsafe": "Allow"}}


def wait_for_condition(world: World, kind: str, wanted: tuple[str, str]) -> None:
    world.until(lambda: world.condition(kind) == wanted, f"{kind}={wanted}")


def sysctl(world: World, name: str) -> Object:
    found: Object = next(one for one in world.status()["sysctls"] if one["name"] == name)
    return found


def template_sysctls(world: World) -> list[str]:
    return sysctls_of(world.found("Deployment"))


def sysctls_of(deployment: Object) -> list[str]:
    context = deployment["spec"]["template"]["spec"]["securityContext"]
    return [one["name"] for one in context.get("sysctls", [])]


def fail(world: World, pod: str, name: str) -> None:
    """Act as a kubelet that does not allow a sysctl."""
    message = f'Pod was rejected: forbidden sysctl: "{name}" not allowlisted'
    world.set_pod_status(pod, {"phase": "Failed", "reason": "SysctlForbidden", "message": message})


def test_complete_status(world: World) -> None:
    world.put(servers=[server("imap", "imap", 143, 993)])
    made = world.settle()
    status = made["status"]
    assert [one["type"] for one in status["conditions"]] == TYPES
    generation = made["metadata"]["generation"]
    assert {one["observedGeneration"] for one in status["conditions"]} == {generation}
    assert status["observedGeneration"] == generation
    assert {one["type"] for one in status["conditions"] if one["status"] == "False"} == {
        "Reconciling",
        "Stalled",
    }
    assert (status["replicas"], status["readyReplicas"], status["podsSynced"]) == (2, 2, 2)
    assert status["selector"] == "app.kubernetes.io/instance=edge,app.kubernetes.io/name=mailproxy"
    assert [(one["port"], one["containerPort"], one["servicePort"]) for one in status["listeners"]] == [
        (143, 143, 143),
        (993, 993, 993),
    ]
    [port_start] = status["sysctls"]
    assert (port_start["value"], port_start["applied"], port_start["reason"]) == (
        "143",
        True,
        "PrivilegedPort",
    )
    assert all(pod["spec"]["securityContext"]["sysctls"] for pod in world.pods())


def test_synced_pods_are_counted_one_by_one(world: World) -> None:
    world.put()
    world.settle()
    pods = sorted(pod["metadata"]["name"] for pod in world.pods())
    world.put(mail={**AUTH, "timeout": "30s"})
    wait_for_condition(world, "ConfigSynced", ("False", "ConfigPropagating"))
    wait_for_condition(world, "Reconciling", ("True", "ConfigPropagating"))
    wanted = world.status()["configHash"]
    world.report_config(wanted, pods=(pods[0],))
    world.until(lambda: world.status()["podsSynced"] == 1, "one pod")
    assert world.condition() == ("False", "ConfigPropagating")
    world.report_config("older", "spec.mail: no", pods=(pods[1],))
    wait_for_condition(world, "ConfigSynced", ("False", "ConfigRejected"))
    assert pods[1] in world.message()
    assert "spec.mail: no" in world.message()
    assert world.condition("Stalled") == ("True", "ConfigRejected")
    world.put(mail={**AUTH, "timeout": "31s"})
    world.until(lambda: world.status()["configHash"] != wanted, "a newer configuration")
    world.report_config(world.status()["configHash"])
    wait_for_condition(world, "Ready", ("True", "Ready"))


def test_pod_without_response_is_unknown(world: World) -> None:
    world.put()
    world.settle()
    [silent, _] = sorted(world.endpoints)
    world.endpoints.pop(silent).close()
    world.put(mail={**AUTH, "timeout": "30s"})
    world.until(lambda: world.condition("Accepted")[0] == "True", "acceptance")
    world.report_config(world.status()["configHash"])
    wait_for_condition(world, "ConfigSynced", ("Unknown", "PodsUnreachable"))
    assert silent in world.message()
    assert world.condition() == ("Unknown", "PodsUnreachable")


@only_real
def test_terminating_pods_are_not_counted(world: World) -> None:
    world.put(replicas=1)
    world.settle()
    [leaving] = [pod["metadata"]["name"] for pod in world.pods()]
    assert world.status()["podsSynced"] == 1
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": leaving, "namespace": world.namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "node"},
    }
    _ = world.api.post(world.path("Pod", leaving) + "/binding", binding).checked_body
    _ = world.api.user.request("DELETE", world.path("Pod", leaving)).checked_body
    assert world.find("Pod", leaving), "only a pod on a node takes its time"
    world.until(lambda: world.status()["podsSynced"] == 0, "none to count")


def test_times_and_events_change_only_with_transitions(world: World) -> None:
    world.put()
    made = world.settle()
    times = {one["type"]: one["lastTransitionTime"] for one in made["status"]["conditions"]}
    world.until(lambda: "Ready" in [one["reason"] for one in world.events()], "the event")
    events = len(world.events())
    world.put(mail={**AUTH, "timeout": "30s"})
    world.until(lambda: world.condition("Accepted")[0] == "True", "acceptance")
    world.report_config(world.status()["configHash"])
    wait_for_condition(world, "Ready", ("True", "Ready"))
    after = {one["type"]: one["lastTransitionTime"] for one in world.status()["conditions"]}
    same = ("Accepted", "ResolvedRefs", "Available", "Stalled")
    assert {name: after[name] for name in same} == {name: times[name] for name in same}
    world.until(lambda: len(world.events()) == events + 2, "to be out of Ready and into it again")
    assert {one["regarding"]["name"] for one in world.events()} == {"edge"}


@only_real
def test_condition_of_another_manager_is_kept(world: World) -> None:
    world.put()
    world.settle()
    theirs = {
        "type": "Audited",
        "status": "True",
        "reason": "Audited",
        "message": "by hand",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    path = world.path("MailProxy") + "/status?fieldManager=auditor"
    manifest = {**world.body(), "status": {"conditions": [theirs]}}
    del manifest["spec"]
    _ = world.api.user.request("PATCH", path, manifest, "application/apply-patch+yaml").checked_body
    world.put(replicas=0)
    world.until(lambda: world.condition()[0], "the next reconcile")
    assert "Audited" in [one["type"] for one in world.status()["conditions"]]


def test_scaled_to_zero(world: World) -> None:
    world.put(replicas=0)
    world.settle()
    assert world.condition("Available") == ("True", "ScaledToZero")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ('secret "mail-tls" not found', "SecretNotFound"),
        (
            "references non-existent secret key: tls.crt",
            "SecretKeyNotFound",
        ),
        ('configmap "ca" not found', "ConfigMapNotFound"),
        (
            "references non-existent config key: a",
            "ConfigMapKeyNotFound",
        ),
        ("failed to sync secret cache: timed out waiting for the condition", "MountFailed"),
    ],
)
def test_mount_failure_is_reported(world: World, failure: str, reason: str) -> None:
    message = f"{failure}"
    tls = {"sslCertificate": [{"secretName": "mail-tls"}], "starttls": "Enabled"}
    world.put(replicas=1, mail={**AUTH, **tls})
    world.until(lambda: world.find("Deployment"), "the Deployment")
    wait_for_condition(world, "ResolvedRefs", ("Unknown", "NotYetMounted"))
    world.make_pod("edge-a", world.found("Deployment"))
    waiting = {"name": "mailproxy", "image": "m", "imageID": "", "ready": False, "restartCount": 0}
    stuck = {**waiting, "state": {"waiting": {"reason": "ContainerCreating"}}}
    world.set_pod_status("edge-a", {"phase": "Pending", "containerStatuses": [stuck]})
    _ = world.api.post(
        f"/api/v1/namespaces/{world.namespace}/events",
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "edge-a.1", "namespace": world.namespace},
            "type": "Warning",
            "reason": "FailedMount",
            "message": message,
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": "edge-a", "namespace": world.namespace
            },
            "lastTimestamp": "2026-01-01T00:00:00Z",
        },
    ).checked_body  # fmt: skip
    wait_for_condition(world, "ResolvedRefs", ("False", reason))
    assert message in world.message()
    world.until(lambda: reason in [one["reason"] for one in world.events()], "the event")
    assert {one["type"] for one in world.events() if one["reason"] == reason} == {"Warning"}


def test_unschedulable_pod_is_reported_with_message(world: World) -> None:
    world.put(replicas=1)
    world.until(lambda: world.find("Deployment"), "the Deployment")
    world.make_pod("edge-a", world.found("Deployment"))
    message = "0/3 nodes are available: 3 Insufficient cpu."
    pending = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    world.set_pod_status("edge-a", {"phase": "Pending", "conditions": [pending]})
    wait_for_condition(world, "Available", ("False", "Unschedulable"))
    assert world.message("Available").startswith(
        "pod edge-a: 0/3 nodes are available: 3 Insufficient cpu; change"
    )


def test_daemon_set_without_nodes_is_not_ready(world: World) -> None:
    world.put(mode="DaemonSet")
    workload = world.until(lambda: world.find("DaemonSet"), "the DaemonSet")
    world.report(workload, 0)
    wait_for_condition(world, "Ready", ("False", "NoNodes"))
    assert "nodeSelector" in world.message()


def test_sidecar_with_uninjected_pod_is_not_ready(world: World) -> None:
    world.put(mode="Sidecar")
    wait_for_condition(world, "Ready", ("True", "Ready"))
    assert "no pod requests the sidecar yet" in world.message()
    bare = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "app", "namespace": world.namespace, "labels": {"mailproxy.dev/inject": "edge"}
        },
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    }  # fmt: skip
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    world.api.create({**account, "metadata": {"name": "default", "namespace": world.namespace}})
    _ = world.api.create(bare).checked_body
    wait_for_condition(world, "Ready", ("False", "SidecarMissing"))
    assert "app" in world.message()
    world.api.delete("Pod", world.namespace, "app")
    wait_for_condition(world, "Ready", ("True", "Ready"))


def test_pod_that_does_not_start_is_reported(world: World) -> None:
    world.put(replicas=1)
    world.until(lambda: world.find("Deployment"), "the Deployment")
    world.make_pod("edge-a", world.found("Deployment"))
    stuck = {
        "name": "mailproxy",
        "image": "mailproxy",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
    }
    world.set_pod_status("edge-a", {"phase": "Pending", "containerStatuses": [stuck]})
    wait_for_condition(world, "Available", ("False", "ImagePullFailed"))
    assert "Back-off pulling image" in world.message()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}, "PodsRefused"),
        (
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"},
            "ProgressDeadlineExceeded",
        ),
    ],
)
def test_deployment_failures_are_reported(world: World, failure: Object, reason: str) -> None:
    world.put()
    workload = world.until(lambda: world.find("Deployment"), "the Deployment")
    condition = {
        **failure,
        "message": "exceeded quota",
        "lastUpdateTime": "2026-01-01T00:00:00Z",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    world.report(workload, 0, conditions=[condition])
    wait_for_condition(world, "Available", ("False", reason))
    assert world.message("Available").startswith("exceeded quota; ")


def test_refused_sysctl_is_removed_and_running_pods_are_kept(world: World) -> None:
    world.put()
    world.settle()
    good = world.found("Deployment")["spec"]["template"]
    world.put(**UNSAFE)
    world.until(lambda: "net.core.somaxconn" in template_sysctls(world), "the sysctl")
    for number in range(3):
        world.make_pod(f"edge-bad-{number}", world.found("Deployment"))
        fail(world, f"edge-bad-{number}", "net.core.somaxconn")
    wait_for_condition(world, "Stalled", ("True", "SysctlForbidden"))
    world.until(
        lambda: not any("bad" in pod["metadata"]["name"] for pod in world.pods()), "failed pods to go"
    )
    after = world.found("Deployment")
    assert after["spec"]["template"]["spec"] == good["spec"], "the old pods stay as they are"
    assert after["spec"]["template"]["metadata"] == good["metadata"]
    note = json.loads(after["metadata"]["annotations"]["mailproxy.dev/refused-sysctls"])
    assert note == {"generation": 2, "names": ["net.core.somaxconn"]}
    entry = sysctl(world, "net.core.somaxconn")
    assert (entry["applied"], entry["reason"]) == (False, "SysctlForbidden")
    assert world.condition() == ("False", "SysctlForbidden")
    assert world.condition("Available") == ("True", "MinimumReplicasAvailable")
    assert "allowedUnsafeSysctls" in world.message("Stalled")
    warnings = [one for one in world.events() if one["reason"] == "SysctlForbidden"]
    assert [one["type"] for one in warnings] == ["Warning"]
    world.put(**UNSAFE, workers=2)
    world.until(lambda: "net.core.somaxconn" in template_sysctls(world), "another try with a new generation")


def test_refused_port_start_sysctl_is_removed(world: World) -> None:
    world.put()
    world.settle()
    world.put(servers=[server("imap", "imap", 143), server("smtp", "smtp", 25)])
    name = "net.ipv4.ip_unprivileged_port_start"
    world.until(lambda: world.condition("Reconciling") == ("True", "RollingOut"), "the roll-out")
    world.make_pod("edge-bad", world.found("Deployment"))
    fail(world, "edge-bad", name)
    wait_for_condition(world, "Stalled", ("True", "SysctlForbidden"))
    assert "HighPort" in world.message("Stalled")
    assert template_sysctls(world) == []
    world.until(lambda: world.find("Pod", "edge-bad") is None, "the failed pod to go")


def test_refused_sysctl_creates_few_pods(world: World) -> None:
    """A ReplicaSet replaces a refused pod at once: four a second, and 77 without the operator's limit."""
    world.put(replicas=4)
    world.settle()
    world.put(**UNSAFE, replicas=4)
    world.until(lambda: "net.core.somaxconn" in template_sysctls(world), "the sysctl")
    made = 0
    while "net.core.somaxconn" in sysctls_of(bad := world.found("Deployment")):
        assert made <= 10, world.operator.output_text()[-4000:]  # type: ignore[union-attr]
        assert bad["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 1
        world.make_pod(f"edge-bad-{made}", bad)
        fail(world, f"edge-bad-{made}", "net.core.somaxconn")
        made += 1
        time.sleep(PACE)
    assert 1 <= made <= 10
    wait_for_condition(world, "Stalled", ("True", "SysctlForbidden"))
    assert world.condition("Available") == ("True", "MinimumReplicasAvailable")
    world.until(
        lambda: not any("bad" in one["metadata"]["name"] for one in world.pods()), "failed pods to go"
    )


def test_foreign_pod_with_own_labels_is_not_changed(world: World) -> None:
    world.put(**UNSAFE)
    world.until(lambda: world.find("Deployment"), "the Deployment")
    world.make_pod("edge-theirs", world.found("Deployment"))
    _ = world.api.patch(
        "Pod", world.namespace, "edge-theirs", {"metadata": {"ownerReferences": None}}
    ).checked_body
    fail(world, "edge-theirs", "net.core.somaxconn")
    world.put(**UNSAFE, workers=2)
    world.until(lambda: world.condition("Accepted")[0] == "True", "acceptance")
    world.until(lambda: world.condition("Available") == ("False", "PodsNotReady"), "a status")
    assert world.find("Pod", "edge-theirs")
    assert "net.core.somaxconn" in template_sysctls(world)


@only_real
@pytest.mark.parametrize(
    ("spec", "reason", "word"),
    [
        ({"pod": {"affinity": {"nodeAffinity": "x"}}}, "InvalidPodFields", "nodeAffinity"),
        ({"pod": {"tolerations": [{"operator": "Sometimes"}]}}, "InvalidPodFields", "Sometimes"),
        ({"pod": {"extraEnv": [{"name": "A", "valu": "b"}]}}, "InvalidPodFields", "valu"),
        ({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}, "InvalidPodFields", "limit"),
        ({"service": {"ipFamilyPolicy": "RequireDualStack"}}, "InvalidSpec", "dual-stack"),
    ],
)
def test_error_found_only_by_api_server_is_reported(
    world: World, spec: dict[str, Any], reason: str, word: str
) -> None:
    world.put(**spec)
    wait_for_condition(world, "Accepted", ("False", reason))
    assert word in world.message("Accepted")
    assert world.condition("Stalled") == ("True", reason)
    world.put()
    wait_for_condition(world, "Accepted", ("True", "Accepted"))


@only_real
def test_quota_error_is_reported(world: World) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": world.namespace},
        "spec": {"hard": {"count/deployments.apps": "0"}},
    }
    _ = world.api.create(quota).checked_body
    _ = world.api.patch_status(
        "ResourceQuota",
        world.namespace,
        "none",
        {"hard": quota["spec"]["hard"], "used": {"count/deployments.apps": "0"}},
    ).checked_body
    world.put()
    wait_for_condition(world, "Accepted", ("False", "Forbidden"))
    assert "exceeded quota" in world.message("Accepted")
    world.api.delete("ResourceQuota", world.namespace, "none")


@only_real
def test_pod_security_warning_is_reported(world: World) -> None:
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    _ = world.api.patch("Namespace", "", world.namespace, label).checked_body
    world.put()
    wait_for_condition(world, "Accepted", ("True", "Accepted"))
    assert "would violate" not in world.message("Accepted"), "what we render is restricted"
    world.settle()
    world.put(portStrategy="HighPort", pod={"hostNetwork": True})
    world.until(lambda: "would violate PodSecurity" in world.message("Accepted"), "the warning")

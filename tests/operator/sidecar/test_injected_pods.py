# SPDX-License-Identifier: Apache-2.0
"""The status of a sidecar: which pods have it, and which configuration each runs."""

from __future__ import annotations

from typing import Any

from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.api.kinds import CONFIG_MAP, MAIL_PROXY, POD, SERVICE, Manifest
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.errors import ReportedCause
from mailproxy_operator.sidecar.inject import Injected, inject
from support.operator_cluster import MemoryCluster
from support.sidecars import INJECT, PLATFORM, pod, rendered_sidecar, sidecar_body

EDGE = Key("mail", "edge")


class World:
    """A sidecar's resource, and pods of other owners."""

    def __init__(self, **spec: Any) -> None:
        self.cluster = MemoryCluster()
        self.spec = spec
        self.cluster.put(sidecar_body(**spec))
        self._reconciler = Reconciler(self.cluster, PLATFORM)

    async def status(self) -> Manifest:
        await self._reconciler.reconcile(EDGE)
        found: Manifest = self.cluster.found(MAIL_PROXY, "edge")["status"]
        return found

    async def numbers(self) -> tuple[int, int, int]:
        status = await self.status()
        return status["replicas"], status["readyReplicas"], status["podsSynced"]

    def pod(self, name: str, runs: str | None = None, *, is_ready: bool = True, **status: Any) -> Manifest:
        """Return an injected pod, as its kubelet reports it."""
        found = inject(rendered_sidecar(**self.spec), pod())
        assert isinstance(found, Injected)
        one = found.pod
        one["metadata"]["name"] = name
        container = {"name": "mailproxy", "ready": is_ready, "restartCount": 0, "state": {"running": {}}}
        one["status"] = {
            "phase": "Running",
            "podIP": "192.0.2.1",
            "initContainerStatuses": [container],
            **status,
        }
        if runs is not None:
            self.cluster.running[name] = RunningConfig(runs)
        return self.cluster.put(one)

    def condition(self, kind: str) -> tuple[str, str, str]:
        conditions = self.cluster.found(MAIL_PROXY, "edge")["status"]["conditions"]
        one = next(one for one in conditions if one["type"] == kind)
        return one["status"], one["reason"], one["message"]


async def test_sidecar_without_pods_is_ready() -> None:
    world = World()
    assert await world.numbers() == (0, 0, 0)
    assert world.condition("Ready")[:2] == ("True", "Ready")
    assert world.condition("Available")[:2] == ("True", "SidecarMode")
    assert {kind.name for kind, _ in world.cluster.objects} == {"MailProxy", "ConfigMap"}


async def test_sidecar_has_service_only_if_set() -> None:
    world = World(service={"type": "ClusterIP"})
    await world.status()
    assert world.cluster.found(SERVICE, "edge")["spec"]["selector"] == {INJECT: "edge"}


async def test_pods_are_counted_by_sidecar_and_configuration() -> None:
    world = World()
    digest = rendered_sidecar().config_hash
    world.pod("a", digest)
    world.pod("b", "another")
    world.pod("c", digest, is_ready=False)
    assert await world.numbers() == (3, 2, 2)
    assert (await world.status())["selector"] == f"{INJECT}=edge"
    assert world.condition("ConfigSynced")[:2] == ("False", "ConfigPropagating")
    assert "pods with the sidecar: 3, ready: 2" in world.condition("Available")[2]
    world.cluster.report_config(digest)
    await world.status()
    assert world.condition("Ready")[:2] == ("True", "Ready")


async def test_pod_that_rejects_configuration_is_reported() -> None:
    world = World()
    world.pod("a")
    world.cluster.running["a"] = RunningConfig("old", "secret not mounted")
    await world.status()
    assert world.condition("Ready")[:2] == ("False", "ConfigRejected")
    assert "pod a keeps" in world.condition("Ready")[2]


async def test_pods_without_sidecar_and_outdated_pods_are_reported() -> None:
    world = World()
    world.pod("a", rendered_sidecar().config_hash)
    uninjected = pod()
    uninjected["metadata"]["name"] = "bare"
    world.cluster.put(uninjected)
    old = world.pod("old", rendered_sidecar().config_hash)
    old["metadata"]["annotations"]["mailproxy.dev/template-hash"] = "0123"
    world.cluster.put(old)
    assert await world.numbers() == (2, 2, 2)
    message = world.condition("Available")[2]
    assert "created before the last change of the MailProxy, to be deleted and created again: 1" in message
    assert "1 pod requests the sidecar and runs without it: bare" in message
    assert world.condition("Ready")[:2] == ("False", "SidecarMissing")
    uninjected["metadata"]["deletionTimestamp"] = "2026-07-01T12:00:00Z"
    world.cluster.put(uninjected)
    await world.status()
    assert world.condition("Available")[:2] == ("True", "SidecarMode"), "what is being deleted does not count"


async def test_unschedulable_pod_is_reported() -> None:
    world = World()
    message = "0/1 nodes are available: 1 Too many pods."
    pending = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    waits = {"phase": "Pending", "initContainerStatuses": [], "conditions": [pending]}
    world.pod("a", **waits)
    await world.status()
    status, reason, text = world.condition("Available")
    assert (status, reason) == ("False", "Unschedulable")
    assert text.startswith("pod a: 0/1 nodes are available: 1 Too many pods; change spec.resources.requests")


async def test_ended_and_terminating_pods_are_not_counted() -> None:
    world = World()
    world.pod("done", phase="Succeeded")
    terminating = world.pod("going", rendered_sidecar().config_hash)
    terminating["metadata"]["deletionTimestamp"] = "2026-07-01T12:00:00Z"
    world.cluster.put(terminating)
    assert await world.numbers() == (0, 0, 0)


async def test_pods_are_annotated_and_never_deleted() -> None:
    world = World()
    world.pod("a", "old")
    failed = {"phase": "Running", "reason": "SysctlForbidden", "message": 'forbidden sysctl: "a.b"'}
    world.pod("refused", **failed)
    await world.status()
    before = world.cluster.found(POD, "a")["metadata"]["annotations"]["mailproxy.dev/config-hash"]
    world.cluster.put(sidecar_body(workerConnections=7))
    await world.status()
    after = world.cluster.found(POD, "a")["metadata"]["annotations"]["mailproxy.dev/config-hash"]
    assert before != after == rendered_sidecar(workerConnections=7).config_hash
    assert not [call for call in world.cluster.calls if call[0] == "delete"]


async def test_missing_secret_is_reported_by_pods() -> None:
    world = World(
        mail={"authHttp": "http://127.0.0.1:9000/auth", "sslCertificate": [{"secretName": "mail-tls"}]},
        servers=[{"name": "imap", "protocol": "imap", "listen": [{"port": 993, "ssl": True}]}],
    )
    waiting = {"reason": "PodInitializing", "message": ""}
    container = {"name": "mailproxy", "ready": False, "state": {"waiting": waiting}}
    world.pod("a", initContainerStatuses=[container])
    world.cluster.mounts = {"a": 'MountVolume.SetUp failed: secret "mail-tls" not found'}
    await world.status()
    assert world.condition("ResolvedRefs")[:2] == ("False", "SecretNotFound")
    assert ReportedCause(**waiting).reason == "PodInitializing"


async def test_invalid_resource_keeps_pods_and_configuration() -> None:
    world = World()
    world.pod("a", rendered_sidecar().config_hash)
    await world.status()
    before = world.cluster.found(CONFIG_MAP, "edge-config")
    world.cluster.put(sidecar_body(servers=[]))
    assert (await world.numbers())[0] == 1
    assert world.condition("Ready")[:2] == ("False", "InvalidSpec")
    assert world.cluster.found(CONFIG_MAP, "edge-config") == before


async def test_change_to_sidecar_deletes_workload() -> None:
    world = World(mode="Deployment", replicas=0)
    await world.status()
    assert {kind.name for kind, _ in world.cluster.objects} > {"Deployment", "Service"}
    world.cluster.put(sidecar_body())
    await world.status()
    assert {kind.name for kind, _ in world.cluster.objects} == {"MailProxy", "ConfigMap"}


async def test_running_pods_get_the_label_of_their_proxy() -> None:
    """Pods that an older operator injected do not have it; the label is added without a new pod."""
    world = World()
    older = world.pod("a", rendered_sidecar().config_hash)
    del older["metadata"]["labels"]["mailproxy.dev/proxy"]
    world.cluster.put(older)
    await world.status()
    assert world.cluster.found(POD, "a")["metadata"]["labels"]["mailproxy.dev/proxy"] == "edge"
    world.cluster.calls.clear()
    await world.status()
    assert world.cluster.calls == []


async def test_label_of_another_proxy_is_kept() -> None:
    world = World()
    one = world.pod("a", rendered_sidecar().config_hash)
    one["metadata"]["labels"]["mailproxy.dev/proxy"] = "other"
    world.cluster.put(one)
    await world.status()
    assert world.cluster.found(POD, "a")["metadata"]["labels"]["mailproxy.dev/proxy"] == "other"

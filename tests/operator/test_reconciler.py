# SPDX-License-Identifier: Apache-2.0
"""A resource becomes objects and a status, in every state of the cluster."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DAEMON_SET,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    MAIL_PROXY,
    NETWORK_POLICY,
    POD,
    POD_MONITOR,
    SERVICE,
)
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.controller.reconciler import Outcome, Reconciler
from mailproxy_operator.errors import KindMissing, NotFoundOrConflict, TerminalError, TransientError
from mailproxy_operator.settings import Platform
from support.operator_bodies import body, server
from support.operator_cluster import MemoryCluster

EDGE = Key("mail", "edge")
PLATFORM = Platform(kube_version=KubeVersion(1, 36))


class World:
    """A cluster and a reconciler that works on it."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.reconciler = Reconciler(self.cluster, PLATFORM, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def put(self, **spec: Any) -> None:
        self.cluster.put({**(self.cluster.find(MAIL_PROXY, "edge") or {}), **body(**spec)})

    async def reconcile(self) -> Outcome:
        return await self.reconciler.reconcile(EDGE)

    async def settle(self) -> Outcome:
        """Reconcile, run the controllers and pods, and reconcile again."""
        for _ in range(2):  # an unsafe sysctl is tried with one pod first
            await self.reconcile()
            self.cluster.roll_out("edge")
        outcome = await self.reconcile()
        self.cluster.report_config(outcome.status["configHash"])
        return await self.reconcile()

    def writes(self) -> list[tuple[str, str, str]]:
        done = list(self.cluster.calls)
        self.cluster.calls.clear()
        return done


@pytest.fixture
def world() -> World:
    return World()


async def test_resource_becomes_ready_proxy(world: World) -> None:
    world.put()
    outcome = await world.reconcile()
    assert outcome.again_after == 5.0
    assert world.cluster.condition("edge", "Accepted") == ("True", "Accepted")
    assert world.cluster.condition("edge") == ("False", "PodsNotReady")
    outcome = await world.settle()
    assert outcome.again_after is None
    assert world.cluster.condition("edge") == ("True", "Ready")
    status = world.cluster.found(MAIL_PROXY, "edge")["status"]
    assert (status["replicas"], status["readyReplicas"], status["podsSynced"]) == (2, 2, 2)
    assert status["selector"] == "app.kubernetes.io/instance=edge,app.kubernetes.io/name=mailproxy"
    assert status["listeners"] == [
        {
            "server": "imap",
            "protocol": "imap",
            "address": "*",
            "tls": False,
            "port": 143,
            "containerPort": 143,
            "servicePort": 143,
        }
    ]
    assert status["sysctls"] == [
        {
            "name": "net.ipv4.ip_unprivileged_port_start",
            "value": "143",
            "safe": True,
            "applied": True,
            "reason": "PrivilegedPort",
        }
    ]


async def test_second_reconcile_writes_nothing(world: World) -> None:
    world.put()
    await world.settle()
    world.writes()
    await world.reconcile()
    assert world.writes() == []
    fresh = Reconciler(world.cluster, PLATFORM)
    before = {at: one["metadata"]["resourceVersion"] for at, one in world.cluster.objects.items()}
    await fresh.reconcile(EDGE)
    assert {at: one["metadata"]["resourceVersion"] for at, one in world.cluster.objects.items()} == before


async def test_interrupted_first_reconcile_is_completed(world: World) -> None:
    """The first reconcile wrote objects and no status; then the spec changed."""
    world.put(networkPolicy={"enabled": True})
    await world.reconcile()
    del world.cluster.found(MAIL_PROXY, "edge")["status"]
    world.put()
    world.reconciler = Reconciler(world.cluster, PLATFORM)
    assert (await world.reconcile()).pruned == ("NetworkPolicy",)
    assert world.cluster.find(NETWORK_POLICY, "edge") is None


async def test_every_object_has_an_owner(world: World) -> None:
    world.put()
    await world.reconcile()
    uid = world.cluster.found(MAIL_PROXY, "edge")["metadata"]["uid"]
    owned = [one for (kind, _), one in world.cluster.objects.items() if kind is not MAIL_PROXY]
    assert len(owned) == 6
    assert all(one["metadata"]["ownerReferences"][0]["uid"] == uid for one in owned)


@pytest.mark.parametrize("kind", [CONFIG_MAP, DEPLOYMENT, SERVICE, DISRUPTION_BUDGET])
@pytest.mark.parametrize("deleted", [False, True])
async def test_drift_is_repaired(world: World, kind: Any, deleted: bool) -> None:
    world.put()
    await world.settle()
    name = "edge-config" if kind is CONFIG_MAP else "edge"
    before = world.cluster.found(kind, name)
    content = "data" if kind is CONFIG_MAP else "spec"
    if deleted:
        del world.cluster.objects[kind, Key("mail", name)]
    else:
        world.cluster.put({**before, content: {"edited": "by hand"}})
    outcome = await world.reconcile()
    assert world.cluster.found(kind, name)[content] == before[content]
    assert outcome.drifted == (kind.name,)


@pytest.mark.parametrize("kind", [DEPLOYMENT, SERVICE])
async def test_edited_label_is_restored(world: World, kind: Any) -> None:
    world.put()
    await world.settle()
    before = world.cluster.found(kind, "edge")["metadata"]["labels"]
    world.cluster.found(kind, "edge")["metadata"]["labels"] = {**before, "app.kubernetes.io/name": "other"}
    outcome = await world.reconcile()
    assert world.cluster.found(kind, "edge")["metadata"]["labels"] == before
    assert outcome.drifted == (kind.name,)


async def test_configuration_change_keeps_pod_template(world: World) -> None:
    world.put()
    await world.settle()
    template = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
    world.put(mail={"authHttp": "http://auth.mail.svc:9000/auth", "timeout": "30s"})
    outcome = await world.reconcile()
    assert world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"] == template
    assert world.cluster.condition("edge") == ("False", "ConfigPropagating")
    pod = world.cluster.found(POD, "edge-0")
    assert pod["metadata"]["annotations"][names.CONFIG_HASH] == outcome.status["configHash"]
    world.cluster.report_config(outcome.status["configHash"])
    await world.reconcile()
    assert world.cluster.condition("edge") == ("True", "Ready")


async def test_new_port_changes_pod_template(world: World) -> None:
    world.put()
    await world.settle()
    template = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
    world.put(servers=[server("imap", "imap", 143, 1143)])
    await world.reconcile()
    changed = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
    assert changed["metadata"]["annotations"] != template["metadata"]["annotations"]


async def test_invalid_resource_keeps_running_objects(world: World) -> None:
    world.put()
    good = await world.settle()
    world.writes()
    world.put(mail={"authHttp": "http://auth.mail.svc:9000/auth", "timeout": "soon"})
    outcome = await world.reconcile()
    assert world.writes() == [("status", "MailProxy", "edge")]
    assert outcome.refused is not None
    assert "spec.mail.timeout" in outcome.refused.message
    assert world.cluster.condition("edge") == ("False", "InvalidSpec")
    assert world.cluster.condition("edge", "Available") == ("True", "MinimumReplicasAvailable")
    assert world.cluster.condition("edge", "ConfigSynced") == ("True", "AllPodsSynced")
    assert outcome.status["configHash"] == good.status["configHash"]
    assert outcome.again_after is None
    restarted = Reconciler(world.cluster, PLATFORM)
    await restarted.reconcile(EDGE)
    assert world.writes() == []


async def test_duplicate_listeners_have_reason_listener_conflict(world: World) -> None:
    world.put(servers=[server("a", "imap", 143), server("b", "imap", 143)])
    await world.reconcile()
    assert world.cluster.condition("edge") == ("False", "ListenerConflict")


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"autoscaling": {"maxReplicas": 3}}, AUTOSCALER),
        ({"monitoring": {"podMonitor": {"enabled": True}}}, POD_MONITOR),
    ],
)
async def test_unused_objects_are_pruned(world: World, spec: dict[str, Any], kind: Any) -> None:
    world.put(**spec)
    await world.settle()
    assert world.cluster.find(kind, "edge")
    world.put()
    outcome = await world.settle()
    assert world.cluster.find(kind, "edge") is None
    assert outcome.pruned == () or kind.name in outcome.pruned


@pytest.mark.parametrize("is_deleted_first", [False, True])
async def test_object_disabled_and_enabled_again_is_not_drift(world: World, is_deleted_first: bool) -> None:
    for enabled in (True, False, True):
        world.put(networkPolicy={"enabled": enabled})
        if is_deleted_first and not enabled:
            del world.cluster.objects[NETWORK_POLICY, EDGE]
        assert (await world.reconcile()).drifted == ()
    del world.cluster.objects[NETWORK_POLICY, EDGE]
    assert (await world.reconcile()).drifted == ("NetworkPolicy",)


async def test_mode_change_keeps_old_pods_until_new_ones_are_available(world: World) -> None:
    world.put()
    await world.settle()
    world.put(mode="DaemonSet")
    await world.reconcile()
    assert world.cluster.find(DEPLOYMENT, "edge")
    assert world.cluster.find(DAEMON_SET, "edge")
    world.cluster.roll_out("edge")
    await world.reconcile()
    assert world.cluster.find(DEPLOYMENT, "edge") is None
    assert world.cluster.find(DISRUPTION_BUDGET, "edge") is None


async def test_mode_change_keeps_old_pods_without_eligible_nodes(world: World) -> None:
    """A node selector that matches no node must not end the running proxy."""
    world.put()
    await world.settle()
    world.put(mode="DaemonSet", pod={"nodeSelector": {"mail": "edge"}})
    await world.reconcile()
    made = world.cluster.found(DAEMON_SET, "edge")
    made["status"] = {
        "observedGeneration": made["metadata"].get("generation", 1),
        "desiredNumberScheduled": 0,
    }
    outcome = await world.reconcile()
    assert world.cluster.condition("edge") == ("False", "NoNodes")
    assert outcome.pruned == ()
    assert world.cluster.find(DEPLOYMENT, "edge")


PROXY = "mailproxy.dev/proxy"


def _remove_proxy_labels(world: World) -> None:
    """Change all objects to what an operator of the release before the label made."""
    for (kind, _), one in world.cluster.objects.items():
        if kind is not MAIL_PROXY:
            one["metadata"].get("labels", {}).pop(PROXY, None)
    deployment = world.cluster.found(DEPLOYMENT, "edge")
    deployment["spec"]["template"]["metadata"]["labels"].pop(PROXY)
    world.reconciler = Reconciler(world.cluster, PLATFORM)


async def test_upgrade_labels_objects_and_running_pods(world: World) -> None:
    world.put(networkPolicy={"enabled": True})
    await world.settle()
    selector = world.cluster.found(DEPLOYMENT, "edge")["spec"]["selector"]
    _remove_proxy_labels(world)
    await world.reconcile()
    for (kind, key), one in world.cluster.objects.items():
        if kind is not MAIL_PROXY:
            assert one["metadata"]["labels"][PROXY] == "edge", key
    # The selector of a workload cannot be changed.
    assert world.cluster.found(DEPLOYMENT, "edge")["spec"]["selector"] == selector
    assert PROXY not in selector["matchLabels"]


async def test_objects_without_the_label_are_still_pruned(world: World) -> None:
    """With the update from that release, the spec stops using one of them."""
    world.put(networkPolicy={"enabled": True})
    await world.settle()
    _remove_proxy_labels(world)
    world.put()
    await world.settle()
    assert world.cluster.find(NETWORK_POLICY, "edge") is None


@pytest.mark.parametrize("kind", [SERVICE, CONFIG_MAP])
async def test_object_of_another_owner_is_reported_and_not_changed(world: World, kind: Any) -> None:
    name = "edge-config" if kind is CONFIG_MAP else "edge"
    foreign = world.cluster.put(
        {"apiVersion": "v1", "kind": kind.name, "metadata": {"name": name, "namespace": "mail"}, "data": {}}
    )
    world.put()
    outcome = await world.reconcile()
    assert world.cluster.found(kind, name) == foreign
    assert world.cluster.condition("edge") == ("False", "NameConflict")
    assert outcome.refused is not None
    assert f"{kind.name} {name}" in outcome.refused.message
    assert [call for call in world.writes() if call[0] == "apply"] == []


async def test_paused_resource_gets_status_only(world: World) -> None:
    world.put()
    await world.settle()
    world.writes()
    world.put(paused=True, servers=[server("imap", "imap", 1143)])
    del world.cluster.objects[SERVICE, EDGE]
    outcome = await world.reconcile()
    assert {call[0] for call in world.writes()} == {"status"}
    assert world.cluster.condition("edge", "Reconciling") == ("False", "Paused")
    assert outcome.again_after is None


async def test_refused_sysctl_is_removed_from_template(world: World) -> None:
    world.put(sysctls={"unsafe": "Allow"}, servers=[_deep_backlog()])
    await world.settle()
    template = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
    _refuse_pod(world.cluster, template, "net.core.somaxconn")
    await world.reconcile()
    left = world.cluster.found(DEPLOYMENT, "edge")
    applied = [one["name"] for one in left["spec"]["template"]["spec"]["securityContext"]["sysctls"]]
    assert applied == ["net.ipv4.ip_unprivileged_port_start"]
    recorded = json.loads(left["metadata"]["annotations"][names.REFUSED_SYSCTLS])
    assert recorded == {"generation": 1, "names": ["net.core.somaxconn"]}
    assert world.cluster.find(POD, "edge-refused") is None
    assert world.cluster.condition("edge") == ("False", "SysctlForbidden")
    assert world.cluster.condition("edge", "Available") == ("True", "MinimumReplicasAvailable")
    status = world.cluster.found(MAIL_PROXY, "edge")["status"]
    assert (status["sysctls"][0]["applied"], status["sysctls"][0]["reason"]) == (False, "SysctlForbidden")
    await Reconciler(world.cluster, PLATFORM).reconcile(EDGE)
    assert world.cluster.found(DEPLOYMENT, "edge")["spec"] == left["spec"]
    world.put(sysctls={"unsafe": "Allow"}, servers=[_deep_backlog()], replicas=3)
    await world.reconcile()
    retried = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]["spec"]["securityContext"][
        "sysctls"
    ]
    assert retried[0]["name"] == "net.core.somaxconn"


async def test_refused_port_start_sysctl_is_removed(world: World) -> None:
    """A container that cannot listen is restarted with back-off; a refused pod is replaced at once."""
    world.put()
    await world.settle()
    before = world.cluster.found(DEPLOYMENT, "edge")["spec"]
    _refuse_pod(world.cluster, before["template"], "net.ipv4.ip_unprivileged_port_start")
    outcome = await world.reconcile()
    left = world.cluster.found(DEPLOYMENT, "edge")["spec"]
    assert "sysctls" not in left["template"]["spec"]["securityContext"]
    stalled = next(one for one in outcome.status["conditions"] if one["type"] == "Stalled")
    assert "portStrategy: HighPort" in stalled["message"]
    await world.reconcile()
    assert world.cluster.found(DEPLOYMENT, "edge")["spec"] == left


async def test_refused_pod_causes_one_immediate_write(world: World) -> None:
    world.put(sysctls={"unsafe": "Allow"}, servers=[_deep_backlog()])
    await world.settle()
    template = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
    _refuse_pod(world.cluster, template, "net.core.somaxconn")
    world.cluster.calls.clear()
    refused = world.cluster.found(POD, "edge-refused")
    assert await world.reconciler.remove_forbidden_sysctls(EDGE, refused)
    assert world.cluster.calls == [("apply", "Deployment", "edge")], "one write, and no request to a pod"
    left = world.cluster.found(DEPLOYMENT, "edge")
    assert [one["name"] for one in left["spec"]["template"]["spec"]["securityContext"]["sysctls"]] == [
        "net.ipv4.ip_unprivileged_port_start"
    ]
    world.cluster.calls.clear()
    assert not await world.reconciler.remove_forbidden_sysctls(EDGE, refused), (
        "it is not of the newest template any more"
    )
    assert world.cluster.calls == []
    await world.reconcile()
    assert world.cluster.condition("edge") == ("False", "SysctlForbidden")
    assert world.cluster.found(DEPLOYMENT, "edge")["spec"] == left["spec"]


async def test_workload_is_changed_before_refused_pods_are_deleted(world: World) -> None:
    world.put(sysctls={"unsafe": "Allow"}, servers=[_deep_backlog()])
    await world.settle()
    template = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
    _refuse_pod(world.cluster, template, "net.core.somaxconn")
    world.cluster.calls.clear()
    await world.reconcile()
    calls = [call for call in world.cluster.calls if call[0] in {"apply", "delete"}]
    assert calls == [("apply", "Deployment", "edge"), ("delete", "Pod", "edge-refused")]


@pytest.mark.parametrize("owner", [[], [{"kind": "ReplicaSet", "name": "other-1", "controller": True}]])
async def test_refused_pod_of_another_owner_changes_nothing(
    world: World, owner: list[dict[str, Any]]
) -> None:
    world.put(sysctls={"unsafe": "Allow"}, servers=[_deep_backlog()])
    await world.settle()
    template = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
    _refuse_pod(world.cluster, template, "net.core.somaxconn")
    refused = world.cluster.found(POD, "edge-refused")
    refused["metadata"]["ownerReferences"] = owner
    assert not await world.reconciler.remove_forbidden_sysctls(EDGE, refused)


async def test_unsafe_sysctl_starts_with_one_pod(world: World) -> None:
    world.put(sysctls={"unsafe": "Allow"}, servers=[_deep_backlog()], replicas=20)
    await world.reconcile()
    spec = world.cluster.found(DEPLOYMENT, "edge")["spec"]
    assert (spec["replicas"], spec["strategy"]["rollingUpdate"]["maxSurge"]) == (1, 1)
    world.cluster.roll_out("edge")
    await world.reconcile()
    assert world.cluster.found(DEPLOYMENT, "edge")["spec"]["replicas"] == 20
    await world.settle()
    world.cluster.found(DEPLOYMENT, "edge")["status"]["readyReplicas"] = 0
    await Reconciler(world.cluster, PLATFORM).reconcile(EDGE)
    assert world.cluster.found(DEPLOYMENT, "edge")["spec"]["replicas"] == 20, "an outage is no trial"


def _deep_backlog() -> dict[str, Any]:
    return {"name": "imap", "protocol": "imap", "listen": [{"port": 143, "backlog": 16384}]}


def _refuse_pod(cluster: MemoryCluster, template: dict[str, Any], sysctl: str) -> None:
    message = f'Pod was rejected: forbidden sysctl: "{sysctl}" not allowlisted'
    cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "edge-refused",
                "namespace": "mail",
                "of": "edge",
                "ownerReferences": [
                    {"kind": "ReplicaSet", "name": "edge-1", "uid": "rs", "controller": True}
                ],
                **template["metadata"],
            },
            "status": {"phase": "Failed", "reason": "SysctlForbidden", "message": message},
        }
    )


@pytest.mark.parametrize(
    ("failure", "condition", "expected"),
    [
        (TerminalError("quota", "Forbidden"), "Ready", ("False", "Forbidden")),
        (TerminalError("field not declared", "InvalidPodFields"), "Stalled", ("True", "InvalidPodFields")),
        (TransientError("500"), "Reconciling", ("True", "Retrying")),
        (NotFoundOrConflict("replaced"), "Reconciling", ("True", "Retrying")),
    ],
)
async def test_failed_apply_is_reported_in_conditions(
    world: World, failure: Exception, condition: str, expected: tuple[str, str]
) -> None:
    world.put()
    world.cluster.failures["Deployment"] = failure
    outcome = await world.reconcile()
    assert world.cluster.condition("edge", condition) == expected
    assert (outcome.failed is not None) is (expected[1] == "Retrying")
    world.cluster.failures.clear()
    await world.settle()
    assert world.cluster.condition("edge") == ("True", "Ready")


async def test_forbidden_apply_is_requeued(world: World) -> None:
    world.put()
    world.cluster.failures["Deployment"] = TerminalError("exceeded quota", "Forbidden")
    assert (await world.reconcile()).again_after == 60.0


async def test_failure_to_annotate_pods_is_reported_in_status(world: World) -> None:
    world.put()
    world.cluster.failures["annotate"] = TerminalError("pods is forbidden", "Forbidden")
    await world.reconcile()
    world.cluster.roll_out("edge")
    outcome = await world.reconcile()
    assert outcome.failed is not None
    assert world.cluster.condition("edge", "Reconciling") == ("True", "Retrying")
    assert world.cluster.condition("edge", "Accepted") == ("True", "Accepted")


async def test_missing_kind_is_skipped(world: World) -> None:
    world.put(monitoring={"podMonitor": {"enabled": True}})
    world.cluster.failures["PodMonitor"] = KindMissing("monitoring.coreos.com/v1")
    outcome = await world.settle()
    assert world.cluster.condition("edge") == ("True", "Ready")
    accepted = next(one for one in outcome.status["conditions"] if one["type"] == "Accepted")
    assert "no PodMonitor until its CRD is installed" in accepted["message"]


async def test_deleted_resource_is_not_reconciled(world: World) -> None:
    assert (await world.reconcile()).is_gone
    stored = world.cluster.put(body())
    stored["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert (await world.reconcile()).is_gone
    assert world.writes() == []


async def test_events_are_created_once_per_transition(world: World) -> None:
    world.put()
    await world.settle()
    await world.reconcile()
    events = [(event["type"], event["reason"]) for event in world.cluster.events]
    assert events == [("Normal", "PodsNotReady"), ("Warning", "PodsUnreachable"), ("Normal", "Ready")]
    world.put(servers=[])
    await world.reconcile()
    await world.reconcile()
    assert [(event["type"], event["reason"]) for event in world.cluster.events][len(events) :] == [
        ("Warning", "InvalidSpec")
    ]


async def test_autoscaler_takes_over_replicas(world: World) -> None:
    world.put(replicas=4)
    await world.settle()
    live = world.cluster.found(DEPLOYMENT, "edge")
    live["metadata"]["managedFields"] = [
        {"manager": names.FIELD_MANAGER, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    ]
    world.writes()
    world.put(autoscaling={"maxReplicas": 9})
    await world.reconcile()
    writes = [call for call in world.writes() if call[1] == "Deployment"]
    assert writes == [(names.HANDOVER_MANAGER, "Deployment", "edge"), ("apply", "Deployment", "edge")]
    accepted = world.cluster.found(MAIL_PROXY, "edge")["status"]["conditions"][1]
    assert (accepted["type"], accepted["status"]) == ("Accepted", "True")
    assert "spec.replicas is not used" in accepted["message"]


_SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"mode": "DaemonSet"},
    {"mode": "Sidecar"},
    {"autoscaling": {"maxReplicas": 3}},
    {"servers": []},
    {"monitoring": {"podMonitor": {"enabled": True}}, "networkPolicy": {"enabled": True}},
    {"servers": [server("smtp", "smtp", 25, 587)], "portStrategy": "HighPort"},
)


@given(history=st.lists(st.sampled_from(_SPECS), max_size=4), final=st.sampled_from(_SPECS[:4] + _SPECS[5:]))
async def test_result_does_not_depend_on_history(
    history: list[dict[str, Any]], final: dict[str, Any]
) -> None:
    with_history, direct = World(), World()
    for spec in history:
        with_history.put(**spec)
        await with_history.reconcile()
    for world in (with_history, direct):
        world.put(**final)
        await world.settle()
        await world.reconcile()
    assert _content(with_history.cluster) == _content(direct.cluster)


def _content(cluster: MemoryCluster) -> dict[str, Any]:
    def plain(manifest: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in manifest.items() if key not in {"metadata", "status"}}
        if manifest["kind"] == "ConfigMap":
            document = json.loads(manifest["data"]["mailproxy.json"])
            kept["data"] = {**document, "generation": 0}
        return kept

    return {
        f"{kind.name} {key.name}": plain(one)
        for (kind, key), one in cluster.objects.items()
        if kind not in {MAIL_PROXY, POD}
    }

# SPDX-License-Identifier: Apache-2.0
"""Members of Services reach the pods: a ConfigMap, an annotation, a condition, and no new pod."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailproxy_config.upstream_members import parse_members
from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import CONFIG_MAP, DEPLOYMENT, MAIL_PROXY, NETWORK_POLICY, POD
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.controller.reconciler import Outcome, Reconciler
from mailproxy_operator.errors import ConditionCause, TerminalError, TransientError
from mailproxy_operator.members.endpoints import endpoints
from mailproxy_operator.members.groups import ServiceState
from mailproxy_operator.reasons import Reason
from mailproxy_operator.settings import Platform
from support.endpoint_slices import endpoint, service, slice_of
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster

EDGE, DOVECOT = Key("mail", "edge"), Key("mail", "dovecot")
SPEC: Mapping[str, Any] = {
    "mail": {"authMode": "Upstream", "routes": [{"domains": ["*"], "upstream": "dovecot"}]},
    "upstreams": [{"name": "dovecot", "service": {"name": "dovecot"}, "hash": "User"}],
}


class Services:
    """The states that a test sets."""

    def __init__(self) -> None:
        self.states: dict[Key, ServiceState] = {}
        self.wanted: dict[Key, frozenset[Key]] = {}

    async def read(self, owner: Key, services: frozenset[Key]) -> Mapping[Key, ServiceState]:
        self.wanted[owner] = services
        return {key: self.states[key] for key in services}

    def have(self, *given: Any) -> None:
        self.states[DOVECOT] = ServiceState(service=service(), endpoints=endpoints([slice_of(*given)]))


class World:
    """A cluster, Services, and a reconciler with a clock."""

    def __init__(self) -> None:
        self.cluster, self.services = MemoryCluster(), Services()
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        platform = Platform(kube_version=KubeVersion(1, 36))
        self.reconciler = Reconciler(self.cluster, platform, self.services, now=lambda: self.time)
        self.put(**SPEC)
        self.services.have(endpoint(0), endpoint(1))

    def put(self, **spec: Any) -> None:
        self.cluster.put({**(self.cluster.find(MAIL_PROXY, "edge") or {}), **body(**spec)})

    async def reconcile(self) -> Outcome:
        return await self.reconciler.reconcile(EDGE)

    def states(self) -> dict[str, str]:
        text = self.cluster.found(CONFIG_MAP, "edge-members")["data"]["members.json"]
        listed = parse_members(text.encode()).upstreams["dovecot"].members
        return {member.id: str(member.state) for member in listed}

    def annotations(self) -> list[str]:
        pods = [one for (kind, _), one in self.cluster.objects.items() if kind is POD]
        return [(one["metadata"].get("annotations") or {}).get(names.MEMBERS_HASH, "") for one in pods]

    def template(self) -> str:
        template = self.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]
        return json.dumps(template, sort_keys=True)


@pytest.fixture
def world() -> World:
    return World()


async def test_members_are_written_before_the_workload_and_change_no_pod(world: World) -> None:
    await world.reconcile()
    applied = [(kind, name) for verb, kind, name in world.cluster.calls if verb == "apply"]
    assert applied.index(("ConfigMap", "edge-members")) < applied.index(("Deployment", "edge"))
    found = world.cluster.found(CONFIG_MAP, "edge-members")
    assert found["metadata"]["ownerReferences"][0]["kind"] == "MailProxy"
    assert found["metadata"]["labels"]["mailproxy.dev/proxy"] == "edge"
    assert world.states() == {"dovecot-0": "Ready", "dovecot-1": "Ready"}
    world.cluster.roll_out("edge")
    await world.reconcile()
    [first] = set(world.annotations())
    assert first
    template, config = world.template(), world.cluster.found(CONFIG_MAP, "edge-config")["data"]
    world.cluster.calls.clear()
    world.services.have(endpoint(0), endpoint(1, ready=False, terminating=True))
    outcome = await world.reconcile()
    assert world.states() == {"dovecot-0": "Ready", "dovecot-1": "Draining"}
    [second] = set(world.annotations())
    assert second != first
    assert (world.template(), world.cluster.found(CONFIG_MAP, "edge-config")["data"]) == (template, config)
    assert outcome.drifted == ()
    calls = [call[:2] for call in world.cluster.calls]
    assert calls[0] == ("apply", "ConfigMap")
    assert set(calls[1:-1]) == {("annotate", "Pod")}, calls  # before anything else


async def test_unchanged_members_write_nothing(world: World) -> None:
    for _ in range(3):
        await world.reconcile()
        world.cluster.roll_out("edge")
    await world.reconcile()
    await world.reconcile()
    world.cluster.calls.clear()
    await world.reconcile()
    assert world.cluster.calls == []


@pytest.mark.parametrize(
    "failure", [TransientError("no response"), TerminalError("forbidden", Reason.FORBIDDEN)]
)
async def test_pods_are_annotated_though_another_object_cannot_be_applied(
    world: World, failure: Exception
) -> None:
    await world.reconcile()
    world.cluster.roll_out("edge")
    await world.reconcile()
    [first] = set(world.annotations())
    world.services.have(endpoint(0))
    world.cluster.failures = {"ConfigMap": failure}
    world.put(**SPEC, replicas=3)
    await world.reconcile()
    assert set(world.annotations()) == {first}  # the kubelet would read the old members
    world.cluster.failures = {"Deployment": failure}
    await world.reconcile()
    assert set(world.annotations()).isdisjoint({first, ""})


async def test_pods_mount_the_members_as_an_optional_directory(world: World) -> None:
    await world.reconcile()
    spec = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]["spec"]
    [volume] = [one for one in spec["volumes"] if one["name"] == "members"]
    assert volume["configMap"] == {"name": "edge-members", "defaultMode": 0o440, "optional": True}
    [mount] = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == "members"]
    assert mount == {"name": "members", "mountPath": "/etc/mailproxy-members", "readOnly": True}


async def test_vanished_member_is_requeued_and_removed_after_its_grace(world: World) -> None:
    await world.reconcile()
    world.services.have(endpoint(0))
    outcome = await world.reconcile()
    assert world.states() == {"dovecot-0": "Ready", "dovecot-1": "Gone"}
    assert outcome.changes_after == 60.0
    # Another process continues where this one ended: the state is in the ConfigMap.
    world.time += timedelta(seconds=61)
    other = Reconciler(
        world.cluster, Platform(kube_version=KubeVersion(1, 36)), world.services, now=lambda: world.time
    )
    await other.reconcile(EDGE)
    assert world.states() == {"dovecot-0": "Ready"}


async def test_status_has_counts_and_condition(world: World) -> None:
    await world.reconcile()
    assert world.cluster.found_status("edge")["upstreams"] == [{"name": "dovecot", "ready": 2, "total": 2}]
    assert world.cluster.condition("edge", "GroupsReady") == ("True", "MembersReady")
    world.services.have(endpoint(0, ready=False, serving=False))
    await world.reconcile()
    assert world.cluster.found_status("edge")["upstreams"] == [{"name": "dovecot", "ready": 0, "total": 2}]
    assert world.cluster.condition("edge", "GroupsReady") == ("False", "NoReadyMembers")
    world.services.states[DOVECOT] = ServiceState(failure=ConditionCause(Reason.ENDPOINTS_FORBIDDEN, "no"))
    await world.reconcile()
    assert world.cluster.condition("edge", "GroupsReady") == ("Unknown", "EndpointsForbidden")


async def test_resource_without_services_has_neither_members_nor_condition(world: World) -> None:
    await world.reconcile()
    world.put(**{**SPEC, "upstreams": [{"name": "dovecot", "servers": [{"address": "192.0.2.1"}]}]})
    outcome = await world.reconcile()
    status = world.cluster.found_status("edge")
    assert "upstreams" not in status
    assert "GroupsReady" not in {one["type"] for one in status["conditions"]}
    assert world.services.wanted == {EDGE: frozenset()}
    # The operator may not delete ConfigMaps; nobody mounts this one any more.
    assert outcome.pruned == ()
    assert world.cluster.find(CONFIG_MAP, "edge-members")
    assert "members" not in world.template()


async def test_members_of_a_paused_resource_still_change(world: World) -> None:
    await world.reconcile()
    world.put(**SPEC, paused=True)
    world.services.have(endpoint(0))
    await world.reconcile()
    assert world.states() == {"dovecot-0": "Ready", "dovecot-1": "Gone"}


async def test_deleted_resource_releases_its_services(world: World) -> None:
    await world.reconcile()
    assert world.services.wanted == {EDGE: frozenset({DOVECOT})}
    del world.cluster.objects[MAIL_PROXY, EDGE]
    await world.reconcile()
    assert world.services.wanted == {EDGE: frozenset()}


async def test_network_policy_permits_the_ports_of_members(world: World) -> None:
    world.put(**SPEC, networkPolicy={"enabled": True})
    await world.reconcile()
    rules = world.cluster.found(NETWORK_POLICY, "edge")["spec"]["egress"]
    ports = {port["port"] for rule in rules for port in rule["ports"]}
    assert {143, 10143} <= ports


async def test_foreign_config_map_of_the_name_is_a_conflict(world: World) -> None:
    world.cluster.put(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "edge-members", "namespace": "mail"}}
    )
    await world.reconcile()
    assert world.cluster.condition("edge", "Accepted") == ("False", "NameConflict")

# SPDX-License-Identifier: Apache-2.0
"""Which events enqueue a MailProxy, and which do not."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import (
    AUTOSCALER,
    BACKEND_TLS_POLICY,
    CONFIG_MAP,
    DEPLOYMENT,
    MAIL_PROXY,
    OLDER_POLICIES,
    POD,
    SERVICE,
    Kind,
)
from mailproxy_operator.controller.cache import Cache
from mailproxy_operator.controller.handlers import EventHandlers
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.controller.work_queue import WorkQueue
from mailproxy_operator.settings import Platform
from support.backend_tls import policy
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster

EDGE = Key("mail", "edge")


class World:
    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.cache = Cache(self.cluster)
        self.resources: dict[Key, list[dict[str, Any]]] = {}
        self.cache.attach({MAIL_PROXY: self.resources})
        self.reconciler = Reconciler(self.cluster, Platform())
        self.handlers = EventHandlers(
            self.reconciler, self.cache, recorder=lambda *_: None, request_config=self.cluster.running_config
        )

    def is_enqueued(self) -> bool:
        """Return whether anything was enqueued since the last call."""
        found = bool(len(self.handlers.queue))
        self.handlers.queue = WorkQueue(self.reconciler.reconcile)
        return found


@pytest.fixture
async def world() -> World:
    made = World()
    made.cluster.put(body())
    await made.reconciler.reconcile(EDGE)
    return made


def metadata(**more: Any) -> dict[str, Any]:
    return {"name": "edge", "namespace": "mail", "uid": "u", "generation": 1, **more}


async def test_resource_is_enqueued_when_created_edited_or_deleted_but_not_for_its_status(
    world: World,
) -> None:
    steps = [
        (metadata(), False, True),
        (metadata(resourceVersion="2"), False, False),
        (metadata(generation=2), False, True),
        (metadata(generation=2, deletionTimestamp="now"), False, True),
        (metadata(generation=2, deletionTimestamp="now"), True, True),
        (metadata(uid="another"), False, True),
    ]
    for given, is_deleted, is_enqueued in steps:
        manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": given}
        world.handlers.changed(MAIL_PROXY, manifest, is_deleted=is_deleted)
        assert world.is_enqueued() is is_enqueued, given


@pytest.mark.parametrize(
    ("kind", "name", "is_enqueued"),
    [
        (CONFIG_MAP, "edge-config", False),  # equal to what was applied last
        (DEPLOYMENT, "edge", True),  # its status is relevant
        (SERVICE, "edge", True),
    ],
)
async def test_own_writes_enqueue_nothing(world: World, kind: Kind, name: str, is_enqueued: bool) -> None:
    world.handlers.changed(kind, world.cluster.found(kind, name), is_deleted=False)
    assert world.is_enqueued() is is_enqueued


async def test_status_of_an_autoscaler_enqueues_nothing(world: World) -> None:
    world.cluster.put({**world.cluster.found(MAIL_PROXY, "edge"), **body(autoscaling={"maxReplicas": 3})})
    await world.reconciler.reconcile(EDGE)
    found = world.cluster.found(AUTOSCALER, "edge")
    changed = {**found["metadata"], "resourceVersion": "9999"}
    measured = {**found, "metadata": changed, "status": {"currentReplicas": 2}}
    world.handlers.changed(AUTOSCALER, measured, is_deleted=False)
    assert not world.is_enqueued()
    edited = {**measured, "spec": {**found["spec"], "maxReplicas": 9}}
    world.handlers.changed(AUTOSCALER, edited, is_deleted=False)
    assert world.is_enqueued()


async def test_changes_by_others_enqueue_owner(world: World) -> None:
    edited = world.cluster.put({**world.cluster.found(CONFIG_MAP, "edge-config"), "data": {}})
    world.handlers.changed(CONFIG_MAP, edited, is_deleted=False)
    assert world.is_enqueued()
    world.handlers.changed(CONFIG_MAP, edited, is_deleted=True)
    assert world.is_enqueued()
    foreign_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "mail"}}
    world.handlers.changed(POD, foreign_pod, is_deleted=False)
    world.handlers.changed(POD, foreign_pod, is_deleted=True)
    assert not world.is_enqueued()


async def test_pod_with_sidecar_enqueues_both_proxies_in_its_labels(world: World) -> None:
    labels = {names.PROXY: "edge", names.INJECT: "other"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", "namespace": "mail", "labels": labels},
    }
    world.handlers.changed(POD, pod, is_deleted=False)
    assert world.handlers.queue.keys() == {EDGE, Key("mail", "other")}


async def test_resync_enqueues_every_resource_and_deleted_ones_once(world: World) -> None:
    world.handlers.changed(MAIL_PROXY, world.cluster.found(MAIL_PROXY, "edge"), is_deleted=False)
    assert world.is_enqueued()
    world.handlers.resync(spread=0.0)
    assert world.is_enqueued(), "it has vanished unseen"
    world.handlers.resync(spread=0.0)
    assert not world.is_enqueued(), "once is enough"
    world.resources[EDGE] = [world.cluster.found(MAIL_PROXY, "edge")]
    world.handlers.resync(spread=0.0)
    assert world.is_enqueued()


OURS = {"ancestorRef": {"name": "gone"}, "controllerName": "mailproxy.dev/operator", "conditions": []}


async def test_policy_enqueues_those_of_its_namespace_that_refer_to_a_service(world: World) -> None:
    """Any Service: a policy may have been for another one before."""
    with_service = {"authHttp": "http://auth/", "proxySslService": {"name": "cyrus"}}
    for namespace, name, spec in (
        ("mail", "edge", {}),
        ("mail", "named", {"mail": with_service}),
        ("mail", "of-server", {"servers": [{"name": "imap", "proxySslService": {"name": "x"}}]}),
        ("mail", "broken", {"servers": 7, "mail": []}),
        ("other", "elsewhere", {"mail": with_service}),
    ):
        resource = {**body(**spec), "metadata": {"name": name, "namespace": namespace}}
        world.resources[Key(namespace, name)] = [resource]
    found = {**policy(), "status": {"ancestors": [OURS]}}
    world.handlers.changed(BACKEND_TLS_POLICY, found, is_deleted=False)
    assert world.handlers.queue.keys() == {Key("mail", name) for name in ("named", "of-server", "gone")}


def test_versions_of_a_kind_have_different_ids() -> None:
    [older] = OLDER_POLICIES
    assert (BACKEND_TLS_POLICY.id, older.id) == ("backendtlspolicies", "backendtlspolicies_v1alpha3")
    assert MAIL_PROXY.id == MAIL_PROXY.plural

# SPDX-License-Identifier: Apache-2.0
"""Who is woken, and who is not."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator import names
from mailproxy_operator.cluster import Key
from mailproxy_operator.kinds import AUTOSCALER, CONFIG_MAP, DEPLOYMENT, MAIL_PROXY, OWNED, POD, SERVICE, Kind
from mailproxy_operator.listing import Page
from mailproxy_operator.reconcile import Reconciler
from mailproxy_operator.settings import Platform
from mailproxy_operator.snapshot import Snapshot
from mailproxy_operator.waker import Waker
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster

EDGE = Key("mail", "edge")


class World:
    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.reconciler = Reconciler(self.cluster, Platform())
        self.waker = Waker(self.reconciler, told=lambda *_: None, ask=self.cluster.running_config)

    def woken(self) -> bool:
        """Tell whether anybody was woken since the last time."""
        found = bool(len(self.waker.queue))
        self.waker.queue._entries.clear()
        return found

    def snapshot(self) -> Snapshot:
        kinds = (MAIL_PROXY, *OWNED, POD)
        return Snapshot(
            {kind: [one for (its, _), one in self.cluster.objects.items() if its is kind] for kind in kinds}
        )


@pytest.fixture
async def world() -> World:
    made = World()
    made.cluster.put(body())
    await made.reconciler.reconcile(EDGE)
    return made


def metadata(**more: Any) -> dict[str, Any]:
    return {"name": "edge", "namespace": "mail", "uid": "u", "generation": 1, **more}


async def test_a_resource_wakes_when_it_is_new_or_edited_or_deleted_but_not_for_its_status(
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
    for given, is_deleted, is_woken in steps:
        world.waker.resource_changed(given, is_deleted=is_deleted)
        assert world.woken() is is_woken, given


@pytest.mark.parametrize(
    ("kind", "name", "is_woken"),
    [
        (CONFIG_MAP, "edge-config", False),  # just as we left it
        (DEPLOYMENT, "edge", True),  # its status tells something
        (SERVICE, "edge", True),
    ],
)
async def test_what_we_wrote_ourselves_wakes_nobody(
    world: World, kind: Kind, name: str, is_woken: bool
) -> None:
    world.waker.owned_changed(kind, world.cluster.found(kind, name))
    assert world.woken() is is_woken


async def test_the_status_of_an_autoscaler_wakes_nobody(world: World) -> None:
    world.cluster.put({**world.cluster.found(MAIL_PROXY, "edge"), **body(autoscaling={"maxReplicas": 3})})
    await world.reconciler.reconcile(EDGE)
    found = world.cluster.found(AUTOSCALER, "edge")
    metadata = {**found["metadata"], "resourceVersion": "9999"}
    measured = {**found, "metadata": metadata, "status": {"currentReplicas": 2}}
    world.waker.owned_changed(AUTOSCALER, measured)
    assert not world.woken()
    world.waker.owned_changed(AUTOSCALER, {**measured, "spec": {**found["spec"], "maxReplicas": 9}})
    assert world.woken()


def page(kind: Kind, *items: dict[str, Any], **more: Any) -> Page:
    return Page(kind, "", items, **more)


@pytest.mark.parametrize(
    ("kind", "name"), [(DEPLOYMENT, "edge"), (SERVICE, "edge"), (CONFIG_MAP, "edge-config")]
)
async def test_what_changed_or_went_in_a_gap_of_the_watch_wakes_the_owner(
    world: World, kind: Kind, name: str
) -> None:
    before = world.cluster.found(kind, name)
    world.waker.listed(page(kind, before))
    assert not world.woken(), "the resync has looked at everything"
    world.waker.listed(page(kind, before))
    assert not world.woken(), "nothing has changed"
    after = {**before, "metadata": {**before["metadata"], "resourceVersion": "9999", "generation": 99}}
    after["data"] = {"mailproxy.json": "by hand"}
    world.waker.listed(page(kind, after))
    assert world.woken(), "it has changed"
    world.waker.listed(page(kind))
    assert world.woken(), "it is gone"
    world.waker.listed(page(kind, after))
    assert world.woken(), "it has come back"


async def test_a_status_that_changed_before_the_first_watch_began_wakes_the_owner(world: World) -> None:
    world.waker.resync(world.snapshot(), spread=0.0)
    world.woken()
    before = world.cluster.found(DEPLOYMENT, "edge")
    world.waker.listed(
        page(DEPLOYMENT, {**before, "metadata": {**before["metadata"], "resourceVersion": "7"}})
    )
    assert world.woken()
    world.waker.listed(page(SERVICE))
    assert world.woken()


async def test_what_a_watch_has_told_is_not_new_in_a_list(world: World) -> None:
    before = world.cluster.found(DEPLOYMENT, "edge")
    world.waker.listed(page(DEPLOYMENT, before))
    after = {**before, "metadata": {**before["metadata"], "resourceVersion": "9999"}}
    world.waker.owned_changed(DEPLOYMENT, after)
    assert world.woken()
    world.waker.listed(page(DEPLOYMENT, after))
    assert not world.woken()
    world.waker.owned_deleted(DEPLOYMENT, after)
    assert world.woken()
    world.waker.listed(page(DEPLOYMENT))
    assert not world.woken()


async def test_a_list_of_several_pages_is_compared_as_a_whole(world: World) -> None:
    one = world.cluster.found(DEPLOYMENT, "edge")
    other = {**one, "metadata": {**one["metadata"], "name": "second"}}
    first, last = page(DEPLOYMENT, one, is_last=False), page(DEPLOYMENT, other, is_first=False)
    for _ in range(2):
        world.waker.listed(first)
        world.waker.listed(last)
        assert not world.woken()
    world.waker.listed(first)  # its end is never reached: it has expired
    world.waker.listed(first)
    world.waker.listed(page(DEPLOYMENT, is_first=False))
    assert world.woken(), "the second one is gone"


async def test_a_resource_that_was_deleted_in_a_gap_is_forgotten(world: World) -> None:
    world.waker.resource_changed(metadata(), is_deleted=False)
    world.woken()
    world.waker.listed(page(MAIL_PROXY, {"metadata": metadata()}))
    assert not world.woken()
    world.waker.listed(Page(MAIL_PROXY, "other", ()))
    assert not world.woken(), "another namespace"
    world.waker.listed(page(MAIL_PROXY))
    assert world.woken()


async def test_pods_that_ask_for_a_sidecar_are_found_in_a_list_too(world: World) -> None:
    asking = {"metadata": {"name": "a", "namespace": "mail", "labels": {names.INJECT: "edge"}}}
    world.waker.carriers_listed(page(POD, asking))
    assert not world.woken()
    world.waker.carriers_listed(page(POD))
    assert world.woken()
    world.waker.carrier_changed(asking, is_deleted=False)
    assert world.woken()
    world.waker.carriers_listed(page(POD, asking))
    assert not world.woken()


async def test_what_others_did_wakes_the_owner(world: World) -> None:
    edited = world.cluster.put({**world.cluster.found(CONFIG_MAP, "edge-config"), "data": {}})
    world.waker.owned_changed(CONFIG_MAP, edited)
    assert world.woken()
    world.waker.owned_deleted(CONFIG_MAP, edited)
    assert world.woken()
    world.waker.owned_deleted(CONFIG_MAP, {"metadata": {"name": "x", "namespace": "mail"}})
    world.waker.owned_changed(POD, {"metadata": {"name": "x", "namespace": "mail"}})
    assert not world.woken()


async def test_a_resync_looks_at_the_snapshot_unless_something_happened_since(world: World) -> None:
    world.waker.resync(world.snapshot(), spread=0.0)
    assert world.woken()
    world.waker.resource_changed(world.cluster.found(MAIL_PROXY, "edge")["metadata"], is_deleted=False)
    assert not world.woken()
    del world.cluster.objects[SERVICE, EDGE]
    assert (await world.waker._work(EDGE)).drifted == (), "the snapshot still has the Service"
    world.waker.resync(world.snapshot(), spread=0.0)
    assert (await world.waker._work(EDGE)).drifted == ("Service",)
    world.waker.resync(world.snapshot(), spread=0.0)
    world.waker.owned_deleted(SERVICE, world.cluster.found(SERVICE, "edge"))
    del world.cluster.objects[SERVICE, EDGE]
    assert (await world.waker._work(EDGE)).drifted == ("Service",)


async def test_what_happens_while_a_snapshot_is_taken_is_not_lost(world: World) -> None:
    world.waker.about_to_look()
    stale = world.snapshot()
    world.waker.owned_deleted(SERVICE, world.cluster.found(SERVICE, "edge"))
    del world.cluster.objects[SERVICE, EDGE]
    world.waker.resync(stale, spread=0.0)
    assert (await world.waker._work(EDGE)).drifted == ("Service",)


async def test_a_resource_made_while_a_snapshot_is_taken_has_not_vanished(world: World) -> None:
    world.waker.about_to_look()
    stale = Snapshot({})
    world.waker.resource_changed(world.cluster.found(MAIL_PROXY, "edge")["metadata"], is_deleted=False)
    world.woken()
    world.waker.resync(stale, spread=0.0)
    assert not world.woken()


async def test_a_settled_resource_costs_a_resync_no_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("asked")

    world.waker.resync(world.snapshot(), spread=0.0)
    monkeypatch.setattr(world.cluster, "get", never)
    monkeypatch.setattr(world.cluster, "list_labelled", never)
    world.cluster.calls.clear()
    await world.waker._work(EDGE)
    assert world.cluster.calls == []


async def test_a_resource_that_vanished_unseen_is_found_by_the_resync(world: World) -> None:
    world.waker.resync(world.snapshot(), spread=0.0)
    await world.waker._work(EDGE)
    assert world.woken()
    del world.cluster.objects[MAIL_PROXY, EDGE]
    world.waker.resync(world.snapshot(), spread=0.0)
    assert world.woken()
    assert (await world.waker._work(EDGE)).is_gone
    world.waker.resync(world.snapshot(), spread=0.0)
    assert not world.woken(), "once is enough"


async def test_pages_of_two_namespaces_are_not_mixed_up(world: World) -> None:
    """Each namespace is listed by itself, and their pages come as they come."""
    world.waker.resync(world.snapshot(), spread=0.0)
    world.woken()
    world.waker.listed(Page(MAIL_PROXY, "mail", [world.cluster.found(MAIL_PROXY, "edge")], is_last=False))
    world.waker.listed(Page(MAIL_PROXY, "other", []))
    world.waker.listed(Page(MAIL_PROXY, "mail", [], is_first=False))
    assert not world.woken(), "it was on the first page"

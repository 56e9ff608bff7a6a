# SPDX-License-Identifier: Apache-2.0
"""Reads from kopf's indexes, own writes that the watch has not delivered yet, and deleted objects."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Applied, Key
from mailproxy_operator.api.kinds import (
    BACKEND_TLS_POLICY,
    CONFIG_MAP,
    OLDER_POLICIES,
    POD,
    SERVICE,
    Manifest,
)
from mailproxy_operator.controller.cache import NEVER_A_VERSION, Cache, slim
from mailproxy_operator.errors import NameConflict, NotFoundOrConflict
from support.backend_tls import policy
from support.operator_cluster import MemoryCluster

EDGE = Key("mail", "edge")


def config_map(version: int, uid: str = "one", *, data: str = "", owner: str = "proxy-uid") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "edge-config",
            "namespace": "mail",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": names.labels("edge"),
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "data": {"x": data},
    }


class Server(MemoryCluster):
    """Responds to applies that create objects as an API server does."""

    live: Manifest | None = None

    async def apply(self, manifest: Manifest, **more: Any) -> Applied:
        self.calls.append(("apply", manifest["kind"], manifest["metadata"].get("resourceVersion", "")))
        if manifest["metadata"].get("resourceVersion") == NEVER_A_VERSION and self.live:
            raise NotFoundOrConflict("the object has been modified")
        if "deleted" in self.failures:
            self.live = None
            del self.failures["deleted"]
            raise NotFoundOrConflict("the object has been modified")
        del more
        return Applied(config_map(50, data="applied"))

    async def get(self, *_: object) -> Manifest | None:
        self.calls.append(("get", "ConfigMap", ""))
        return self.live


class World:
    def __init__(self) -> None:
        self.server = Server()
        self.index: dict[Key, list[Manifest]] = {}
        self.cache = Cache(self.server)
        self.cache.attach({CONFIG_MAP: self.index})

    async def read(self) -> list[str]:
        found = await self.cache.list_labelled(CONFIG_MAP, "mail", names.owned_labels("edge"))
        return [one["metadata"]["resourceVersion"] for one in found]


@pytest.fixture
async def world() -> World:
    return World()


def new_config_map() -> Manifest:
    made = config_map(0)
    del made["metadata"]["uid"], made["metadata"]["resourceVersion"]
    return made


async def test_reads_make_no_requests(world: World) -> None:
    world.index[EDGE] = [config_map(10)]
    assert await world.read() == ["10"]
    assert await world.cache.list_labelled(SERVICE, "mail", names.owned_labels("edge")) == []
    assert await world.cache.get(CONFIG_MAP, EDGE) is None, "it has another name"
    assert world.server.calls == []


async def test_own_write_is_read_until_watch_delivers_it(world: World) -> None:
    world.index[EDGE] = [config_map(10)]
    world.cache.remember(config_map(12))
    assert await world.read() == ["12"]
    world.cache.observed(config_map(11))
    assert await world.read() == ["12"]
    world.index[EDGE] = [config_map(12)]
    world.cache.observed(config_map(12))
    world.index.clear()
    assert await world.read() == []


async def test_newer_event_wins_over_own_write(world: World) -> None:
    world.cache.remember(config_map(12))
    world.index[EDGE] = [config_map(13)]
    assert await world.read() == ["13"]


async def test_deleted_object_is_not_read_from_index(world: World) -> None:
    world.index[EDGE] = [config_map(10)]
    world.server.objects[CONFIG_MAP, Key("mail", "edge-config")] = config_map(10)
    assert await world.cache.delete(config_map(10))
    assert await world.read() == []
    world.cache.remember(config_map(10))
    assert await world.read() == [], "a response that arrives after the event"
    world.index[EDGE] = [config_map(11)]
    assert await world.read() == ["11"], "it had lost its label only"


async def test_object_that_could_not_be_deleted_is_still_read(world: World) -> None:
    """The API server responds with 404 or 409: the watch delivers the current object."""
    world.index[EDGE] = [config_map(10)]
    assert not await world.cache.delete(config_map(10))
    assert await world.read() == ["10"]


async def test_comparison_finds_object_deleted_while_watch_restarted(world: World) -> None:
    world.index[EDGE] = [config_map(10)]
    before = world.cache.uids(CONFIG_MAP)
    assert [one["metadata"]["uid"] for one in world.cache.compare(CONFIG_MAP, before, [])] == ["one"]
    assert await world.read() == []
    assert list(world.cache.compare(CONFIG_MAP, world.cache.uids(CONFIG_MAP), [])) == []


async def test_object_created_while_it_was_listed_is_kept(world: World) -> None:
    before = world.cache.uids(CONFIG_MAP)
    world.index[EDGE] = [config_map(10)]
    assert list(world.cache.compare(CONFIG_MAP, before, [])) == []
    assert await world.read() == ["10"]


async def test_comparison_finds_change_that_watch_missed(world: World) -> None:
    world.index[EDGE] = [config_map(10)]
    assert len(list(world.cache.compare(CONFIG_MAP, ["one"], [config_map(11)]))) == 1
    assert await world.read() == ["11"]
    assert list(world.cache.compare(CONFIG_MAP, ["one"], [config_map(11)])) == []


async def test_object_is_created_with_one_request(world: World) -> None:
    await world.cache.apply(new_config_map())
    assert world.server.calls == [("apply", "ConfigMap", NEVER_A_VERSION)]
    assert await world.read() == ["50"]


async def test_object_of_another_owner_is_not_changed(world: World) -> None:
    world.server.live = config_map(10, owner="other-uid")
    with pytest.raises(NameConflict, match="ConfigMap edge-config"):
        await world.cache.apply(new_config_map())
    assert [verb for verb, *_ in world.server.calls] == ["apply", "get"]


async def test_own_object_missing_in_cache_is_added_after_conflict(world: World) -> None:
    world.server.live = config_map(10)
    with pytest.raises(NotFoundOrConflict):
        await world.cache.apply(new_config_map())
    assert await world.read() == ["10"]


async def test_object_deleted_during_apply_is_created(world: World) -> None:
    world.server.failures["deleted"] = Exception()
    await world.cache.apply(new_config_map())
    assert [version for verb, _, version in world.server.calls if verb == "apply"] == [NEVER_A_VERSION, ""]


async def test_unlabelled_pods_are_read_in_addition_to_index(world: World) -> None:
    labels = {names.INJECT: "edge"}
    metadata = {"name": "a", "namespace": "mail", "uid": "p", "resourceVersion": "9", "labels": labels}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    assert world.cache.set_unlabelled_pods([pod]) == {EDGE}
    assert world.cache.set_unlabelled_pods([pod]) == set()
    assert await world.cache.list_labelled(POD, "mail", names.injected_pod_labels("edge")) == [pod]
    assert world.cache.set_unlabelled_pods([]) == {EDGE}
    assert await world.cache.list_labelled(POD, "mail", names.injected_pod_labels("edge")) == []


async def test_deletion_is_forgotten_when_object_is_in_no_index(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy_operator.controller.cache.FORGET_SECONDS", -1.0)
    world.index[EDGE] = [config_map(10)]
    world.cache.deleted(config_map(10))
    world.cache.forget_deleted()
    assert await world.read() == [], "the index still has it"
    world.index.clear()
    world.cache.forget_deleted()
    world.cache.remember(config_map(10))
    assert await world.read() == ["10"]


def test_index_keeps_the_own_managed_fields_of_deployments_only() -> None:
    fields = [{"manager": names.FIELD_MANAGER, "fieldsV1": {}}, {"manager": "kubectl"}]
    body = {"kind": "Deployment", "metadata": {"name": "edge", "managedFields": fields}}
    assert slim(body)["metadata"]["managedFields"] == fields[:1]
    assert slim({**body, "kind": "Service"})["metadata"]["managedFields"] == []


def stored_policy(number: int, name: str = "dovecot", **more: Any) -> Manifest:
    made = policy(name, **more)
    made["metadata"] |= {"uid": name, "resourceVersion": str(number)}
    return made


async def test_policies_are_those_of_the_namespace_in_the_first_version_of_the_cluster(world: World) -> None:
    [older] = OLDER_POLICIES
    assert await world.cache.policies("mail") is None
    old = {Key("mail", "dovecot"): [stored_policy(10, version="v1alpha3")]}
    world.cache.attach({older: old})
    assert await world.cache.policies("mail") == old[Key("mail", "dovecot")]
    new = {
        Key("mail", "dovecot"): [stored_policy(10)],
        Key("mail", "cyrus"): [stored_policy(11, "cyrus")],
        Key("other", "dovecot"): [stored_policy(12)],
    }
    world.cache.attach({BACKEND_TLS_POLICY: new, older: old})
    found = await world.cache.policies("mail") or []
    assert [one["metadata"]["resourceVersion"] for one in found] == ["11", "10"]


async def test_policy_that_was_deleted_or_is_missing_in_the_index(world: World) -> None:
    world.cache.attach({BACKEND_TLS_POLICY: {Key("mail", "dovecot"): [stored_policy(10)]}})
    world.cache.deleted(stored_policy(11))
    assert await world.cache.policies("mail") == []
    world.cache.remember(stored_policy(12, "cyrus"))
    found = await world.cache.policies("mail") or []
    assert [one["metadata"]["name"] for one in found] == ["cyrus"]

# SPDX-License-Identifier: Apache-2.0
"""Leader election: the Lease is acquired, renewed, lost, released and taken over."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from mailproxy_operator.api import leader_election
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.api.leader_election import LeaderElector
from mailproxy_operator.errors import TransientError

KEY = Key("mail", "operator")


class Store:
    """One Lease with optimistic locking."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.version = 0
        self.is_down = False

    async def read_lease(self, key: Key) -> Manifest | None:
        assert key == KEY
        if self.is_down:
            raise TransientError("down")
        return copy.deepcopy(self.lease)

    async def write_lease(self, manifest: Manifest) -> bool:
        current_version = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if manifest["metadata"].get("resourceVersion") != current_version:
            return False
        self.version += 1
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return True

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        spec: dict[str, Any] = self.lease["spec"]
        return spec


@pytest.fixture(autouse=True)
def _short_durations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_election, "DURATION_SECONDS", 0.3)
    monkeypatch.setattr(leader_election, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(leader_election, "RETRY_SECONDS", 0.02)


async def test_first_candidate_acquires_lease() -> None:
    store = Store()
    await LeaderElector(store, KEY, "a").acquire()
    assert (store.spec["holderIdentity"], store.spec["leaseTransitions"]) == ("a", 0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await LeaderElector(store, KEY, "b").acquire()
    assert store.spec["holderIdentity"] == "a"


async def test_lease_that_is_not_renewed_is_taken_over() -> None:
    store = Store()
    await LeaderElector(store, KEY, "a").acquire()
    async with asyncio.timeout(60):
        await LeaderElector(store, KEY, "b").acquire()
    assert (store.spec["holderIdentity"], store.spec["leaseTransitions"]) == ("b", 1)


async def test_renewed_lease_is_not_taken_over() -> None:
    store = Store()
    holder = LeaderElector(store, KEY, "a")
    await holder.acquire()
    async with asyncio.TaskGroup() as tasks:
        holding = tasks.create_task(holder.renew())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await LeaderElector(store, KEY, "b").acquire()
        holding.cancel()
    assert store.spec["holderIdentity"] == "a"


async def test_released_lease_can_be_acquired_at_once() -> None:
    store = Store()
    holder = LeaderElector(store, KEY, "a")
    await holder.acquire()
    await holder.release()
    assert store.spec["holderIdentity"] == ""
    await LeaderElector(store, KEY, "b").acquire()
    await holder.release()
    assert store.spec["holderIdentity"] == "b"


async def test_late_renewal_does_not_prevent_release() -> None:
    store = Store()
    holder = LeaderElector(store, KEY, "a")
    await holder.acquire()
    read, late = store.read_lease, iter([True, False, False])

    async def read_then_renew(key: Key) -> Manifest | None:
        found = await read(key)
        if next(late) and found is not None:
            assert await store.write_lease(found)
        return found

    store.read_lease = read_then_renew  # type: ignore[method-assign]
    await holder.release()
    assert store.spec["holderIdentity"] == ""


async def test_lease_acquired_by_another_holder_is_lost() -> None:
    store = Store()
    holder = LeaderElector(store, KEY, "a")
    await holder.acquire()
    store.spec["holderIdentity"] = "other"
    async with asyncio.timeout(60):
        await holder.renew()
    assert store.spec["holderIdentity"] == "other"


async def test_lease_is_lost_when_api_server_is_down_too_long() -> None:
    store = Store()
    holder = LeaderElector(store, KEY, "a")
    await holder.acquire()
    store.is_down = True
    async with asyncio.timeout(60):
        await holder.renew()
    await holder.release()


OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "op-0", "uid": "u-0"}


async def test_lease_belongs_to_the_pod_of_its_holder() -> None:
    """Kubernetes deletes objects whose owner is gone, so the Lease is deleted with the operator's pod."""
    store = Store()
    first = LeaderElector(store, KEY, "a", owner=OWNER)
    await first.acquire()
    assert store.lease is not None
    assert store.lease["metadata"]["ownerReferences"] == [OWNER]
    await first.release()
    other = {**OWNER, "name": "op-1", "uid": "u-1"}
    await LeaderElector(store, KEY, "b", owner=other).acquire()
    assert store.lease["metadata"]["ownerReferences"] == [other]


async def test_deleted_lease_is_created_again() -> None:
    store = Store()
    first = LeaderElector(store, KEY, "a", owner=OWNER)
    await first.acquire()
    store.lease = None
    await LeaderElector(store, KEY, "b").acquire()
    assert store.spec["holderIdentity"] == "b"

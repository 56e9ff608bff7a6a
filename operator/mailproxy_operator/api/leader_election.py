# SPDX-License-Identifier: Apache-2.0
"""Leader election: of several operators, the holder of the Lease reconciles.

Clocks of other machines are not used: a Lease has expired when its record has
not changed for its full duration, measured on the local clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from mailproxy_operator.api.client import KubeClient
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import LEASE, Manifest
from mailproxy_operator.errors import OperatorError

DURATION_SECONDS = 15.0
RENEW_SECONDS = 5.0
RETRY_SECONDS = 2.0
TRIES = 3

_log = logging.getLogger(__name__)


class LeaderElector:
    """One candidate of the election.

    Args:
        store: The client for the Lease.
        key: The namespace and name of the Lease.
        identity: The holder identity of this process.
        owner: An owner reference to this process's pod, in the namespace of the Lease: the Lease is
            garbage-collected with the pod of its last holder, for example after an uninstallation.
        now: Returns the time, for the record only.
    """

    def __init__(
        self,
        store: KubeClient,
        key: Key,
        identity: str,
        *,
        owner: Manifest | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._key = key
        self._identity = identity
        self._owner = owner
        self._now = now
        self._record: object = None
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Wait until this process holds the Lease."""
        logged = ""
        while True:
            try:
                if await self._try_to_acquire():
                    _log.info("holding the lease %s as %s", self._key, self._identity)
                    return
            except OperatorError as failure:
                if str(failure) != logged:
                    logged = str(failure)
                    _log.warning("the lease %s could not be acquired: %s", self._key, failure)
            await asyncio.sleep(RETRY_SECONDS)

    async def renew(self) -> None:
        """Renew the Lease; return when it is lost or could not be renewed before its deadline."""
        clock = asyncio.get_running_loop().time
        renewed = clock()
        while clock() - renewed < DURATION_SECONDS - RENEW_SECONDS:
            await asyncio.sleep(RENEW_SECONDS if clock() - renewed < RENEW_SECONDS else RETRY_SECONDS)
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    if not await self._try_to_acquire():
                        break
                renewed = clock()
            except (OperatorError, TimeoutError) as failure:
                _log.warning("the lease %s could not be renewed: %s", self._key, failure)
        _log.error("the lease %s is lost", self._key)

    async def release(self) -> None:
        """Release the Lease, so that another candidate does not have to wait."""
        with suppress(OperatorError, TimeoutError):
            await self._release()

    async def _release(self) -> None:
        async with asyncio.timeout(RENEW_SECONDS):
            for _ in range(TRIES):
                # A cancelled renewal may still reach the API server; this write then fails with a conflict.
                lease = await self._store.read_lease(self._key)
                if lease is None or _holder(lease) != self._identity:
                    return
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                if await self._store.write_lease({**_without_spec(lease), "spec": spec}):
                    return

    async def _try_to_acquire(self) -> bool:
        lease = await self._store.read_lease(self._key)
        if lease is None:
            return await self._store.write_lease(self._lease(None, 0))
        if _holder(lease) not in {"", self._identity} and not self._has_expired(lease):
            return False
        spec = lease.get("spec") or {}
        is_change = _holder(lease) != self._identity
        transitions = int(spec.get("leaseTransitions") or 0) + is_change
        updated = self._lease(lease, transitions)
        if not is_change and spec.get("acquireTime"):
            updated["spec"]["acquireTime"] = spec["acquireTime"]
        return await self._store.write_lease(updated)

    def _has_expired(self, lease: Manifest) -> bool:
        clock = asyncio.get_running_loop().time()
        record = lease.get("spec"), lease["metadata"].get("resourceVersion")
        if record != self._record:
            self._record, self._seen_at = record, clock
        return clock - self._seen_at > DURATION_SECONDS

    def _lease(self, before: Manifest | None, transitions: int) -> Manifest:
        now = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        new_lease: Manifest = {"metadata": {"name": self._key.name, "namespace": self._key.namespace}}
        lease = _without_spec(before or new_lease)
        if self._owner is not None:
            lease["metadata"]["ownerReferences"] = [dict(self._owner)]
        return {
            **lease,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(DURATION_SECONDS),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }


def _holder(lease: Manifest) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def _without_spec(lease: Manifest) -> Manifest:
    metadata = {key: value for key, value in lease["metadata"].items() if key != "managedFields"}
    return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata}

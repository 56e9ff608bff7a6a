# SPDX-License-Identifier: Apache-2.0
"""The cache that a reconcile reads: the indexes of kopf, and the later writes of this process.

An index follows the watch, so it is stale for a short time after each write.  It also keeps an object
that was deleted between the end of a watch and the next list.  Three mechanisms correct this: responses
to own writes are used until the watch has delivered them, objects that are known to be deleted are
left out, and a resync compares the indexes with complete lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.client import KubeClient
from mailproxy_operator.api.cluster import NO_LABELS, Applied, Key, RunningConfig
from mailproxy_operator.api.kinds import (
    MAIL_PROXY,
    POD,
    POLICIES,
    Kind,
    Manifest,
    is_controlled_by,
    kind_of,
    uid_of,
)
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.errors import NameConflict, NotFoundOrConflict

NEVER_A_VERSION = "1"
"""No object has this resource version: an apply with it creates an object or fails with a conflict."""
FORGET_SECONDS = 600.0
"""Minimum time for which a deletion is kept; longer than a reconcile that still uses the object."""

Index = Mapping[Key, Iterable[Manifest]]


class Cache:
    """Implements ``Cluster``: reads are served from memory, all other calls go to the API server.

    Args:
        cluster: The API server.
    """

    def __init__(self, cluster: KubeClient) -> None:
        self._cluster = cluster
        self._indexes: Mapping[Kind, Index] = {}
        self._written: dict[tuple[Kind, Key], dict[str, Manifest]] = {}
        self._deleted: dict[str, tuple[int, float]] = {}
        self._unlabelled: dict[Key, list[Manifest]] = {}

    def attach(self, indexes: Mapping[Kind, Index]) -> None:
        """Set the indexes to read from."""
        self._indexes = indexes

    # -- reads ------------------------------------------------------------

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Return a MailProxy, or an owned object with the name of its MailProxy."""
        return self._owned_by(kind, key).get(key.name)

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Return the objects of one MailProxy with these labels; one of the labels is its name."""
        owner = Key(namespace, names.owner_of(labels))
        found = list(self._owned_by(kind, owner).values())
        if kind is POD:
            known = {one["metadata"]["name"] for one in found}
            unlabelled = self._unlabelled.get(owner, [])
            found += [one for one in unlabelled if one["metadata"]["name"] not in known]
        return [one for one in found if labels.items() <= (one["metadata"].get("labels") or {}).items()]

    async def policies(self, namespace: str) -> list[Manifest] | None:
        """Return the BackendTLSPolicies of a namespace; ``None`` if the cluster does not have the kind."""
        kind = next((kind for kind in POLICIES if kind in self._indexes), None)
        if kind is None:
            return None
        keys = {*self._indexes[kind], *(key for written, key in self._written if written is kind)}
        return [
            one
            for key in sorted(key for key in keys if key.namespace == namespace)
            for one in self._owned_by(kind, key).values()
        ]

    def resources(self) -> list[Manifest]:
        """Return every MailProxy."""
        keys = set(self._indexes[MAIL_PROXY]) | {key for kind, key in self._written if kind is MAIL_PROXY}
        return [one for key in keys for one in self._owned_by(MAIL_PROXY, key).values()]

    def uids(self, kind: Kind) -> dict[str, Manifest]:
        """Return the objects in the index of a kind, by uid, without those that are known to be deleted."""
        found = (one for objects in self._indexes.get(kind, {}).values() for one in objects)
        return {uid_of(one): one for one in found if not self._is_deleted(one)}

    def _owned_by(self, kind: Kind, owner: Key) -> dict[str, Manifest]:
        """Return the objects of a MailProxy by name: the newer one of index and own writes."""
        found: dict[str, Manifest] = {}
        index = self._indexes.get(kind, {})
        indexed: Iterable[Manifest] = index.get(owner, ())
        for one in (*indexed, *self._written.get((kind, owner), {}).values()):
            name = one["metadata"]["name"]
            is_newest = name not in found or _version(one) > _version(found[name])
            if is_newest and not self._is_deleted(one):
                found[name] = one
        return found

    # -- events ----------------------------------------------------------

    def remember(self, manifest: Manifest) -> None:
        """Use this object until the watch has delivered it or a newer version."""
        kind, owner = kind_of(manifest), _owner(manifest)
        if not self._is_deleted(manifest):
            self._written.setdefault((kind, owner), {})[manifest["metadata"]["name"]] = manifest

    def observed(self, manifest: Manifest) -> None:
        """Process an event of a watch: drop an own write that is not newer."""
        at, name = (kind_of(manifest), _owner(manifest)), manifest["metadata"]["name"]
        written = self._written.get(at, {})
        if name in written and _version(written[name]) <= _version(manifest):
            self._drop(at, name)

    def deleted(self, manifest: Manifest) -> None:
        """Record that an object was deleted or no longer matches the selector; a newer version may follow."""
        self._deleted[uid_of(manifest)] = _version(manifest), asyncio.get_running_loop().time()
        at, name = (kind_of(manifest), _owner(manifest)), manifest["metadata"]["name"]
        written = self._written.get(at, {}).get(name)
        if written is not None and uid_of(written) == uid_of(manifest):
            self._drop(at, name)

    def set_unlabelled_pods(self, pods: Iterable[Manifest]) -> set[Key]:
        """Replace the set of pods that request a sidecar and lack the label of a proxy.

        Returns:
            The MailProxies whose pods have changed.
        """
        before, now = self._unlabelled, dict[Key, list[Manifest]]()
        for pod in pods:
            now.setdefault(_owner(pod), []).append(pod)
        self._unlabelled = now
        return {key for key in before.keys() | now.keys() if _states(before, key) != _states(now, key)}

    def compare(self, kind: Kind, before: Iterable[str], listed: Iterable[Manifest]) -> Iterator[Manifest]:
        """Compare the cache with a complete list, correct it, and return the objects that differed.

        Args:
            kind: The kind of the objects.
            before: The uids in the index before the list was requested.
            listed: The complete list.
        """
        there = {uid_of(one): one for one in listed}
        indexed = self.uids(kind)
        for uid in set(before) - there.keys():
            if uid in indexed:
                self.deleted(indexed[uid])
                yield indexed[uid]
        for one in there.values():
            known = self._owned_by(kind, _owner(one)).get(one["metadata"]["name"])
            if not self._is_deleted(one) and (known is None or _version(known) < _version(one)):
                self.remember(one)
                yield one

    def forget_deleted(self) -> None:
        """Drop uids of objects that were deleted long ago and are in no index."""
        now = asyncio.get_running_loop().time()
        indexed = {
            uid_of(one) for index in self._indexes.values() for objects in index.values() for one in objects
        }
        for uid, (_, since) in list(self._deleted.items()):
            if now - since > FORGET_SECONDS and uid not in indexed:
                del self._deleted[uid]

    def _is_deleted(self, manifest: Manifest) -> bool:
        version, _ = self._deleted.get(uid_of(manifest), (-1, 0.0))
        return _version(manifest) <= version

    def _drop(self, at: tuple[Kind, Key], name: str) -> None:
        del self._written[at][name]
        if not self._written[at]:
            del self._written[at]

    # -- writes -----------------------------------------------------------

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        """Apply server-side; without a uid in the manifest, the object is created.

        Raises:
            NameConflict: An object of this name exists and has another owner.
        """
        if "uid" in manifest["metadata"]:
            applied = await self._cluster.apply(manifest, manager=manager, force=force)
        else:
            applied = await self._create(manifest)
        self.remember(applied.manifest)
        return applied

    async def _create(self, manifest: Manifest) -> Applied:
        """Create an object with an apply that cannot change an existing object."""
        kind, metadata = kind_of(manifest), manifest["metadata"]
        try:
            return await self._cluster.apply(
                {**manifest, "metadata": {**metadata, "resourceVersion": NEVER_A_VERSION}}
            )
        except NotFoundOrConflict:
            live = await self._cluster.get(kind, Key(metadata["namespace"], metadata["name"]))
            if live is None:  # it was deleted in the meantime
                return await self._cluster.apply(manifest)
            if not is_controlled_by(live, metadata["ownerReferences"][0]["uid"]):
                raise NameConflict(f"{kind.name} {metadata['name']}") from None
            self.remember(live)
            raise

    async def apply_status(self, manifest: Manifest) -> Manifest | None:
        """Apply the status of a MailProxy."""
        applied = await self._cluster.apply_status(manifest)
        if applied is not None:
            self.remember(applied)
        return applied

    async def delete(self, manifest: Manifest) -> bool:
        """Delete the object with this uid."""
        is_deleted = await self._cluster.delete(manifest)
        if is_deleted:  # otherwise the watch delivers the current object
            self.deleted(manifest)
        return is_deleted

    async def patch_annotations(
        self, kind: Kind, key: Key, annotations: Mapping[str, str], *, labels: Mapping[str, str] = NO_LABELS
    ) -> Manifest | None:
        """Set annotations and labels of an object."""
        patched = await self._cluster.patch_annotations(kind, key, annotations, labels=labels)
        if patched is not None:
            self.remember(patched)
        return patched

    async def write_ancestors(self, policy: Manifest, entries: list[Manifest]) -> None:
        """Write ``status.ancestors`` of a policy."""
        await self._cluster.write_ancestors(policy, entries)

    # -- delegated --------------------------------------------------------

    async def list_tls_secrets(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the metadata of Secrets."""
        return await self._cluster.list_tls_secrets(namespace, labels)

    async def config_map_keys(self, key: Key) -> frozenset[str] | None:
        """Read the keys of a ConfigMap, which may have another owner."""
        return await self._cluster.config_map_keys(key)

    async def version(self) -> KubeVersion:
        """Return the version of the oldest node."""
        return await self._cluster.version()

    async def running_config(self, pod: Manifest) -> RunningConfig | None:
        """Request the running configuration of a pod."""
        return await self._cluster.running_config(pod)

    async def mount_failures(self, namespace: str) -> dict[str, str]:
        """Return recent mount failures by pod."""
        return await self._cluster.mount_failures(namespace)

    async def create_event(self, manifest: Manifest) -> None:
        """Create an event."""
        await self._cluster.create_event(manifest)


def slim(body: Mapping[str, Any]) -> Manifest:
    """Copy an object for an index without unused fields: most of ``managedFields``."""
    metadata = dict(body["metadata"])
    if "managedFields" in metadata:
        ours = [one for one in metadata["managedFields"] if one.get("manager") == names.FIELD_MANAGER]
        metadata["managedFields"] = ours if body["kind"] == "Deployment" else []
    return {**body, "metadata": metadata}


def _owner(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    namespace = str(metadata["namespace"])
    if kind_of(manifest) in (MAIL_PROXY, *POLICIES):
        return Key(namespace, str(metadata["name"]))
    return Key(namespace, names.owner_of(metadata.get("labels") or {}))


def _version(manifest: Manifest) -> int:
    """Return the resource version as a number: always so in Kubernetes, and documented since 1.35."""
    text = str(manifest["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _states(pods: Mapping[Key, Iterable[Manifest]], key: Key) -> set[tuple[str, int]]:
    return {(uid_of(pod), _version(pod)) for pod in pods.get(key, ())}

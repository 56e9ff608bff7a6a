# SPDX-License-Identifier: Apache-2.0
"""The objects that one MailProxy owns: applied, kept and pruned.  Objects of other owners are not changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Applied, Cluster, Key
from mailproxy_operator.api.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DAEMON_SET,
    DEPLOYMENT,
    OWNED,
    SERVICE,
    WORKLOADS,
    Kind,
    Manifest,
    is_controlled_by,
    kind_of,
    uid_of,
)
from mailproxy_operator.errors import (
    ConditionCause,
    KindMissing,
    NameConflict,
    NotFoundOrConflict,
    TerminalError,
    TransientError,
)
from mailproxy_operator.reasons import Reason

_Name = tuple[Kind, str]
_ADVICE = {
    Reason.FORBIDDEN: (
        "change the quota or the policy, or give the operator this permission (deploy/rbac.yaml); "
        "the operator tries again every minute"
    ),
    Reason.INVALID_POD_FIELDS: "correct the field: spec.pod, or another field of spec that sets it",
    Reason.INVALID_SPEC: "correct the field of spec that sets it",
}
"""What to do, by the reasons with which the API server refuses an object."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One apply: the digest of the rendering, the fingerprint of the result, the warnings."""

    digest: str
    fingerprint: str
    warnings: tuple[str, ...]


class AppliedCache:
    """The last applied state, so that a reconcile without changes writes nothing.

    The live object is authoritative: an object is applied again when it has
    changed since the last apply.
    """

    def __init__(self) -> None:
        self._entries: dict[Key, dict[_Name, _Entry]] = {}

    def forget(self, key: Key) -> None:
        """Remove the entries of one resource."""
        self._entries.pop(key, None)

    def has_entries(self, key: Key) -> bool:
        """Return whether any object was applied for a resource."""
        return key in self._entries

    def keep_only(self, key: Key, rendered: Collection[_Name]) -> None:
        """Remove objects that are no longer rendered; when they are rendered again, that is not drift."""
        entries = self._entries.get(key, {})
        for name in entries.keys() - rendered:
            del entries[name]

    def applied_digest(self, key: Key, name: _Name) -> str | None:
        """Return the digest of the last applied rendering."""
        entry = self._entries.get(key, {}).get(name)
        return entry.digest if entry else None

    def unchanged_since_apply_of(self, key: Key, name: _Name, digest: str, live: Manifest) -> bool:
        """Return whether this rendering was applied and the object has not changed since."""
        entry = self._entries.get(key, {}).get(name)
        return entry is not None and (entry.digest, entry.fingerprint) == (digest, _fingerprint(live))

    def unchanged_since_apply(self, key: Key, name: _Name, live: Manifest) -> bool:
        """Return whether an object has not changed since the last apply, for any current rendering."""
        entry = self._entries.get(key, {}).get(name)
        return entry is not None and entry.fingerprint == _fingerprint(live)

    def record(self, key: Key, name: _Name, digest: str, applied: Applied) -> None:
        """Record an apply and its result."""
        entry = _Entry(digest, _fingerprint(applied.manifest), applied.warnings)
        self._entries.setdefault(key, {})[name] = entry

    def warnings(self, key: Key) -> tuple[str, ...]:
        """Return the warnings of the API server about the applied objects, without duplicates."""
        found = (warning for entry in self._entries.get(key, {}).values() for warning in entry.warnings)
        return tuple(dict.fromkeys(found))


def _fingerprint(live: Manifest) -> str:
    """Return a string that changes when the object changes, its status excepted.

    The generation changes with the spec only, so labels, annotations and owner references are compared
    separately.  Some kinds have no generation.  The resource version cannot be used: it changes with the
    status, which changes often for an autoscaler.
    """
    metadata = live["metadata"]
    metadata_digest = _digest(
        {name: metadata.get(name) for name in ("labels", "annotations", "ownerReferences")}
    )
    content = metadata.get("generation") or _digest(
        {name: part for name, part in live.items() if name not in _NOT_CONTENT}
    )
    return f"{uid_of(live)}/{content}/{metadata_digest}"


_NOT_CONTENT = frozenset({"apiVersion", "kind", "metadata", "status"})


class Children:
    """The objects that one MailProxy owns, as read and as applied.

    Attributes:
        drifted: Kinds with drift that was repaired.
        lacking: Kinds that are rendered and that the cluster does not have.
    """

    def __init__(self, cluster: Cluster, applied_cache: AppliedCache, key: Key, uid: str) -> None:
        self._cluster = cluster
        self._applied = applied_cache
        self._key = key
        self._uid = uid
        self._live: dict[_Name, Manifest] = {}
        self._rendered: set[_Name] = set()
        self.drifted: list[str] = []
        self.lacking: set[str] = set()

    async def read(self, kinds: Sequence[Kind] = OWNED) -> None:
        """Read all objects that the MailProxy owns, or those of some kinds."""
        labels = names.owned_labels(self._key.name)
        for kind in kinds:
            for found in await self._cluster.list_labelled(kind, self._key.namespace, labels):
                if is_controlled_by(found, self._uid):
                    self._live[kind, found["metadata"]["name"]] = found

    def workloads(self) -> list[Manifest]:
        """Return the existing Deployment and DaemonSet."""
        return [live for (kind, _), live in self._live.items() if kind in WORKLOADS]

    def workload(self, mode: str) -> Manifest | None:
        """Return the workload of a mode, if it exists."""
        kind = {"Deployment": DEPLOYMENT, "DaemonSet": DAEMON_SET}.get(mode)
        return self._live.get((kind, self._key.name)) if kind else None

    def config_map(self, name: str) -> Manifest | None:
        """Return a ConfigMap, if it exists."""
        return self._live.get((CONFIG_MAP, name))

    def service(self) -> Manifest | None:
        """Return the mail Service, if it exists."""
        return self._live.get((SERVICE, self._key.name))

    async def apply_one(self, manifest: Manifest) -> None:
        """Apply one existing object, independently of the others.

        Raises:
            OperatorError: The object could not be applied.
        """
        await self._apply(manifest)

    async def apply(self, manifests: Sequence[Manifest]) -> ConditionCause | None:
        """Apply the objects that differ from their last applied state.

        Args:
            manifests: All rendered objects.

        Returns:
            The cause of a terminal error, if any.

        Raises:
            TransientError: A retry may succeed.
        """
        self._rendered = {(kind_of(manifest), manifest["metadata"]["name"]) for manifest in manifests}
        self._applied.keep_only(self._key, self._rendered)
        try:
            await self._read_unlabelled(manifests)
            for manifest in manifests:
                await self._apply(manifest)
        except NameConflict as error:
            return ConditionCause(
                Reason.NAME_CONFLICT,
                f"{error} exists and does not belong to this MailProxy; "
                "rename the MailProxy (metadata.name), or delete that object",
            )
        except TerminalError as error:
            return ConditionCause(error.reason, f"{error}; {_ADVICE[error.reason]}")
        except NotFoundOrConflict as error:
            raise TransientError(str(error), delay=1.0) from error
        return None

    async def _read_unlabelled(self, manifests: Iterable[Manifest]) -> None:
        """Read by name those rendered objects that were not found by their labels.

        Raises:
            NameConflict: The object has another owner; a forced apply would merge into it.
        """
        for manifest in manifests:
            kind, name = kind_of(manifest), manifest["metadata"]["name"]
            if (kind, name) in self._live:
                continue
            found = await self._cluster.get(kind, Key(self._key.namespace, name))
            if found is not None and not is_controlled_by(found, self._uid):
                raise NameConflict(f"{kind.name} {name}")
            if found is not None:
                self._live[kind, name] = found

    async def _apply(self, manifest: Manifest) -> None:
        kind, name = kind_of(manifest), manifest["metadata"]["name"]
        digest, live = _digest(manifest), self._live.get((kind, name))
        if live is not None and self._applied.unchanged_since_apply_of(self._key, (kind, name), digest, live):
            return
        if live is not None:
            manifest = {**manifest, "metadata": {**manifest["metadata"], "uid": uid_of(live)}}
            await self._hand_over_replicas(manifest, live)
        try:
            applied = await self._cluster.apply(manifest)
        except KindMissing:
            self.lacking.add(kind.name)
            return
        is_changed = live is None or _fingerprint(live) != _fingerprint(applied.manifest)
        if is_changed and self._applied.applied_digest(self._key, (kind, name)) == digest:
            self.drifted.append(kind.name)
        self._live[kind, name] = applied.manifest
        self._applied.record(self._key, (kind, name), digest, applied)

    async def _hand_over_replicas(self, manifest: Manifest, live: Manifest) -> None:
        """Keep ``replicas`` until an autoscaler owns it: an apply without the field would reset it to 1."""
        if kind_of(manifest) is not DEPLOYMENT or "replicas" in manifest["spec"] or not _owns_replicas(live):
            return
        manifest_of_replicas = {
            "apiVersion": manifest["apiVersion"],
            "kind": manifest["kind"],
            "metadata": {key: manifest["metadata"][key] for key in ("name", "namespace", "uid")},
            "spec": {"replicas": live["spec"].get("replicas", 1)},
        }
        await self._cluster.apply(manifest_of_replicas, manager=names.HANDOVER_MANAGER, force=False)

    async def prune(self, *, keep: Sequence[Kind]) -> tuple[str, ...]:
        """Delete owned objects that are no longer rendered.

        Args:
            keep: Kinds that must not be deleted yet.

        Returns:
            The kinds of the deleted objects.
        """
        unwanted = [
            live
            for (kind, name), live in self._live.items()
            if (kind, name) not in self._rendered and kind not in keep
        ]
        # Delete the autoscaler first: it must not scale a workload that is about to be deleted.
        unwanted.sort(key=lambda live: kind_of(live) is not AUTOSCALER)
        for live in unwanted:
            await self._cluster.delete(live)
            self._live.pop((kind_of(live), live["metadata"]["name"]))
        return tuple(kind_of(live).name for live in unwanted)


def _digest(manifest: Manifest) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _owns_replicas(live: Manifest) -> bool:
    return any(
        entry.get("manager") == names.FIELD_MANAGER
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in live["metadata"].get("managedFields") or []
    )

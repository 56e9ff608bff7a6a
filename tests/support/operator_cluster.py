# SPDX-License-Identifier: Apache-2.0
"""The operator's cluster interface in memory: applies objects, records calls, and fails on request."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import NO_LABELS, Applied, Key, RunningConfig
from mailproxy_operator.api.kinds import (
    CONFIG_MAP,
    DAEMON_SET,
    DEPLOYMENT,
    MAIL_PROXY,
    POD,
    POLICIES,
    Kind,
    Manifest,
    kind_of,
    uid_of,
)
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.errors import TransientError
from support.reasons_page import check_event, check_status


def key_of(manifest: Mapping[str, Any]) -> Key:
    """Return namespace and name of an object."""
    return Key(manifest["metadata"].get("namespace", "default"), manifest["metadata"]["name"])


class MemoryCluster:
    """A cluster in which a test does the work of the controllers.

    Attributes:
        calls: Every call that changes something: (verb, kind, name).
        failures: The errors to raise: by kind for apply, and for ``annotate``.
        secrets: The metadata of the Secrets of type kubernetes.io/tls.
        listed_secrets: How often they were listed.
        running: The configuration that each pod reports, by name; other pods do not respond.
        has_policies: Whether the cluster has BackendTLSPolicies.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, Key], Manifest] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.failures: dict[str, Exception] = {}
        self.running: dict[str, RunningConfig] = {}
        self.mounts: dict[str, str] = {}
        self.secrets: list[Manifest] = []
        self.listed_secrets = 0
        self.events: list[Manifest] = []
        self.has_policies = True
        self._counter = itertools.count(1)

    # -- what tests do ----------------------------------------------------

    def put(self, manifest: Manifest) -> Manifest:
        """Store an object as another client does."""
        kind, key = kind_of(manifest), key_of(manifest)
        before = self.objects.get((kind, key))
        stored = copy.deepcopy(manifest)
        self._stamp(stored, before)
        self.objects[kind, key] = stored
        return stored

    def find(self, kind: Kind, name: str, namespace: str = "mail") -> Manifest | None:
        """Return an object, or ``None``."""
        return self.objects.get((kind, Key(namespace, name)))

    def found(self, kind: Kind, name: str, namespace: str = "mail") -> Manifest:
        """Return an object that must exist."""
        manifest = self.find(kind, name, namespace)
        assert manifest is not None, f"no {kind.name} {name}"
        return manifest

    def found_status(self, name: str) -> Manifest:
        """Return the status of a MailProxy; empty if it has none yet."""
        status: Manifest = self.found(MAIL_PROXY, name).get("status") or {}
        return status

    def condition(self, name: str, kind: str = "Ready") -> tuple[str, str]:
        """Return status and reason of a condition of a MailProxy."""
        status = self.found(MAIL_PROXY, name)["status"]
        one = next(one for one in status["conditions"] if one["type"] == kind)
        return one["status"], one["reason"]

    def roll_out(self, name: str, namespace: str = "mail", *, count: int | None = None) -> None:
        """Do the controllers' work: create ready pods of the newest template and configuration."""
        for kind in (DEPLOYMENT, DAEMON_SET):
            workload = self.find(kind, name, namespace)
            if workload is not None:
                self._roll_out(workload, 1 if kind is DAEMON_SET else count)

    def _roll_out(self, workload: Manifest, count: int | None) -> None:
        key = key_of(workload)
        wanted = workload["spec"].get("replicas", 1) if count is None else count
        owned = [
            (kind, pod)
            for (kind, pod), manifest in self.objects.items()
            if kind is POD and manifest["metadata"]["of"] == key.name
        ]
        for old in owned:
            del self.objects[old]
        template = workload["spec"]["template"]["metadata"]
        for index in range(wanted):
            self.put(_pod(key, f"{key.name}-{index}", template))
        generation = workload["metadata"]["generation"]
        if workload["kind"] == "DaemonSet":
            workload["status"] = {
                "observedGeneration": generation,
                **dict.fromkeys(_DAEMON_NUMBERS, wanted),
            }
        else:
            workload["status"] = {
                "observedGeneration": generation,
                **dict.fromkeys(_DEPLOYMENT_NUMBERS, wanted),
            }

    def report_config(self, config_hash: str, error: str = "", certificates: tuple[str, ...] = ()) -> None:
        """Let every pod report this configuration."""
        for kind, key in self.objects:
            if kind is POD:
                self.running[key.name] = RunningConfig(config_hash, error, certificates=certificates)

    # -- the interface ----------------------------------------------------

    async def version(self) -> KubeVersion:
        return KubeVersion(1, 36)

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        return copy.deepcopy(self.objects.get((kind, key)))

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        return [
            copy.deepcopy(one)
            for (stored_kind, key), one in self.objects.items()
            if stored_kind is kind
            and key.namespace == namespace
            and labels.items() <= one["metadata"].get("labels", {}).items()
        ]

    async def list_tls_secrets(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        if "Secret" in self.failures:
            raise self.failures["Secret"]
        self.listed_secrets += 1
        return [
            {"apiVersion": "v1", "kind": "Secret", "metadata": copy.deepcopy(one)}
            for one in self.secrets
            if one["namespace"] == namespace and labels.items() <= one["labels"].items()
        ]

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        kind, key = kind_of(manifest), key_of(manifest)
        self.calls.append(("apply" if manager == names.FIELD_MANAGER else manager, kind.name, key.name))
        if kind.name in self.failures:
            raise self.failures[kind.name]
        before = self.objects.get((kind, key))
        after = copy.deepcopy(before) if before else {"metadata": {}}
        _merge(after, copy.deepcopy(manifest))
        self._stamp(after, before)
        if before != after:
            self.objects[kind, key] = after
        return Applied(copy.deepcopy(self.objects[kind, key]))

    async def delete(self, manifest: Manifest) -> bool:
        kind, key = kind_of(manifest), key_of(manifest)
        self.calls.append(("delete", kind.name, key.name))
        return self.objects.pop((kind, key), None) is not None

    async def apply_status(self, manifest: Manifest) -> None:
        self.calls.append(("status", manifest["kind"], manifest["metadata"]["name"]))
        check_status(manifest["status"])
        self.objects[MAIL_PROXY, key_of(manifest)]["status"] = copy.deepcopy(manifest["status"])

    async def patch_annotations(
        self, kind: Kind, key: Key, annotations: Mapping[str, str], *, labels: Mapping[str, str] = NO_LABELS
    ) -> None:
        self.calls.append(("annotate", kind.name, key.name))
        if "annotate" in self.failures:
            raise self.failures["annotate"]
        found = self.objects.get((kind, key))
        if found is not None:
            found["metadata"].setdefault("annotations", {}).update(annotations)
            found["metadata"].setdefault("labels", {}).update(labels)

    async def running_config(self, pod: Manifest) -> RunningConfig | None:
        return self.running.get(pod["metadata"]["name"])

    async def policies(self, namespace: str) -> list[Manifest] | None:
        if not self.has_policies:
            return None
        return [
            copy.deepcopy(one)
            for (kind, key), one in self.objects.items()
            if kind in POLICIES and key.namespace == namespace
        ]

    async def config_map_keys(self, key: Key) -> frozenset[str] | None:
        found = self.objects.get((CONFIG_MAP, key))
        return None if found is None else frozenset(found["data"])

    async def write_ancestors(self, policy: Manifest, entries: list[Manifest]) -> None:
        kind, key = kind_of(policy), key_of(policy)
        self.calls.append(("ancestors", kind.name, key.name))
        stored = self.objects[kind, key]
        if stored["metadata"]["resourceVersion"] != policy["metadata"]["resourceVersion"]:
            raise TransientError("it has changed")
        stored["status"] = {"ancestors": copy.deepcopy(entries)}
        stored["metadata"]["resourceVersion"] = str(next(self._counter))

    async def mount_failures(self, namespace: str) -> dict[str, str]:
        del namespace
        return dict(self.mounts)

    async def create_event(self, manifest: Manifest) -> None:
        check_event(manifest)
        self.events.append(manifest)

    def _stamp(self, manifest: Manifest, before: Manifest | None) -> None:
        metadata = manifest["metadata"]
        metadata.setdefault("uid", uid_of(before) if before else f"uid-{next(self._counter)}")
        old = before["metadata"] if before else {}
        same = before is not None and before.get("spec") == manifest.get("spec")
        if manifest["kind"] not in _WITHOUT_GENERATION:
            metadata["generation"] = old.get("generation", 0) + (0 if same else 1)
        content = {key: value for key, value in manifest.items() if key not in {"metadata", "status"}}
        previous = {key: value for key, value in (before or {}).items() if key not in {"metadata", "status"}}
        version = old.get("resourceVersion")
        metadata["resourceVersion"] = version if version and content == previous else str(next(self._counter))


_WITHOUT_GENERATION = {"ConfigMap", "Service", "ServiceAccount", "HorizontalPodAutoscaler", "Pod"}
_DEPLOYMENT_NUMBERS = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
_DAEMON_NUMBERS = (
    "desiredNumberScheduled",
    "currentNumberScheduled",
    "updatedNumberScheduled",
    "numberReady",
    "numberAvailable",
)


def _pod(owner: Key, name: str, template: Mapping[str, Any]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "of": owner.name,
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{owner.name}-1", "controller": True}],
            "labels": dict(template["labels"]),
            "annotations": dict(template.get("annotations", {})),
        },
        "status": {
            "phase": "Running",
            "podIP": "192.0.2.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "mailproxy", "restartCount": 0, "state": {"running": {}}}],
        },
    }


def _merge(into: Manifest, manifest: Manifest) -> None:
    """Applied fields replace stored ones; of the rest only foreign annotations and labels remain."""
    metadata = manifest.pop("metadata")
    for field in ("labels", "annotations"):
        merged = {**into["metadata"].get(field, {}), **metadata.pop(field, {})}
        if merged:
            into["metadata"][field] = merged
    into["metadata"].update(metadata)
    into.update(manifest)

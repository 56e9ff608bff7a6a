# SPDX-License-Identifier: Apache-2.0
"""Decides about one pod that asks for a sidecar, when the API server is about to create it.

Whatever goes wrong, the pod is let in as it is, with a warning: only a resource
that says ``failurePolicy: Fail`` has pods refused.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from mailproxy_config.errors import ConfigError
from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Cluster, Key
from mailproxy_operator.api.kinds import MAIL_PROXY, POD, Manifest
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.errors import Finding
from mailproxy_operator.render import planned
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.inject import Injected, carries, inject, labelled

MAX_EVENTS = 60
"""In a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a pod.

    Attributes:
        result: ``injected``, ``present``, ``ignored`` or ``refused``; for metrics.
        pod: The pod as it should be; ``None`` leaves it as it is.
        warnings: What whoever creates it is told.
        refusal: Why it must not be created; empty where it may.
    """

    result: str
    pod: Manifest | None = None
    warnings: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A pod that asks for a sidecar.

    Attributes:
        key: The MailProxy that it asks for.
        is_trial: Nothing is really created, and nothing may be changed anywhere.
    """

    key: Key
    pod: Manifest
    is_trial: bool = False

    @classmethod
    def read(cls, pod: Manifest, namespace: str, *, is_trial: bool) -> Asked:
        """Read what a pod asks for, by its label."""
        labels = (pod.get("metadata") or {}).get("labels") or {}
        return cls(Key(namespace, str(labels.get(names.INJECT, ""))), pod, is_trial)


class Admission:
    """Decides about pods.

    Args:
        cluster: Where resources are read and events published.
        platform: Tells what rendering has to know besides the resource.
        namespaces: Which are served; all of them when empty.
        now: Tells the time.
    """

    def __init__(
        self,
        cluster: Cluster,
        platform: Callable[[], Awaitable[Platform]],
        *,
        namespaces: tuple[str, ...] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._platform = platform
        self._namespaces = namespaces
        self._now = now
        self._announced: deque[datetime] = deque(maxlen=MAX_EVENTS)

    async def review(self, asked: Asked) -> Verdict:
        """Decide about one pod.

        Raises:
            OperatorError: The API server did not say what there is.
        """
        if carries(asked.pod):
            pod = labelled(asked.pod, asked.key.name)
            return Verdict(result="present", pod=pod if pod != asked.pod else None)
        if self._namespaces and asked.key.namespace not in self._namespaces:
            return Verdict(
                result="ignored",
                warnings=(_told(asked, Finding("", "this namespace is not served by the operator")),),
            )
        body = await self._cluster.get(MAIL_PROXY, asked.key)
        found = await self._decided(asked, body)
        if isinstance(found, Finding):
            return await self._without(asked, body, found)
        annotations = found.pod["metadata"]["annotations"]
        annotations[names.CONFIG_HASH] = found.config_hash
        return Verdict(result="injected", pod=found.pod, warnings=found.warnings)

    async def _decided(self, asked: Asked, body: Manifest | None) -> _Made | Finding:
        if body is None or "deletionTimestamp" in body["metadata"]:
            return Finding("MailProxyNotFound", f"there is no MailProxy {asked.key.name}")
        try:
            resource = Resource.read(body)
            if resource.mode != "Sidecar":
                return Finding("NotASidecar", f"MailProxy {asked.key.name} has mode {resource.mode}")
            if not resource.deployment.sidecar.selector.selects(asked.pod["metadata"]["labels"]):
                return Finding(
                    "NotSelected", f"MailProxy {asked.key.name} is for other pods: see spec.sidecar.selector"
                )
            made = sidecar(planned(resource, await self._platform()))
        except ConfigError as error:
            return Finding("InvalidSpec", f"MailProxy {asked.key.name} is not valid: {error}")
        found = inject(made, asked.pod)
        if isinstance(found, Injected):
            return _Made(found.pod, found.warnings, made.config_hash)
        return found

    async def _without(self, asked: Asked, body: Manifest | None, finding: Finding) -> Verdict:
        """Let the pod in as it is, or refuse it where the resource says so; and leave an event."""
        is_refused = _fails(body)
        if not asked.is_trial:
            await self._announce(_event(asked, body, finding, self._now(), is_refused=is_refused))
        text = _told(asked, finding)
        if is_refused:
            return Verdict(result="refused", refusal=text)
        return Verdict(result="ignored", warnings=(text,))

    async def _announce(self, event: Manifest) -> None:
        """Publish an event, but no more than so many: whoever reaches the webhook can ask for them."""
        now = self._now()
        if len(self._announced) == MAX_EVENTS and now - self._announced[0] < timedelta(minutes=1):
            return
        self._announced.append(now)
        await self._cluster.announce(event)


@dataclass(frozen=True, slots=True)
class _Made:
    pod: Manifest
    warnings: tuple[str, ...]
    config_hash: str


def _fails(body: Mapping[str, Any] | None) -> bool:
    """Tell whether a resource, valid or not, wants pods refused that cannot carry it."""
    spec = (body or {}).get("spec") or {}
    wanted = spec.get("sidecar") if isinstance(spec, Mapping) else None
    return isinstance(wanted, Mapping) and wanted.get("failurePolicy") == "Fail"


def _told(asked: Asked, finding: Finding) -> str:
    # Some clients show no more than 120 characters of a warning, so what matters comes first.
    return f"no mailproxy sidecar ({names.INJECT}: {asked.key.name}): {finding.message}"[:1000]


def _event(
    asked: Asked, body: Manifest | None, finding: Finding, now: datetime, *, is_refused: bool
) -> Manifest:
    regarding = _resource(body) if body else _owner(asked)
    reason = "SidecarRefused" if is_refused else "SidecarMissing"
    # The same for every pod of a workload, so that there is one event and not one for each of them.
    mark = repr((regarding, reason, finding)).encode()
    name = f"{regarding['name'] or 'pod'}.{hashlib.sha256(mark).hexdigest()[:16]}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": asked.key.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning",
        "reason": reason,
        "note": f"{finding.reason}: {_told(asked, finding)}"[:1000],
        "action": "Inject",
        "reportingController": names.FIELD_MANAGER,
        "reportingInstance": names.FIELD_MANAGER,
        "regarding": regarding,
    }


def _resource(body: Manifest) -> Manifest:
    metadata = body["metadata"]
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata.get("uid", ""),
    }


def _owner(asked: Asked) -> Manifest:
    """Name what makes the pod: the pod itself is not there yet."""
    metadata = asked.pod["metadata"]
    owners = [one for one in metadata.get("ownerReferences") or [] if one.get("controller")]
    owner = owners[0] if owners else {"apiVersion": POD.api_version, "kind": POD.name}
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner.get("name") or metadata.get("name") or metadata.get("generateName", "").rstrip("-"),
        "namespace": asked.key.namespace,
        "uid": owner.get("uid", ""),
    }

# SPDX-License-Identifier: Apache-2.0
"""Decides about a pod that requests a sidecar, before the API server creates it.

After any failure, the pod is admitted unchanged, with a warning.  A pod is denied
only for a resource with ``failurePolicy: Fail``.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from mailproxy_config.errors import ConfigError
from mailproxy_config.upstream_service import upstream_services
from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Cluster, Key
from mailproxy_operator.api.kinds import MAIL_PROXY, POD, Manifest
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.errors import InjectionRefusal
from mailproxy_operator.policies.resolve import resolve
from mailproxy_operator.reasons import EventReason, InjectionReason
from mailproxy_operator.render import planned
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.inject import Injected, has_sidecar, inject, with_label

MAX_EVENTS = 60
"""Maximum number of events per minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionDecision:
    """The decision about a pod.

    Attributes:
        result: ``injected``, ``present``, ``ignored`` or ``refused``; for metrics.
        pod: The changed pod; ``None`` leaves it unchanged.
        warnings: Warnings for the client that creates the pod.
        refusal: Why the pod is denied; empty when it is admitted.
    """

    result: str
    pod: Manifest | None = None
    warnings: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A pod that requests a sidecar.

    Attributes:
        key: The requested MailProxy.
        dry_run: Whether the pod is not really created, and no other object may be changed.
    """

    key: Key
    pod: Manifest
    dry_run: bool = False

    @classmethod
    def read(cls, pod: Manifest, namespace: str, *, dry_run: bool) -> AdmissionRequest:
        """Read the requested MailProxy from the label of a pod."""
        labels = (pod.get("metadata") or {}).get("labels") or {}
        return cls(Key(namespace, str(labels.get(names.INJECT, ""))), pod, dry_run)


class Admission:
    """Decides about pods.

    Args:
        cluster: The cluster port, to read resources and to create events.
        platform: Returns the input of rendering besides the resource.
        namespaces: The watched namespaces; all namespaces when empty.
        now: Returns the time.
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
        self._event_times: deque[datetime] = deque(maxlen=MAX_EVENTS)

    async def review(self, request: AdmissionRequest) -> AdmissionDecision:
        """Decide about one pod.

        Raises:
            OperatorError: The resource could not be read from the API server.
        """
        if has_sidecar(request.pod):
            pod = with_label(request.pod, request.key.name)
            return AdmissionDecision(result="present", pod=pod if pod != request.pod else None)
        if self._namespaces and request.key.namespace not in self._namespaces:
            return AdmissionDecision(
                result="ignored",
                warnings=(_message(request, "the operator does not watch this namespace"),),
            )
        body = await self._cluster.get(MAIL_PROXY, request.key)
        found = await self._inject(request, body)
        if isinstance(found, InjectionRefusal):
            return await self._admit_unchanged(request, body, found)
        annotations = found.pod["metadata"]["annotations"]
        annotations[names.CONFIG_HASH] = found.config_hash
        return AdmissionDecision(result="injected", pod=found.pod, warnings=found.warnings)

    async def _inject(
        self, request: AdmissionRequest, body: Manifest | None
    ) -> _Injection | InjectionRefusal:
        if body is None or "deletionTimestamp" in body["metadata"]:
            return InjectionRefusal(
                InjectionReason.MAIL_PROXY_NOT_FOUND,
                f"there is no MailProxy {request.key.name} in namespace {request.key.namespace}; "
                "create it before the pod",
            )
        try:
            resource = Resource.read(body)
            if resource.mode != "Sidecar":
                return InjectionRefusal(
                    InjectionReason.NOT_A_SIDECAR,
                    f"MailProxy {request.key.name} has mode {resource.mode}; it must have spec.mode: Sidecar",
                )
            if not resource.deployment.sidecar.selector.selects(request.pod["metadata"]["labels"]):
                return InjectionRefusal(
                    InjectionReason.NOT_SELECTED,
                    f"MailProxy {request.key.name} is for other pods: see spec.sidecar.selector",
                )
            if upstream_services(resource.manifest.raw["spec"]):
                resource = (await resolve(self._cluster, resource)).resource
            made = sidecar(planned(resource, await self._platform()))
        except ConfigError as error:
            return InjectionRefusal(
                InjectionReason.INVALID_SPEC, f"MailProxy {request.key.name} is not valid: {error}"
            )
        found = inject(made, request.pod)
        if isinstance(found, Injected):
            return _Injection(found.pod, found.warnings, made.config_hash)
        return found

    async def _admit_unchanged(
        self, request: AdmissionRequest, body: Manifest | None, finding: InjectionRefusal
    ) -> AdmissionDecision:
        """Admit the pod unchanged, or deny it if the resource requires it; create an event."""
        is_refused = _has_failure_policy_fail(body)
        if not request.dry_run:
            await self._create_event(_event(request, body, finding, self._now(), is_refused=is_refused))
        text = _message(request, finding.message)
        if is_refused:
            return AdmissionDecision(result="refused", refusal=text)
        return AdmissionDecision(result="ignored", warnings=(text,))

    async def _create_event(self, event: Manifest) -> None:
        """Create an event, up to a limit: any client that can connect to the webhook can cause events."""
        now = self._now()
        if len(self._event_times) == MAX_EVENTS and now - self._event_times[0] < timedelta(minutes=1):
            return
        self._event_times.append(now)
        await self._cluster.create_event(event)


@dataclass(frozen=True, slots=True)
class _Injection:
    pod: Manifest
    warnings: tuple[str, ...]
    config_hash: str


def _has_failure_policy_fail(body: Mapping[str, Any] | None) -> bool:
    """Return whether a resource, valid or not, has ``failurePolicy: Fail``."""
    spec = (body or {}).get("spec") or {}
    settings = spec.get("sidecar") if isinstance(spec, Mapping) else None
    return isinstance(settings, Mapping) and settings.get("failurePolicy") == "Fail"


def _message(request: AdmissionRequest, message: str) -> str:
    # Some clients show only 120 characters of a warning, so the important part comes first.
    return f"no mailproxy sidecar ({names.INJECT}: {request.key.name}): {message}"[:1000]


def _event(
    request: AdmissionRequest,
    body: Manifest | None,
    finding: InjectionRefusal,
    now: datetime,
    *,
    is_refused: bool,
) -> Manifest:
    regarding = _resource(body) if body else _owner(request)
    reason = EventReason.SIDECAR_REFUSED if is_refused else EventReason.SIDECAR_MISSING
    # The same for every pod of a workload, so that there is one event for all of them.
    mark = repr((regarding, str(reason), finding)).encode()
    name = f"{regarding['name'] or 'pod'}.{hashlib.sha256(mark).hexdigest()[:16]}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": request.key.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning",
        "reason": str(reason),
        "note": f"{finding.reason}: {_message(request, finding.message)}"[:1000],
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


def _owner(request: AdmissionRequest) -> Manifest:
    """Return a reference to the owner of the pod: the pod itself does not exist yet."""
    metadata = request.pod["metadata"]
    owners = [one for one in metadata.get("ownerReferences") or [] if one.get("controller")]
    owner = owners[0] if owners else {"apiVersion": POD.api_version, "kind": POD.name}
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner.get("name") or metadata.get("name") or metadata.get("generateName", "").rstrip("-"),
        "namespace": request.key.namespace,
        "uid": owner.get("uid", ""),
    }

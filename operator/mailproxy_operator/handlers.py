"""What kopf watches for us.  It decides nothing: every event only wakes the reconciler for its owner.

Plain event handlers write nothing to any object: no annotation, no finalizer.
What fails is tried again by the queue, whatever is missed by the next resync.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from mailproxy_operator import names
from mailproxy_operator.cluster import Key
from mailproxy_operator.kinds import MAIL_PROXY, OWNED, POD, Kind
from mailproxy_operator.work_queue import WorkQueue

SETTLE_SECONDS = 0.2
"""Changes of owned objects come in bursts; one reconcile is enough for all."""

Login = Callable[..., kopf.ConnectionInfo | None]


def from_environment(**known: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  whatever kopf hands over
    """Log in with the service account in a pod, with the kubeconfig elsewhere."""
    return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)


def register(
    registry: kopf.OperatorRegistry, queue: WorkQueue, *, login: Login, kinds: tuple[Kind, ...]
) -> None:
    """Attach the handlers.

    Args:
        registry: Where to.
        queue: Whom to wake.
        login: How kopf gets in.
        kinds: What is owned and exists in this cluster.
    """
    seen: dict[Key, object] = {}

    @kopf.on.login(registry=registry)
    def _login(**known: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  handed on
        return login(**known)

    @kopf.on.event(names.GROUP, names.VERSION, MAIL_PROXY.plural, registry=registry)
    async def _resource_changed(event: kopf.RawEvent, **_: object) -> None:
        metadata: Mapping[str, Any] = event["object"].get("metadata", {})
        key = Key(str(metadata["namespace"]), str(metadata["name"]))
        state = metadata.get("generation"), metadata.get("uid"), "deletionTimestamp" in metadata
        if event["type"] == "DELETED":
            seen.pop(key, None)
            queue.wake(key, urgent=True)
        elif seen.get(key) != state:  # our own writes of the status need no answer
            seen[key] = state
            queue.wake(key, urgent=True)

    for kind in kinds:
        _watch_owned(registry, queue, kind)


def _watch_owned(registry: kopf.OperatorRegistry, queue: WorkQueue, kind: Kind) -> None:
    group, _, version = kind.api_version.rpartition("/")

    @kopf.on.event(group, version, kind.plural, labels=names.MANAGED_BY_US, registry=registry, id=kind.plural)
    async def _owned_changed(meta: Mapping[str, Any], **_: object) -> None:
        instance = names.instance_of(meta.get("labels") or {})
        if instance:
            queue.wake(Key(str(meta["namespace"]), instance), SETTLE_SECONDS)


WATCHED = (*OWNED, POD)


def operator_settings() -> kopf.OperatorSettings:
    """Settings under which kopf only watches."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.persistence.finalizer = f"{names.GROUP}/kopf-finalizer"
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.execution.max_workers = 1
    # The server sends ours only: a cluster has many pods and ConfigMaps that are none of our business.
    settings.watching.label_selectors[_is_owned_kind] = names.label_selector(names.MANAGED_BY_US)
    return settings


def _is_owned_kind(resource: kopf.Resource) -> bool:
    return resource.group != names.GROUP

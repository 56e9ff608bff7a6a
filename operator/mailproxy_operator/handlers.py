"""What kopf watches for us.  It decides nothing: every event only wakes the reconciler for its owner.

Plain event handlers write nothing to any object: no annotation, no finalizer.
What fails is tried again by the queue, whatever is missed by the next resync.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from mailproxy_operator import names
from mailproxy_operator.kinds import MAIL_PROXY, OWNED, POD, Kind
from mailproxy_operator.waker import Waker

Login = Callable[..., kopf.ConnectionInfo | None]


def from_environment(**known: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  whatever kopf hands over
    """Log in with the service account in a pod, with the kubeconfig elsewhere."""
    return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)


def register(registry: kopf.OperatorRegistry, waker: Waker, *, login: Login, kinds: tuple[Kind, ...]) -> None:
    """Attach the handlers.

    Args:
        registry: Where to.
        waker: Who is told.
        login: How kopf gets in.
        kinds: What is owned and exists in this cluster.
    """

    @kopf.on.login(registry=registry)
    def _login(**known: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  handed on
        return login(**known)

    @kopf.on.event(names.GROUP, names.VERSION, MAIL_PROXY.plural, registry=registry)
    async def _resource_changed(event: kopf.RawEvent, **_: object) -> None:
        waker.resource_changed(event["object"]["metadata"], is_deleted=event["type"] == "DELETED")

    for kind in kinds:
        _watch_owned(registry, waker, kind)


def register_carriers(registry: kopf.OperatorRegistry, waker: Waker, *, login: Login) -> None:
    """Attach the handler for others' pods that ask for a sidecar.

    They need an operator of their own: kopf watches a kind under one selector, and
    these pods have none of our labels but the one by which they ask.
    """

    @kopf.on.login(registry=registry)
    def _login(**known: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  handed on
        return login(**known)

    @kopf.on.event("", POD.api_version, POD.plural, labels={names.INJECT: kopf.PRESENT}, registry=registry)
    async def _carrier_changed(event: kopf.RawEvent, **_: object) -> None:
        if event["type"] is not None:  # a watch that begins lists what there is
            waker.carrier_changed(event["object"]["metadata"])


def _watch_owned(registry: kopf.OperatorRegistry, waker: Waker, kind: Kind) -> None:
    group, _, version = kind.api_version.rpartition("/")

    @kopf.on.event(group, version, kind.plural, labels=names.MANAGED_BY_US, registry=registry, id=kind.plural)
    async def _owned_changed(event: kopf.RawEvent, **_: object) -> None:
        match event["type"]:
            case "DELETED":
                waker.owned_deleted(event["object"]["metadata"])
            case "ADDED" | "MODIFIED":
                waker.owned_changed(kind, dict(event["object"]))
            case _:
                pass  # a watch that begins lists what there is: the resync looks at that anyway


WATCHED = (*OWNED, POD)


OURS = names.label_selector(names.MANAGED_BY_US)
CARRIERS = names.INJECT


def operator_settings(selector: str = OURS) -> kopf.OperatorSettings:
    """Settings under which kopf only watches.

    Args:
        selector: Of the objects that are no MailProxies.
    """
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
    settings.watching.label_selectors[_is_owned_kind] = selector
    return settings


def _is_owned_kind(resource: kopf.Resource) -> bool:
    return resource.group != names.GROUP

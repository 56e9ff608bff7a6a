# SPDX-License-Identifier: Apache-2.0
"""What kopf watches for us.  It decides nothing: every event only wakes the reconciler for its owner.

Plain event handlers write nothing to any object: no annotation, no finalizer.
What fails is tried again by the queue, whatever is missed by the next resync.
"""

from __future__ import annotations

from collections.abc import Iterable

import kopf

from mailproxy_operator import breaker, names
from mailproxy_operator.kinds import MAIL_PROXY, OWNED, POD, Kind
from mailproxy_operator.waker import Waker

WATCHED = (*OWNED, POD)


def register(registry: kopf.OperatorRegistry, waker: Waker, *, kinds: Iterable[Kind]) -> None:
    """Attach the handlers.

    Args:
        registry: Where to.
        waker: Who is told.
        kinds: What is owned and exists in this cluster.
    """

    @kopf.on.event(names.GROUP, names.VERSION, MAIL_PROXY.plural, registry=registry)
    async def _resource_changed(event: kopf.RawEvent, **_: object) -> None:
        waker.resource_changed(event["object"]["metadata"], is_deleted=event["type"] == "DELETED")

    for kind in kinds:
        _watch_owned(registry, waker, kind)


def register_carriers(registry: kopf.OperatorRegistry, waker: Waker) -> None:
    """Attach the handler for others' pods that ask for a sidecar.

    They need an operator of their own: kopf watches a kind under one selector, and
    these pods have none of our labels but the one by which they ask.
    """

    @kopf.on.event("", POD.api_version, POD.plural, labels={names.INJECT: kopf.PRESENT}, registry=registry)
    async def _carrier_changed(event: kopf.RawEvent, **_: object) -> None:
        if event["type"] is not None:  # what a watch lists comes to the waker as a whole
            waker.carrier_changed(dict(event["object"]), is_deleted=event["type"] == "DELETED")


def _watch_owned(registry: kopf.OperatorRegistry, waker: Waker, kind: Kind) -> None:
    group, _, version = kind.api_version.rpartition("/")

    @kopf.on.event(group, version, kind.plural, labels=names.MANAGED_BY_US, registry=registry, id=kind.plural)
    async def _owned_changed(event: kopf.RawEvent, **_: object) -> None:
        if kind is POD and event["type"] != "DELETED" and breaker.refused_by(event["object"]):
            await waker.pod_refused(dict(event["object"]))
        match event["type"]:  # none, where a watch lists: that comes to the waker as a whole
            case "DELETED":
                waker.owned_deleted(kind, dict(event["object"]))
            case "ADDED" | "MODIFIED":
                waker.owned_changed(kind, dict(event["object"]))

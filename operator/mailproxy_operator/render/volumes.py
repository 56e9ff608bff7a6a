"""What is mounted: the configuration, what it refers to, and places to write."""

from __future__ import annotations

from mailproxy_config.references import Reference, ReferenceKind
from mailproxy_operator import names
from mailproxy_operator.kinds import Manifest
from mailproxy_operator.render.plan import Plan

_OWNER_AND_GROUP = 0o440


def volumes(plan: Plan) -> list[Manifest]:
    """Render the pod's volumes."""
    config: Manifest = {
        "name": "config",
        "configMap": {"name": names.config_map_name(plan.resource.name), "defaultMode": _OWNER_AND_GROUP},
    }
    found = [config, {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}]
    if plan.references:
        sources = [_source(reference) for reference in plan.references]
        found.append({"name": "refs", "projected": {"defaultMode": _OWNER_AND_GROUP, "sources": sources}})
    if _has_sockets(plan):
        found.append({"name": "sockets", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
    return found + [dict(volume) for volume in plan.resource.deployment.pod.extra_volumes]


def volume_mounts(plan: Plan) -> list[Manifest]:
    """Render where the container sees them; a directory each, since a single file is never refreshed."""
    found: list[Manifest] = [
        {"name": "config", "mountPath": plan.platform.config_dir, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  a volume of the pod's own
    ]
    if plan.references:
        found.append({"name": "refs", "mountPath": plan.platform.refs_dir, "readOnly": True})
    if _has_sockets(plan):
        found.append({"name": "sockets", "mountPath": names.SOCKET_DIR})
    return found + [dict(mount) for mount in plan.resource.deployment.pod.extra_volume_mounts]


def _source(reference: Reference) -> Manifest:
    is_secret = reference.kind is ReferenceKind.SECRET
    folder = "secrets" if is_secret else "configmaps"
    items = [{"key": key, "path": f"{folder}/{reference.name}/{key}"} for key in reference.keys]
    return {"secret" if is_secret else "configMap": {"name": reference.name, "items": items}}


def _has_sockets(plan: Plan) -> bool:
    return any(listener.listen.address.startswith(f"unix:{names.SOCKET_DIR}/") for listener in plan.listeners)

# SPDX-License-Identifier: Apache-2.0
"""Volumes: the configuration, referenced Secrets and ConfigMaps, and writable directories."""

from __future__ import annotations

from mailproxy_config.secret_refs import Reference, ReferenceKind
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.render import selected
from mailproxy_operator.render.plan import Plan

OWNER_AND_GROUP = 0o440
SOCKETS = "sockets"


def volumes(plan: Plan) -> list[Manifest]:
    """Render the pod's volumes."""
    return own_volumes(plan) + [dict(volume) for volume in plan.resource.deployment.pod.extra_volumes]


def own_volumes(plan: Plan, *, prefix: str = "", mode: int = OWNER_AND_GROUP) -> list[Manifest]:
    """Render the volumes of the proxy.

    Args:
        plan: The plan of the resource.
        prefix: The prefix of the names.
        mode: The mode of the files of ConfigMaps and Secrets.
    """
    config: Manifest = {
        "name": f"{prefix}config",
        "configMap": {"name": names.config_map_name(plan.resource.name), "defaultMode": mode},
    }
    found = [config, {"name": f"{prefix}tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}]
    if plan.mounts_references:
        sources = [*map(_source, plan.references), *selected.sources(plan.selection)]
        found.append({"name": f"{prefix}refs", "projected": {"defaultMode": mode, "sources": sources}})
    if plan.has_members:
        # The pod starts without it: until then, logins go to the DNS names of Services.
        members = {"name": names.members_name(plan.resource.name), "defaultMode": mode, "optional": True}
        found.append({"name": f"{prefix}members", "configMap": members})
    if has_sockets(plan):
        found.append({"name": f"{prefix}{SOCKETS}", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
    return found


def volume_mounts(plan: Plan, *, prefix: str = "") -> list[Manifest]:
    """Render the volume mounts, all of directories: a mount of a single file is never refreshed."""
    found: list[Manifest] = [
        {"name": f"{prefix}config", "mountPath": plan.platform.config_dir, "readOnly": True},
        {"name": f"{prefix}tmp", "mountPath": "/tmp"},  # noqa: S108  a volume of the pod
    ]
    if plan.mounts_references:
        found.append({"name": f"{prefix}refs", "mountPath": plan.platform.refs_dir, "readOnly": True})
    if plan.has_members:
        found.append({"name": f"{prefix}members", "mountPath": plan.platform.members_dir, "readOnly": True})
    if has_sockets(plan):
        found.append({"name": f"{prefix}{SOCKETS}", "mountPath": names.SOCKET_DIR})
    return found + [dict(mount) for mount in plan.resource.deployment.pod.extra_volume_mounts]


def has_sockets(plan: Plan) -> bool:
    """Return whether a listener or the authentication service uses a UNIX socket in the socket directory."""
    listeners = (listener.listen.address.removeprefix("unix:") for listener in plan.listeners)
    services = (each.auth_http.unix_path or "" for each in plan.config.servers if each.auth_http is not None)
    return any(path.startswith(f"{names.SOCKET_DIR}/") for path in (*listeners, *services))


def _source(reference: Reference) -> Manifest:
    is_secret = reference.kind is ReferenceKind.SECRET
    folder = "secrets" if is_secret else "configmaps"
    items = [{"key": key, "path": f"{folder}/{reference.name}/{key}"} for key in reference.keys]
    return {"secret" if is_secret else "configMap": {"name": reference.name, "items": items}}

# SPDX-License-Identifier: Apache-2.0
"""Injects the proxy into a pod: pure functions for the webhook and for ``render --sidecar``.

The pod belongs to another workload.  Its own settings are not changed; if they conflict
with the proxy, the proxy is not injected.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.errors import InjectionRefusal
from mailproxy_operator.reasons import InjectionReason
from mailproxy_operator.render.sidecar import SOCKET_VOLUME, Sidecar
from mailproxy_operator.render.sysctls import PORT_START

DEFAULT_GRACE_SECONDS = 30
"""The default of ``terminationGracePeriodSeconds``."""


@dataclass(frozen=True, slots=True)
class Injected:
    """A pod with the proxy.

    Attributes:
        pod: The pod or pod template.
        warnings: Warnings for its owner.
    """

    pod: Manifest
    warnings: tuple[str, ...] = ()


def has_sidecar(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod already has the proxy."""
    containers = (pod.get("spec") or {}).get("initContainers") or []
    return any(_is_native_sidecar(one) and one.get("name") == names.CONTAINER for one in containers)


def inject(sidecar: Sidecar, pod: Manifest) -> Injected | InjectionRefusal:
    """Inject the proxy into a pod.

    Args:
        sidecar: The rendered sidecar.
        pod: The pod or template: ``metadata`` and ``spec``; it is not changed.

    Returns:
        The pod with the proxy, or why it cannot be injected.
    """
    if has_sidecar(pod):
        return Injected(with_label(pod, sidecar.name))
    conflict = _label_conflict(sidecar, pod)
    if conflict is not None:
        return conflict
    for check in (
        _operating_system_conflict,
        _name_conflict,
        _volume_conflict,
        _port_conflict,
        _privileged_port_conflict,
    ):
        finding = check(sidecar, pod["spec"])
        if finding is not None:
            return finding
    made = copy.deepcopy(pod)
    _set_metadata(sidecar, made)
    _set_spec(sidecar, made["spec"])
    return Injected(made, tuple(_warnings(sidecar, pod["spec"])))


def with_label(pod: Manifest, name: str) -> Manifest:
    """Set the label of the MailProxy on a pod with its sidecar; an existing label is kept.

    Args:
        pod: The pod or template; it is not changed.
        name: The name of the MailProxy.
    """
    metadata = pod.get("metadata") or {}
    labels = metadata.get("labels") or {}
    if not name or names.PROXY in labels:
        return pod
    return {**pod, "metadata": {**metadata, "labels": {**labels, **names.proxy_labels(name)}}}


# --- conflicts -----------------------------------------------------------------


def _label_conflict(sidecar: Sidecar, pod: Mapping[str, Any]) -> InjectionRefusal | None:
    """Return a conflict if the label of the pod has the name of another MailProxy.

    The label is not replaced: if it is in the selector of a workload, the workload would not match its
    pod any more, and would create new pods without end.
    """
    own = (pod.get("metadata") or {}).get("labels") or {}
    for name in (names.INJECT, names.PROXY):
        if own.get(name, sidecar.name) != sidecar.name:
            what = f"the pod's label {name}={own[name]} names another MailProxy than {sidecar.name}"
            return InjectionRefusal(
                InjectionReason.LABEL_CONFLICT, f"{what}; remove it from the pod template"
            )
    return None


def _operating_system_conflict(_: Sidecar, spec: Mapping[str, Any]) -> InjectionRefusal | None:
    system = (spec.get("os") or {}).get("name", "linux")
    return (
        None
        if system == "linux"
        else InjectionRefusal(
            InjectionReason.WRONG_SYSTEM,
            f"the pod runs on {system} (spec.os.name); the proxy runs on linux only",
        )
    )


def _name_conflict(sidecar: Sidecar, spec: Mapping[str, Any]) -> InjectionRefusal | None:
    name = sidecar.container["name"]
    if any(one.get("name") == name for one in _containers(spec)):
        return InjectionRefusal(
            InjectionReason.NAME_CONFLICT,
            f"the pod has a container {name} that is not the sidecar; rename that container",
        )
    return None


def _volume_conflict(sidecar: Sidecar, spec: Mapping[str, Any]) -> InjectionRefusal | None:
    taken = {volume.get("name") for volume in spec.get("volumes") or []}
    for volume in sidecar.volumes:
        if volume["name"] in taken:
            return InjectionRefusal(
                InjectionReason.NAME_CONFLICT,
                f"the pod has a volume {volume['name']} of its own; rename that volume",
            )
    return None


def _port_conflict(sidecar: Sidecar, spec: Mapping[str, Any]) -> InjectionRefusal | None:
    wanted = {port["containerPort"] for port in sidecar.container["ports"]}
    for one in _containers(spec):
        for port in one.get("ports") or []:
            if port.get("containerPort") in wanted and port.get("protocol", "TCP") == "TCP":
                taken = f"port {port['containerPort']} is used by container {one.get('name')}"
                return InjectionRefusal(InjectionReason.PORT_CONFLICT, f"{taken}; change one of them")
    return None


def _privileged_port_conflict(sidecar: Sidecar, spec: Mapping[str, Any]) -> InjectionRefusal | None:
    lowest = sidecar.lowest_port
    if lowest is None:
        return None
    if spec.get("hostNetwork"):
        why = f"with hostNetwork the proxy cannot open port {lowest} without root"
        return InjectionRefusal(InjectionReason.HOST_NETWORK, f"{why}; use portStrategy: HighPort")
    start = _own_sysctls(spec).get(PORT_START, "0")
    if start.isdecimal() and int(start) > lowest:
        why = f"the pod's own sysctl {PORT_START}={start} does not permit port {lowest}"
        return InjectionRefusal(InjectionReason.SYSCTL_CONFLICT, f"{why}; use portStrategy: HighPort")
    return None


def _containers(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from spec.get("initContainers") or []
    yield from spec.get("containers") or []


def _is_native_sidecar(container: Mapping[str, Any]) -> bool:
    return container.get("restartPolicy") == "Always"


# --- warnings ------------------------------------------------------------------


def _warnings(sidecar: Sidecar, spec: Mapping[str, Any]) -> Iterator[str]:
    own = _own_sysctls(spec)
    for name, value in sidecar.sysctls.items():
        if own.get(name, value) != value:
            yield f"the pod's own sysctl {name}={own[name]} stays; the sidecar requests {value}"
    grace = _grace(spec)
    if grace < sidecar.grace_seconds:
        yield (
            f"the pod ends after terminationGracePeriodSeconds: {grace}, "
            f"the drain of MailProxy {sidecar.name} may take {sidecar.grace_seconds}"
        )


def _own_sysctls(spec: Mapping[str, Any]) -> dict[str, str]:
    listed = (spec.get("securityContext") or {}).get("sysctls") or []
    # Kubernetes accepts a slash instead of a dot in the name of a sysctl.
    return {str(one["name"]).replace("/", "."): str(one["value"]) for one in listed}


def _grace(spec: Mapping[str, Any]) -> int:
    given = spec.get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE_SECONDS if given is None else int(given)


# --- injection -----------------------------------------------------------------


def _labels(name: str) -> dict[str, str]:
    return {**names.injected_pod_labels(name), **names.proxy_labels(name)}


def _set_metadata(sidecar: Sidecar, pod: Manifest) -> None:
    metadata = pod.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **_labels(sidecar.name)}
    own = metadata.get("annotations") or {}
    is_scraped = any(key.startswith("prometheus.io/") for key in own)
    metadata["annotations"] = {**own, **({} if is_scraped else sidecar.scraping), **sidecar.annotations}


def _set_spec(sidecar: Sidecar, spec: Manifest) -> None:
    taken = {volume.get("name") for volume in spec.get("volumes") or []}
    shared = [volume for volume in sidecar.shared if volume["name"] not in taken]
    if any(volume["name"] == SOCKET_VOLUME for volume in shared):
        _share_sockets(spec)
    # The container that starts first ends last.
    spec["initContainers"] = [_container(sidecar, spec), *(spec.get("initContainers") or [])]
    spec["volumes"] = [*(spec.get("volumes") or []), *copy.deepcopy([*sidecar.volumes, *shared])]
    _add_sysctls(sidecar, spec)
    _add_pull_secrets(sidecar.pull_secrets, spec)


def _share_sockets(spec: Manifest) -> None:
    """Mount the directory of UNIX sockets in every container without a mount at this path."""
    for one in (*(spec.get("initContainers") or []), *spec["containers"]):
        mounts = one.get("volumeMounts") or []
        if all(mount.get("mountPath", "").rstrip("/") != names.SOCKET_DIR for mount in mounts):
            one["volumeMounts"] = [*mounts, {"name": SOCKET_VOLUME, "mountPath": names.SOCKET_DIR}]


def _container(sidecar: Sidecar, spec: Mapping[str, Any]) -> Manifest:
    made = copy.deepcopy(sidecar.container)
    pause = ((made.get("lifecycle") or {}).get("preStop") or {}).get("sleep")
    if pause is None:
        return made
    # The API server rejects a hook that sleeps longer than the grace period of the pod.
    pause["seconds"] = min(pause["seconds"], max(_grace(spec) - 1, 0))
    if pause["seconds"] == 0:
        del made["lifecycle"]
    return made


def _add_sysctls(sidecar: Sidecar, spec: Manifest) -> None:
    if spec.get("hostNetwork"):
        return
    own = _own_sysctls(spec)
    more = [{"name": name, "value": value} for name, value in sidecar.sysctls.items() if name not in own]
    if more:
        context = spec.get("securityContext") or {}
        spec["securityContext"] = {**context, "sysctls": [*(context.get("sysctls") or []), *more]}


def _add_pull_secrets(pull_secrets: Sequence[str], spec: Manifest) -> None:
    own = spec.get("imagePullSecrets") or []
    known = {one.get("name") for one in own}
    more = [{"name": name} for name in pull_secrets if name not in known]
    if more:
        spec["imagePullSecrets"] = [*own, *more]

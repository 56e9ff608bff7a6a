# SPDX-License-Identifier: Apache-2.0
"""The sidecar without the webhook: patches for kustomize and complete workloads, from the same function."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.manifest_yaml import load_documents
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.errors import InjectionRefusal
from mailproxy_operator.render.sidecar import Sidecar
from mailproxy_operator.sidecar.inject import Injected, inject

_TEMPLATE = ("spec", "template")
_TEMPLATES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Deployment": ("apps/v1", _TEMPLATE),
    "StatefulSet": ("apps/v1", _TEMPLATE),
    "DaemonSet": ("apps/v1", _TEMPLATE),
    "ReplicaSet": ("apps/v1", _TEMPLATE),
    "Job": ("batch/v1", _TEMPLATE),
    "CronJob": ("batch/v1", ("spec", "jobTemplate", "spec", "template")),
    "Pod": ("v1", ()),
}
"""The API version of each kind of workload, and the path of its pod template."""
KINDS = tuple(_TEMPLATES)

JsonPatch = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """The workload to patch."""

    kind: str
    name: str
    namespace: str = ""


def strategic_merge(sidecar: Sidecar, target: Target) -> Manifest:
    """Return the injection as a strategic merge patch of a workload.

    The workload is not an input, so conflicts are not detected, and the patch replaces
    the pod's own list of sysctls.
    """
    version, path = _TEMPLATES[target.kind]
    empty: Manifest = {"metadata": {}, "spec": {"containers": []}}
    found = inject(sidecar, empty)
    assert isinstance(found, Injected)  # noqa: S101  an empty pod has no conflicts
    part = found.pod
    del part["spec"]["containers"]
    for step in reversed(path):
        part = {step: part}
    identity = {"name": target.name, **({"namespace": target.namespace} if target.namespace else {})}
    metadata = {**identity, **part.pop("metadata", {})}
    return {"apiVersion": version, "kind": target.kind, "metadata": metadata, **part}


def injected_workloads(
    sidecar: Sidecar, text: str, source: str
) -> tuple[list[tuple[Manifest, Manifest]], list[str]]:
    """Inject the sidecar into the workload of a YAML text.

    If there are several workloads, it is injected into those whose pods have the label that requests it.

    Returns:
        All objects, each before and after the injection; and the warnings.

    Raises:
        ConfigError: There is no workload, or the sidecar cannot be injected into it.
    """
    found = [one for one in load_documents(text, source=source) if isinstance(one, dict)]
    workloads = [one for one in found if one.get("kind") in _TEMPLATES]
    chosen = (
        workloads if len(workloads) == 1 else [one for one in workloads if _requests_sidecar(sidecar, one)]
    )
    if not chosen:
        label = f"{names.INJECT}: {sidecar.name}"
        raise ConfigError([Problem(source, f"holds no workload whose pods have the label {label}")])
    pairs: list[tuple[Manifest, Manifest]] = []
    warnings: list[str] = []
    for one in found:
        after, new_warnings = _injected(sidecar, one, source) if one in chosen else (one, ())
        pairs.append((one, after))
        warnings += new_warnings
    return pairs, warnings


def _requests_sidecar(sidecar: Sidecar, workload: Mapping[str, Any]) -> bool:
    labels = (_template(workload).get("metadata") or {}).get("labels") or {}
    return bool(labels.get(names.INJECT) == sidecar.name)


def _template(workload: Mapping[str, Any]) -> Any:  # noqa: ANN401  part of a manifest
    part: Any = workload
    for step in _TEMPLATES[workload["kind"]][1]:
        part = part.get(step) or {}
    return part


def _injected(sidecar: Sidecar, workload: Manifest, source: str) -> tuple[Manifest, tuple[str, ...]]:
    made = copy.deepcopy(workload)
    template = _template(made)
    which = f"{workload['kind']} {workload.get('metadata', {}).get('name', '')}"
    if not (template.get("spec") or {}).get("containers"):
        raise ConfigError([Problem(source, f"{which} has no containers")])
    found = inject(sidecar, template)
    if isinstance(found, InjectionRefusal):
        raise ConfigError([Problem(source, f"{which}: {found.message}")])
    template.update(found.pod)
    return made, tuple(f"{which}: {warning}" for warning in found.warnings)


# --- RFC 6902 ------------------------------------------------------------------


def json_patch(before: Any, after: Any, path: str = "") -> JsonPatch:  # noqa: ANN401  any JSON
    """Return the difference of two values as a JSON patch (RFC 6902)."""
    if before == after:
        return []
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return _mapping_patch(before, after, path)
    if isinstance(before, list) and isinstance(after, list):
        return _list_patch(before, after, path)
    return [{"op": "replace", "path": path, "value": after}]


def _mapping_patch(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> JsonPatch:
    found: JsonPatch = [
        {"op": "remove", "path": f"{path}/{_escaped(key)}"} for key in before if key not in after
    ]
    for key, value in after.items():
        at = f"{path}/{_escaped(key)}"
        if key in before:
            found += json_patch(before[key], value, at)
        else:
            found.append({"op": "add", "path": at, "value": value})
    return found


def _list_patch(before: Sequence[Any], after: Sequence[Any], path: str) -> JsonPatch:
    """Compare items of the same name; new items are before or after them."""
    more = len(after) - len(before)
    for in_front in (more, 0):
        kept = after[in_front : in_front + len(before)]
        if more >= 0 and [_name(one) for one in kept] == [_name(one) for one in before]:
            changed = [
                step
                for index, (old, new) in enumerate(zip(before, kept, strict=True))
                for step in json_patch(old, new, f"{path}/{index}")
            ]
            new = [(f"{path}/{index}", after[index]) for index in range(in_front)]
            new += [(f"{path}/-", value) for value in after[in_front + len(before) :]]
            return changed + [{"op": "add", "path": at, "value": value} for at, value in new]
    return [{"op": "replace", "path": path, "value": list(after)}]


def _name(item: object) -> object:
    return item.get("name", item) if isinstance(item, Mapping) else item


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")

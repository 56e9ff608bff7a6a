# SPDX-License-Identifier: Apache-2.0
"""Validates objects against Kubernetes' schemas and against Pod Security *restricted*.

The schemas of Kubernetes' kinds are from the package ``kubernetes-validate``,
in their strict form: an unknown field is an error.  The schemas of the
Prometheus operator's kinds are in this module, with the fields that are used.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # has no types of its own
from referencing import Registry, Resource

Object = dict[str, Any]

VERSIONS: Final = tuple(f"1.{minor}" for minor in range(29, 38))
"""The versions of Kubernetes that are supported."""

_VOLUMES: Final = {
    "configMap",
    "secret",
    "projected",
    "emptyDir",
    "downwardAPI",
    "csi",
    "ephemeral",
    "persistentVolumeClaim",
    "image",
}
_TEXT: Final = {"type": "string"}
_LABELS: Final = {"type": "object", "additionalProperties": _TEXT}


def _closed(required: list[str], **properties: Any) -> Object:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


_EXPRESSION: Final = _closed(["key", "operator"], key=_TEXT, operator={"enum": ["Exists", "DoesNotExist"]})
_SELECTOR: Final = _closed([], matchLabels=_LABELS, matchExpressions={"type": "array", "items": _EXPRESSION})
_RELABELING: Final = _closed(
    ["targetLabel"],
    sourceLabels={"type": "array", "items": _TEXT},
    separator=_TEXT,
    targetLabel=_TEXT,
    replacement=_TEXT,
)
_ENDPOINTS: Final = {
    "type": "array",
    "minItems": 1,
    "items": _closed(
        ["port", "path", "interval"],
        port=_TEXT,
        path=_TEXT,
        interval={"pattern": "^[0-9]+(ms|s|m|h)$"},
        honorLabels={"type": "boolean"},
        relabelings={"type": "array", "items": _RELABELING},
    ),
}
_RULE: Final = _closed(
    ["expr"], alert=_TEXT, record=_TEXT, expr=_TEXT, labels=_LABELS, annotations=_LABELS, **{"for": _TEXT}
)
_GROUPS: Final = {
    "type": "array",
    "minItems": 1,
    "items": _closed(["name", "rules"], name=_TEXT, rules={"type": "array", "minItems": 1, "items": _RULE}),
}
_METADATA: Final = _closed(["name"], name=_TEXT, namespace=_TEXT, labels=_LABELS, annotations=_LABELS)


def _monitoring(spec: Object) -> Object:
    return _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind=_TEXT,
        metadata=_METADATA,
        spec=spec,
    )


_MONITORING: Final = {
    "PodMonitor": _monitoring(
        _closed(["selector", "podMetricsEndpoints"], selector=_SELECTOR, podMetricsEndpoints=_ENDPOINTS)
    ),
    "ServiceMonitor": _monitoring(
        _closed(["selector", "endpoints"], selector=_SELECTOR, endpoints=_ENDPOINTS)
    ),
    "PrometheusRule": _monitoring(_closed(["groups"], groups=_GROUPS)),
}


@cache
def _definitions(version: str) -> Registry[Any]:
    resource = Resource.from_contents(_schema(version, "_definitions"))
    return resource @ Registry()


def _schema(version: str, name: str) -> Object:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    schema: Object = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return schema


@cache
def _validator(version: str, api_version: str, kind: str) -> Any:
    if api_version == "monitoring.coreos.com/v1":
        return Draft202012Validator(_MONITORING[kind])
    group, _, number = api_version.rpartition("/")
    parts = [kind.lower(), *([group.partition(".")[0]] if group else []), number]
    return Draft202012Validator(_schema(version, "-".join(parts)), registry=_definitions(version))


def schema_errors(found: Object, version: str) -> list[str]:
    """Return the schema errors of an object for a version of Kubernetes."""
    validator = _validator(version, found["apiVersion"], found["kind"])
    where = f"{found['kind']} {found['metadata']['name']}"
    return [f"{where} {fault.json_path}: {fault.message[:300]}" for fault in validator.iter_errors(found)]


def pod_specs(objects: list[Object]) -> list[Object]:
    """Return the pod specs of all workloads."""
    return [one["spec"]["template"]["spec"] for one in objects if "template" in one.get("spec", {})]


def pod_security_violations(spec: Object) -> list[str]:
    """Return the violations of the Pod Security Standard *restricted*."""
    context = spec.get("securityContext", {})
    found = [f"{name} is on" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if not context.get("runAsNonRoot") or context.get("runAsUser") == 0:
        found.append("may run as root")
    if context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        found.append("no seccomp profile")
    for volume in spec.get("volumes", []):
        found += [f"volume of kind {kind}" for kind in volume.keys() - {"name"} - _VOLUMES]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        found += [f"{container['name']}: {one}" for one in _container_violations(container)]
    return found


def _container_violations(container: Object) -> list[str]:
    security = container.get("securityContext", {})
    found = []
    if security.get("allowPrivilegeEscalation") is not False:
        found.append("may gain privileges")
    if security.get("capabilities", {}).get("drop") != ["ALL"] or security["capabilities"].get("add"):
        found.append("has capabilities")
    if security.get("privileged") or security.get("runAsUser") == 0:
        found.append("is privileged")
    if any("hostPort" in port for port in container.get("ports", [])):
        found.append("has a host port")
    probes = [probe for name, probe in container.items() if name.endswith("Probe")]
    if any("host" in probe.get("httpGet", {}) for probe in probes):
        found.append("a probe names a host")
    return found

# SPDX-License-Identifier: Apache-2.0
"""The custom resource definition, generated from the schema with which the loader validates.

Directives have no defaults in it: a default in a server block would always override
the mail level.  ``mailproxy_config`` defines the fields.
"""

from __future__ import annotations

from typing import Any, Final

from mailproxy_config.manifest import NAME_RULES, SPEC
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.api.kube_version import KubeVersion

_INT32: Final = {"type": "integer", "format": "int32", "minimum": 0, "maximum": 2**31 - 1}
# No maximum: the 64-bit maximum loses precision in JSON, and then every object is rejected.
_INT64: Final = {"type": "integer", "format": "int64", "minimum": 0}


_SELECTABLE_SINCE: Final = KubeVersion(1, 31)


def custom_resource_definition(version: KubeVersion | None = None) -> Manifest:
    """Build the CRD.

    Args:
        version: The oldest API server to install it on.  By default it is valid on all supported
            versions; from 1.31 on, resources can also be selected by ``spec.mode``.
    """
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"mailproxies.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": "mailproxies",
                "singular": "mailproxy",
                "shortNames": ["mailp"],
                "categories": ["mail"],
            },
            "versions": [_version(version or KubeVersion())],
        },
    }


def _version(version: KubeVersion) -> Manifest:
    selectable = {"selectableFields": [{"jsonPath": ".spec.mode"}]} if version >= _SELECTABLE_SINCE else {}
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        **selectable,
        "additionalPrinterColumns": _columns(),
        "schema": {"openAPIV3Schema": _whole()},
    }


def _columns() -> list[Manifest]:
    ready = '.status.conditions[?(@.type=="Ready")]'
    return [
        {"name": "Mode", "type": "string", "jsonPath": ".spec.mode"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.ready"},
        {"name": "Synced", "type": "integer", "jsonPath": ".status.podsSynced"},
        {"name": "Reason", "type": "string", "jsonPath": f"{ready}.reason"},
        {"name": "Message", "type": "string", "jsonPath": f"{ready}.message", "priority": 1},
        {"name": "Address", "type": "string", "jsonPath": ".status.addresses[0].value", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]


def _whole() -> Manifest:
    properties = {
        "apiVersion": {
            "description": f"The version of the schema that the object is written in: {names.API_VERSION}.",
            "type": "string",
        },
        "kind": {"description": f"The kind of the object: {names.KIND}.", "type": "string"},
        "metadata": {"type": "object"},  # the API server does not allow a description here
        "spec": {"description": "The configuration of the proxy, and how it runs.", **SPEC.openapi()},
        "status": _status(),
    }
    return {
        "description": "A proxy for SMTP, IMAP and POP3; the fields are nginx's mail directives.",
        "type": "object",
        "required": ["spec"],
        "properties": properties,
        "x-kubernetes-validations": [rule.openapi() for rule in NAME_RULES],
    }


def _text(longest: int, description: str = "", **more: Any) -> Manifest:  # noqa: ANN401  any keyword of a schema
    return {
        **({"description": description} if description else {}),
        "type": "string",
        "maxLength": longest,
        **more,
    }


def _list(most: int, properties: Manifest, description: str, **more: Any) -> Manifest:  # noqa: ANN401
    kind = {"x-kubernetes-list-type": "atomic"} if "x-kubernetes-list-type" not in more else {}
    items: Manifest = {"type": "object", "properties": properties}
    if "required" in more:
        items["required"] = more.pop("required")
    return {"description": description, "type": "array", "maxItems": most, **kind, **more, "items": items}


def _status() -> Manifest:
    port = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}
    return {
        "description": "The state that the operator has observed.",
        "type": "object",
        "properties": {
            "observedGeneration": {
                "description": "The observed generation of the resource.",
                **_INT64,
            },
            "replicas": {"description": "The number of pods.", **_INT32},
            "readyReplicas": {"description": "The number of pods that are ready.", **_INT32},
            "ready": _text(24, "The numbers of ready and desired pods, such as 2/2."),
            "selector": _text(1024, "Selects the pods; for the scale subresource."),
            "configHash": _text(64, "The hash of the rendered configuration."),
            "podsSynced": {
                "description": "The number of pods that report this hash.",
                **_INT32,
            },
            "upstreams": _list(
                64,
                {
                    "name": _text(63, "The name of the group."),
                    "ready": {"description": "The number of ready members.", **_INT32},
                    "total": {"description": "The number of members.", **_INT32},
                },
                "Groups of upstreams that are Services.",
            ),
            "addresses": _list(
                16,
                {
                    "type": _text(16, "IPAddress or Hostname."),
                    "value": _text(253, "The address or the host name."),
                },
                "The addresses of the Service for clients.",
            ),
            "listeners": _list(
                1024,
                {
                    "server": _text(63, "The name of the server."),
                    "protocol": _text(8, "imap, pop3 or smtp."),
                    "address": _text(128, "The address that it listens on."),
                    "port": {"description": "The port in the resource.", **port},
                    "containerPort": {"description": "The port that is open in the pod.", **port},
                    "servicePort": {"description": "The port of the Service.", **port},
                    "hostPort": {"description": "The port of the node that is forwarded to it.", **port},
                    "tls": {"description": "Whether connections begin with TLS.", "type": "boolean"},
                },
                "The listeners.",
            ),
            "sysctls": _sysctls(),
            "conditions": _conditions(),
        },
    }


def _sysctls() -> Manifest:
    return _list(
        64,
        {
            "name": _text(253, "The name of the kernel setting."),
            "value": _text(128, "The value; absent if listeners set different ones."),
            "safe": {"description": "Whether every kubelet accepts it.", "type": "boolean"},
            "applied": {"description": "Whether it is set in the pods.", "type": "boolean"},
            "reason": _text(64, "What requests it, or why it is not applied, in one word."),
            "message": _text(2048, "Why it is not applied, and how to fix it."),
        },
        "Kernel settings that the listeners or the resource request, and whether they are applied.",
        required=["name"],
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


def _conditions() -> Manifest:
    return _list(
        16,
        {
            "type": _text(316, "The name of the condition.", pattern="^[A-Za-z]+$"),
            "status": {
                "description": "Whether the condition is met.",
                "type": "string",
                "enum": ["True", "False", "Unknown"],
            },
            "observedGeneration": {
                "description": "The observed generation of the resource.",
                **_INT64,
            },
            "lastTransitionTime": {
                "description": "When its status last changed.",
                "type": "string",
                "format": "date-time",
            },
            "reason": _text(
                1024,
                "The reason, in one word.",
                minLength=1,
                pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            ),
            "message": _text(32768, "The cause, and how to fix it."),
        },
        "Accepted ResolvedRefs Available ConfigSynced UpstreamTLSReady RoutesReady GroupsReady Ready: "
        "True is good. "
        "Reconciling Stalled: False is.",
        required=["type", "status", "lastTransitionTime", "reason", "message"],
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

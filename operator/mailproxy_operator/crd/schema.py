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
    described = {
        "apiVersion": {
            "description": f"The version of the schema that the object is written in: {names.API_VERSION}.",
            "type": "string",
        },
        "kind": {"description": f"The kind of the object: {names.KIND}.", "type": "string"},
        "metadata": {"type": "object"},  # the API server does not allow a description here
        "spec": {"description": "What the proxy does, and how it runs.", **SPEC.openapi()},
        "status": _status(),
    }
    return {
        "description": "A proxy for SMTP, IMAP and POP3; the fields are nginx's mail directives.",
        "type": "object",
        "required": ["spec"],
        "properties": described,
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
        "description": "What the operator has seen.",
        "type": "object",
        "properties": {
            "observedGeneration": {"description": "The generation that this status is about.", **_INT64},
            "replicas": {"description": "How many pods there are.", **_INT32},
            "readyReplicas": {"description": "How many of them serve.", **_INT32},
            "ready": _text(24, "Pods that serve, of the pods that are wanted, such as 2/2."),
            "selector": _text(1024, "Selects the pods; for the scale subresource."),
            "configHash": _text(64, "Of the rendered configuration."),
            "podsSynced": {"description": "How many pods report running that configuration.", **_INT32},
            "addresses": _list(
                16,
                {
                    "type": _text(16, "IPAddress or Hostname."),
                    "value": _text(253, "The address or the host name."),
                },
                "Where clients reach the Service.",
            ),
            "listeners": _list(
                1024,
                {
                    "server": _text(63, "The name of the server."),
                    "protocol": _text(8, "imap, pop3 or smtp."),
                    "address": _text(128, "The address that it listens on."),
                    "port": {"description": "The port that the resource names.", **port},
                    "containerPort": {"description": "The port that is open in the pod.", **port},
                    "servicePort": {"description": "The port of the Service.", **port},
                    "hostPort": {"description": "The port of the node that leads to it.", **port},
                    "tls": {"description": "Whether connections begin with TLS.", "type": "boolean"},
                },
                "What listens where.",
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
            "value": _text(128, "Absent where listeners set different ones."),
            "safe": {"description": "Whether every kubelet takes it.", "type": "boolean"},
            "applied": {"description": "Whether the pods get it.", "type": "boolean"},
            "reason": _text(64, "What asks for it, or why it is not applied, in one word."),
            "message": _text(2048, "Why it is not applied, and what to do."),
        },
        "Kernel settings that the listeners or the resource ask for, and what became of them.",
        required=["name"],
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


def _conditions() -> Manifest:
    return _list(
        16,
        {
            "type": _text(316, "The name of the condition.", pattern="^[A-Za-z]+$"),
            "status": {
                "description": "Whether it holds.",
                "type": "string",
                "enum": ["True", "False", "Unknown"],
            },
            "observedGeneration": {"description": "The generation that it is about.", **_INT64},
            "lastTransitionTime": {
                "description": "When its status last changed.",
                "type": "string",
                "format": "date-time",
            },
            "reason": _text(
                1024,
                "Why, in one word.",
                minLength=1,
                pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            ),
            "message": _text(32768, "Why, and what to do."),
        },
        "Accepted ResolvedRefs Available ConfigSynced Ready: True is good. Reconciling Stalled: False is.",
        required=["type", "status", "lastTransitionTime", "reason", "message"],
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

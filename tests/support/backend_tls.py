# SPDX-License-Identifier: Apache-2.0
"""BackendTLSPolicies for tests, and a definition of this kind with the fields that the operator uses."""

from __future__ import annotations

from typing import Any, Final

from mailproxy_operator.api.kinds import GATEWAY_GROUP

REF: Final = {"group": "", "kind": "ConfigMap", "name": "mail-ca"}


def policy(
    name: str = "dovecot",
    *,
    namespace: str = "mail",
    service: str = "dovecot",
    port: str = "",
    created: str = "2026-01-01T00:00:00Z",
    version: str = "v1",
    **validation: Any,
) -> dict[str, Any]:
    """Return a policy for a Service, by default with the CA certificates of the ConfigMap ``mail-ca``."""
    target = {"group": "", "kind": "Service", "name": service, **({"sectionName": port} if port else {})}
    wanted = {"hostname": "imap.example.com", "caCertificateRefs": [REF], **validation}
    return {
        "apiVersion": f"{GATEWAY_GROUP}/{version}",
        "kind": "BackendTLSPolicy",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "spec": {
            "targetRefs": [target],
            "validation": {key: value for key, value in wanted.items() if value is not None},
        },
    }


def config_map(
    name: str = "mail-ca", *, namespace: str = "mail", key: str = "ca.crt", data: str = "PEM"
) -> dict[str, Any]:
    """Return a ConfigMap with CA certificates."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {key: data}}


def definition(*versions: str) -> dict[str, Any]:
    """Return the definition of the kind: the fields that the operator reads and writes, and their limits."""
    text, anything = {"type": "string"}, {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    condition = {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": text,
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string", "minLength": 1},
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    }
    ancestor = {
        "type": "object",
        "required": ["ancestorRef", "controllerName", "conditions"],
        "properties": {
            "ancestorRef": {
                "type": "object",
                "required": ["name"],
                "properties": {name: text for name in ("group", "kind", "namespace", "name")},
            },
            "controllerName": {"type": "string", "pattern": r"^[a-z0-9.-]+/[A-Za-z0-9/_.~-]+$"},
            "conditions": {"type": "array", "minItems": 1, "maxItems": 8, "items": condition},
        },
    }
    schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": anything,
            "status": {
                "type": "object",
                "required": ["ancestors"],
                "properties": {
                    "ancestors": {
                        "type": "array",
                        "maxItems": 16,
                        "x-kubernetes-list-type": "atomic",
                        "items": ancestor,
                    }
                },
            },
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"backendtlspolicies.{GATEWAY_GROUP}",
            # the API server protects *.k8s.io
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": GATEWAY_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "BackendTLSPolicy",
                "plural": "backendtlspolicies",
                "singular": "backendtlspolicy",
                "listKind": "BackendTLSPolicyList",
            },
            "versions": [
                {
                    "name": name,
                    "served": True,
                    "storage": name == versions[0],
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                }
                for name in versions
            ],
        },
    }

# SPDX-License-Identifier: Apache-2.0
"""Copies the schema of the resource into that of the chart, so that Helm reports errors in ``proxies``.

Rules that compare fields, and defaults, are not copied; the API server checks them.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_KEPT = (
    "enum",
    "required",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
)


def with_resource(values: Schema, crd: Schema) -> Schema:
    """Add the schema of ``spec`` to that of the values.

    Args:
        values: The schema of the chart's values; its definition ``proxy`` refers to ``spec``.
        crd: The custom resource definition.
    """
    [version] = crd["spec"]["versions"]
    spec = plain(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    mail = spec["properties"]["mail"]
    spec["properties"]["mail"] = {"$ref": "#/definitions/mail"}
    servers = spec["properties"]["servers"]["items"]["properties"]
    for name, inner in servers.items():
        if inner == mail["properties"].get(name):
            servers[name] = {"$ref": f"#/definitions/mail/properties/{name}"}
    return {**values, "definitions": {**values["definitions"], "mail": mail, "spec": spec}}


def plain(schema: Schema) -> Schema:
    """Convert a schema of Kubernetes to JSON Schema; properties that it does not list are rejected."""
    found = {key: schema[key] for key in _KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **found}
    found = {"type": schema["type"], **found}
    if "items" in schema:
        found["items"] = plain(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = plain(schema["additionalProperties"])
    elif schema["type"] == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["properties"] = {name: plain(inner) for name, inner in schema.get("properties", {}).items()}
        found["additionalProperties"] = False
    return found

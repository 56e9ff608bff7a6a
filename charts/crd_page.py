# SPDX-License-Identifier: Apache-2.0
"""Generates the reference page of the custom resource from its schema.

``python charts/crd_page.py`` reads ``deploy/crd.yaml`` and writes
``docs/reference/crd.md``.  A test fails if the page is stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.crd.schema import custom_resource_definition

ROOT = Path(__file__).resolve().parents[1]
CRD = ROOT / "deploy/crd.yaml"
PAGE = ROOT / "docs/reference/crd.md"

_HEAD = """\
# The MailProxy resource

Generated from `deploy/crd.yaml` by `python charts/crd_page.py`; do not edit.

This page lists all fields of a MailProxy. `kubectl explain mailproxy.spec --recursive` prints the fields of
the version in a cluster. The fields of `spec.mail` are nginx's directives; [directives.md](directives.md)
describes them with their nginx names. Each of them is also a field of a server, which overrides `spec.mail`.
The API server checks the *Rules* when a resource is created or changed.

"""

Schema = dict[str, Any]

# The end of a directive's description; the default has its own column.
_DIRECTIVE = re.compile(r" In nginx: (\w+)\.(?: Default: (.+)\.)?$")
_MOST = 2**31 - 1
_FILE = {"secretKeyRef", "configMapKeyRef", "file"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the resource at any level.

    Attributes:
        path: Path from the root; ``[]`` is any item of a list, ``*`` any key of a map.
        schema: Its OpenAPI schema.
        is_required: Whether it is required in the object that contains it.
    """

    path: str
    schema: Schema
    is_required: bool


def fields(schema: Schema, path: str) -> Iterator[Field]:
    """Yield every field below a schema, depth first, in the order of the schema."""
    if schema.get("properties", {}).keys() == _FILE:
        return
    needed = schema.get("required", [])
    for name, inner in schema.get("properties", {}).items():
        yield Field(f"{path}.{name}", inner, name in needed)
        yield from fields(inner, f"{path}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from fields(schema["additionalProperties"], f"{path}.*")


def kind(schema: Schema) -> str:
    """Describe the values of a field in a few words."""
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "text or number"
    match schema.get("type"):
        case "array":
            return f"list of {kind(schema['items'])}" + _bounds(schema)
        case "object":
            return _object(schema)
        case "integer" | "number":
            return "number" + _range(schema)
    names = {"boolean": "`true` \\| `false`", "string": schema.get("format", "text")}
    return names[schema["type"]]


def _object(schema: Schema) -> str:
    if schema.get("properties", {}).keys() == _FILE:
        return "`{secretKeyRef: {name, key}}` \\| `{configMapKeyRef: {name, key}}` \\| `{file: PATH}`"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map of {kind(schema['additionalProperties'])}"
    return "as in Kubernetes" if schema.get("x-kubernetes-preserve-unknown-fields") else "object"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    return f", {low} to {high}" if low is not None and high is not None and high < _MOST else ""


def _bounds(schema: Schema) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    if most is None:
        return ""
    return f" ({least} to {most})" if least else f" (up to {most})"


def rules(schema: Schema, path: str) -> Iterator[tuple[str, str]]:
    """Yield the validation rules of the API server: path and error message."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield path, rule["message"]
    for name, inner in schema.get("properties", {}).items():
        yield from rules(inner, f"{path}.{name}")
    for key, step in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(schema.get(key), dict):
            yield from rules(schema[key], f"{path}{step}")


def page(crd: Schema) -> str:
    """Generate the page.

    Args:
        crd: The custom resource definition.
    """
    spec = crd["spec"]
    [version] = spec["versions"]
    root = version["schema"]["openAPIV3Schema"]["properties"]
    whole, mail = root["spec"], root["spec"]["properties"]["mail"]
    rest = {name: inner for name, inner in whole["properties"].items() if name not in {"mail", "servers"}}
    servers = whole["properties"]["servers"]["items"]
    own = {name: inner for name, inner in servers["properties"].items() if name not in mail["properties"]}
    about_servers = whole["properties"]["servers"]["description"]
    return _HEAD + "\n".join(
        [
            _names(spec, version),
            _section(
                "spec",
                {**whole, "properties": rest},
                "These fields describe how the proxy runs on Kubernetes.",
            ),
            _section("spec.mail", mail, mail["description"]),
            _section(
                "spec.servers[]",
                {**servers, "properties": own},
                f"{about_servers} In addition to these fields, a server has every field of `spec.mail`.",
            ),
            _section("status", root["status"], root["status"]["description"]),
            _columns(version),
            _rules(whole),
        ]
    )


def _names(spec: Schema, version: Schema) -> str:
    names = spec["names"]
    short = ", ".join(f"`{one}`" for one in (names["plural"], names["singular"], *names["shortNames"]))
    api = f"`{spec['group']}/{version['name']}`"
    # The file has none, because selectable fields exist from Kubernetes 1.31 on.
    newest = custom_resource_definition(KubeVersion(1, 31))["spec"]["versions"][0]
    selectors = ", ".join(f"`{one['jsonPath'].lstrip('.')}`" for one in newest["selectableFields"])
    return (
        "| | |\n|---|---|\n"
        f"| `apiVersion`, `kind` | {api}, `{names['kind']}` |\n"
        f"| Names for kubectl | {short}; category `{names['categories'][0]}` |\n"
        f"| Scope | {spec['scope']} |\n"
        f"| Subresources | {', '.join(f'`{name}`' for name in version['subresources'])} |\n"
        f"| `--field-selector` | {selectors}, from Kubernetes 1.31 on |\n"
    )


def _section(title: str, schema: Schema, meaning: str) -> str:
    rows = [_row(one) for one in fields(schema, "")]
    head = f"## {title}\n\n{meaning}\n\n| Field | Value | Default | Meaning |\n|---|---|---|---|\n"
    return head + "".join(rows)


def _row(field: Field) -> str:
    meaning = field.schema.get("description", "")
    directive = _DIRECTIVE.search(meaning)
    default = json.dumps(field.schema["default"]) if "default" in field.schema else ""
    default = (directive and directive[2]) or default
    shown = "required" if field.is_required else f"`{default}`" if default else ""
    meaning = _DIRECTIVE.sub("", meaning).replace("|", "\\|")
    return f"| `{field.path.lstrip('.')}` | {kind(field.schema)} | {shown} | {meaning} |\n"


def _columns(version: Schema) -> str:
    rows = "".join(
        f"| {one['name']} | `{one['jsonPath'].lstrip('.').replace('|', chr(92) + '|')}` |"
        f"{' with `-o wide`' if one.get('priority') else ''} |\n"
        for one in version["additionalPrinterColumns"]
    )
    return f"## Columns of `kubectl get mailp`\n\n| Column | Field | |\n|---|---|---|\n{rows}"


def _rules(spec: Schema) -> str:
    mail = spec["properties"]["mail"]["properties"]
    found: dict[str, list[str]] = {}
    for path, message in rules(spec, "spec"):
        place = path.removeprefix("spec.servers[].").partition(".")[0].partition("[")[0]
        if path.startswith("spec.servers[].") and place in mail:
            continue  # as in spec.mail
        found.setdefault(path, []).append(message.replace("|", "\\|"))
    rows = "".join(f"| `{path}` | {'; '.join(dict.fromkeys(said))} |\n" for path, said in found.items())
    return f"## Rules\n\n| Field | Error of the API server |\n|---|---|\n{rows}"


if __name__ == "__main__":
    PAGE.write_text(page(yaml.safe_load(CRD.read_text(encoding="utf-8"))), encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""The custom resource definition: up to date, without defaults of directives, and readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_config.directives import LEVEL_DIRECTIVES
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.cli import main
from mailproxy_operator.crd.schema import custom_resource_definition
from support.helm_schemas import VERSIONS, schema_errors

ROOT = Path(__file__).parents[2]
CRD = custom_resource_definition()
SCHEMA: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SPEC: dict[str, Any] = SCHEMA["properties"]["spec"]["properties"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def test_crd_file_equals_output_of_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crd"]) == 0
    printed = capsys.readouterr().out
    assert (ROOT / "deploy" / "crd.yaml").read_text() == printed, (
        "run: mailproxy-operator crd > deploy/crd.yaml"
    )
    assert yaml.safe_load(printed) == CRD


@pytest.mark.parametrize("version", VERSIONS)
def test_crd_is_valid_on_every_supported_version(version: str) -> None:
    """Validation is strict, as with ``kubectl apply``: a field that a version does not have is an error."""
    assert schema_errors(custom_resource_definition(KubeVersion.parse(version)), version) == []
    shipped = yaml.safe_load((ROOT / "deploy" / "crd.yaml").read_text())
    assert schema_errors(shipped, version) == [], "deploy/crd.yaml is for all of them"


@pytest.mark.parametrize("version", VERSIONS)
def test_mode_is_selectable_field_from_kubernetes_1_31(
    version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["crd", "--kube-version", version]) == 0
    [printed] = yaml.safe_load(capsys.readouterr().out)["spec"]["versions"]
    has_them = KubeVersion.parse(version) >= KubeVersion(1, 31)
    assert printed.get("selectableFields", []) == ([{"jsonPath": ".spec.mode"}] if has_them else [])


@pytest.mark.parametrize("level", [SPEC["mail"], SPEC["servers"]["items"]])
def test_every_directive_has_its_field_with_a_description_and_no_default(level: dict[str, Any]) -> None:
    properties = level["properties"]
    assert {row.field for row in LEVEL_DIRECTIVES} <= properties.keys()
    assert [name for name, schema in properties.items() if not schema.get("description")] == []
    assert [path for path, schema in nodes(level) if "default" in schema] == []


def test_every_field_is_limited() -> None:
    for path, schema in nodes(SCHEMA):
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if schema.get("type") == "string" and path not in {".apiVersion", ".kind"}:
            assert {"maxLength", "enum", "format"} & schema.keys(), path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path


def test_schema_is_structural() -> None:
    for path, schema in nodes(SCHEMA):
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        assert not {"anyOf", "oneOf", "$ref"} & schema.keys(), path


def test_names_in_crd() -> None:
    spec = CRD["spec"]
    assert CRD["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert spec["names"]["shortNames"] == ["mailp"]
    version = spec["versions"][0]
    assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)
    assert version["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"


def test_status_has_all_fields() -> None:
    status = SCHEMA["properties"]["status"]["properties"]
    assert set(status) == {
        "observedGeneration",
        "replicas",
        "readyReplicas",
        "ready",
        "selector",
        "configHash",
        "podsSynced",
        "addresses",
        "listeners",
        "sysctls",
        "upstreams",
        "conditions",
    }


def test_every_field_has_a_description() -> None:
    missing = [
        f"{path}.{name}"
        for path, schema in nodes(SCHEMA)
        for name, inner in schema.get("properties", {}).items()
        if not inner.get("description")
        and (path, name) != ("", "metadata")  # the API server does not allow one there
    ]
    assert missing == []


def test_message_of_every_rule_names_a_field() -> None:
    """Clients show the message; the path before it is that of the object that has the rule."""
    unnamed = [
        (path, rule["message"])
        for path, schema in nodes(SCHEMA)
        for rule in schema.get("x-kubernetes-validations", [])
        if "properties" in schema and not _names_a_field(rule["message"], schema)
    ]
    assert unnamed == []


def _names_a_field(message: str, schema: dict[str, Any]) -> bool:
    words = set(re.findall(r"[A-Za-z0-9]+", message))
    return bool(words & schema["properties"].keys())

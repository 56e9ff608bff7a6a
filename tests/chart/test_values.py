# SPDX-License-Identifier: Apache-2.0
"""Invalid values are rejected with a message that names them; the generated pages of values are fresh."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.helm import CHART, ROOT, Helm, load_objects, objects_of_kind

sys.path.insert(0, str(ROOT / "charts"))
from values_page import Section, pages, sections, values  # type: ignore[import-not-found]

SERVERS = {"servers": [{"name": "imap", "listen": [{"port": 143}]}]}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        # misspelt keys
        ({"replicsa": 2}, "replicsa"),
        ({"metrics": {"podMonitr": {}}}, "podMonitr"),
        ({"metrics": {"podMonitor": {"enable": True}}}, "enable"),
        ({"proxies": {"edge": {"spec": SERVERS, "nmespace": "a"}}}, "nmespace"),
        ({"extraEnv": [{"nam": "A"}]}, "nam"),
        # wrong types, and values out of range
        ({"replicas": "two"}, "/replicas"),
        ({"replicas": 0}, "/replicas"),
        ({"crds": {"keep": "maybe"}}, "/crds/keep"),
        ({"commonLabels": {"a": 1}}, "/commonLabels/a"),
        ({"image": {"digest": "sha256:abc"}}, "/image/digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"nodeMinVersion": "latest"}, "/nodeMinVersion"),
        ({"resyncSeconds": 1}, "/resyncSeconds"),
        ({"log": {"level": "loud"}}, "/log/level"),
        ({"metrics": {"port": 80}}, "/metrics/port"),
        ({"resources": {"requests": {"memory": "much"}}}, "/resources/requests/memory"),
        ({"networkPolicy": {"apiServerCidrs": ["10.0.0.1"]}}, "/networkPolicy/apiServerCidrs"),
        ({"watchNamespaces": "mail"}, "/watchNamespaces"),
        ({"watchNamespaces": [""]}, "/watchNamespaces/0"),
        ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces"),
        ({"proxies": {"edge": {}}}, "/proxies/edge"),
        ({"proxies": {"edge": {"spec": {"servers": []}}}}, "/proxies/edge/spec/servers"),
        ({"proxies": {"edge": {"spec": {**SERVERS, "sevrice": {}}}}}, "sevrice"),
        ({"proxies": {"edge": {"spec": {**SERVERS, "mail": {"autHttp": "http://a/"}}}}}, "autHttp"),
        ({"proxies": {"edge": {"spec": {**SERVERS, "replicas": "2"}}}}, "/proxies/edge/spec/replicas"),
        ({"proxies": {"edge": {"spec": {**SERVERS, "mode": "Daemon"}}}}, "/proxies/edge/spec/mode"),
        (
            {"proxies": {"edge": {"spec": {"servers": [{"name": "imap", "listen": [{"prot": 143}]}]}}}},
            "/proxies/edge/spec/servers/0/listen/0",
        ),
        # values that contradict each other
        ({"watchNamespaces": []}, "watchNamespaces"),
        (
            {"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor.enabled are both true",
        ),
        (
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
            "metrics.serviceMonitor.enabled needs",
        ),
        ({"webhook": {"enabled": True, "certificateSecret": "a"}}, "webhook.certificateSecret needs"),
        ({"webhook": {"caBundle": "YQ=="}}, "webhook.caBundle needs"),
        ({"webhook": {"failurePolicy": "Maybe"}}, "/webhook/failurePolicy"),
        ({"webhook": {"timeoutSeconds": 31}}, "/webhook/timeoutSeconds"),
        ({"webhook": {"enabled": True, "port": 8080}}, "webhook.port and metrics.port"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels"),
        ({"podLabels": {"mailproxy.dev/component": "x"}}, "podLabels"),
        ({"extraEnv": [{"name": "POD_NAMESPACE", "value": "x"}]}, "extraEnv"),
        ({"enabled": False}, "enabled is false"),
        ({"enabled": "no"}, "/enabled"),
        ({"imagePullSecrets": [{"nam": "a"}]}, "/imagePullSecrets/0"),
        ({"proxyImage": {"pullSecrets": [1]}}, "/proxyImage/pullSecrets/0"),
        ({"extraEnv": [{"name": "POD_UID", "value": "x"}]}, "extraEnv: POD_UID"),
        ({"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}, "extraVolumes: tmp"),
        ({"extraArgs": [""]}, "/extraArgs/0"),
        ({"proxies": {"Edge": {"spec": SERVERS}}}, "proxies.Edge"),
        ({"proxies": {"e" * 51: {"spec": SERVERS}}}, "proxies.eee"),
        ({"watchNamespaces": ["a"], "proxies": {"edge": {"spec": SERVERS}}}, "proxies.edge"),
    ],
)
def test_invalid_value_is_named_in_the_error(each_helm: Helm, given: dict[str, Any], named: str) -> None:
    message = each_helm.error_of(given)
    # Helm 3 writes a path with dots.
    assert named in message or named.strip("/").replace("/", ".") in message


@pytest.mark.parametrize(
    "example", sorted((ROOT / "deploy/examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_example_is_valid_in_the_values(helm: Helm, example: Path) -> None:
    """The schema of the values accepts whatever the API server accepts."""
    [found] = [one for one in load_objects(example.read_text()) if one["kind"] == "MailProxy"]
    [made] = objects_of_kind(helm.objects({"proxies": {"edge": {"spec": found["spec"]}}}), "MailProxy")
    assert made["spec"] == found["spec"]


def test_older_kubernetes_is_rejected(helm: Helm) -> None:
    assert ">=1.29" in helm.error_of(None, "--kube-version", "1.28.9")


def test_schema_has_exactly_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert _undeclared(schema, defaults) == []
    # Helm adds "global" to the values of a subchart, and passes on "enabled", the parent chart's condition.
    assert schema["properties"].keys() - defaults.keys() == {"global", "enabled"}


def _undeclared(schema: dict[str, Any], tree: dict[str, Any], path: str = "") -> list[str]:
    known = schema["properties"]
    found = [f"{path}{key}" for key in tree if key not in known]
    for key, value in tree.items():
        if isinstance(value, dict) and known.get(key, {}).get("additionalProperties") is False:
            found += _undeclared(known[key], value, f"{path}{key}.")
    return found


def test_every_value_has_a_comment() -> None:
    text = (CHART / "values.yaml").read_text()
    listed = {one.path for one in values(text)}
    assert sorted(_leaves(yaml.safe_load(text), listed)) == sorted(listed)
    assert all(one.meaning.endswith(".") for one in values(text))


def _leaves(tree: dict[str, Any], listed: set[str], path: str = "") -> list[str]:
    found: list[str] = []
    for key, value in tree.items():
        name = f"{path}{key}"
        # A value with a comment needs no comments on its parts.
        inside = isinstance(value, dict) and value and name not in listed
        found += _leaves(value, listed, f"{name}.") if inside else [name]
    return found


SECTIONS: list[Section] = sections((CHART / "values.yaml").read_text())
EXAMPLES = [
    pytest.param(example, id=section.anchor) for section in SECTIONS for example in section.examples()
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_values_page_render_and_change_something(
    helm: Helm, tmp_path: Path, example: str
) -> None:
    """An example that sets only defaults would show nothing."""
    file = tmp_path / "values.yaml"
    file.write_text(example)
    monitoring = ("--api-versions", "monitoring.coreos.com/v1")
    assert helm.objects(None, "-f", str(file), *monitoring) != helm.objects(None, *monitoring)


def test_every_section_of_the_values_page_has_an_introduction_and_values() -> None:
    assert len(SECTIONS) > 8
    assert all(one.introduction and one.values for one in SECTIONS)
    assert len(EXAMPLES) > 6
    page = (ROOT / "docs/reference/values.md").read_text()
    for section in SECTIONS:
        assert f"* [{section.title}](#{section.anchor})\n" in page
        assert f"\n## {section.title}\n" in page


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_generated_values_pages_are_fresh(page: Any) -> None:
    assert page.read_text() == pages()[page], "run: python charts/values_page.py"

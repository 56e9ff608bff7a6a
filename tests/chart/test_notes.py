# SPDX-License-Identifier: Apache-2.0
"""Helm's notes after an installation: the next step is valid, and warnings are printed where they apply."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from mailproxy_demo.manifest_file import read_resource
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.settings import Platform
from support.helm import CHART, ROOT, Helm, Object, value_options

UNSAFE: Object = {
    "spec": {"servers": [{"name": "imap", "listen": [{"port": 143}]}], "sysctls": {"unsafe": "Allow"}}
}


def notes(helm: Helm, values: Object, *options: str) -> str:
    if helm.major == 3:
        pytest.skip("needs Helm 4: Helm 3 needs a cluster even for a dry run")
    output = helm.check_output(
        "install", "mp", str(CHART), "-n", "mail", "--dry-run=client", *value_options(values), *options
    )
    return output.partition("NOTES:")[2]


def _renders(text: str) -> bool:
    return bool(render(planned(Resource.read(read_resource(text, "notes")), Platform())))


def test_notes_show_a_valid_resource(helm: Helm) -> None:
    [sample] = re.findall(r"<<EOF\n(.+?)  EOF", notes(helm, {"watchNamespaces": ["post"]}), re.DOTALL)
    assert yaml.safe_load(sample)["metadata"]["namespace"] == "post"
    assert _renders(sample)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"crds": {"keep": False}}, "uninstalling this release deletes every MailProxy"),
        ({"crds": {"enabled": False}}, "upgrade it yourself"),
        (
            {"metrics": {"podMonitor": {"enabled": True}}},
            "the cluster has no kinds of monitoring.coreos.com/v1",
        ),
        ({"proxies": {"edge": UNSAFE}}, "proxies.edge allows unsafe sysctls"),
        ({"proxies": {"edge": UNSAFE}}, "kubectl -n mail wait --for=condition=Ready mailp/edge"),
    ],
)
def test_note_is_printed_only_with_its_values(helm: Helm, values: Object, note: str) -> None:
    assert note in notes(helm, values)
    assert note not in notes(helm, {})


def test_install_page_shows_valid_resources() -> None:
    page = (ROOT / "docs/install.md").read_text()
    [sample] = re.findall(r"<<'EOF'\n(.+?)\nEOF", page, re.DOTALL)
    assert _renders(sample)
    [values] = re.findall(r"```yaml\n# values.yaml\n(.+?)```", page, re.DOTALL)
    [(name, proxy)] = yaml.safe_load(values)["proxies"].items()
    body = {"apiVersion": "mailproxy.dev/v1alpha1", "kind": "MailProxy", "metadata": {"name": name}}
    assert _renders(yaml.safe_dump({**body, "spec": proxy["spec"]}))


def test_every_value_of_the_install_page_exists() -> None:
    page = (ROOT / "docs/install.md").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    named = re.findall(
        r"`((?:metrics|crds|sysctlPolicy|image|proxyImage|watch|replicas)[A-Za-z.]*)[`:]", page
    )
    assert named
    for path in named:
        found = schema
        for step in path.split("."):
            found = found["properties"][step]

# SPDX-License-Identifier: Apache-2.0
"""``deploy/`` is the chart without Helm: generated from it, and applied over what 0.1.0 has installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mailproxy_operator.cli import _parser as operator_arguments
from support.helm import ROOT, Helm, Object, named, release_objects
from support.helm_cluster import ChartCluster, chart_cluster
from support.kube_server import ABSENT, programs
from support.kubectl import ABSENT as NO_KUBECTL
from support.kubectl import Kubectl, find_kubectl

sys.path.insert(0, str(ROOT / "charts"))
from plain_manifests import DEPLOY, NAMESPACE, RELEASE, pages  # type: ignore[import-not-found]

RELEASED = Path(__file__).parent / "data/operator-0.1.0.yaml"
"""``deploy/operator.yaml`` as 0.1.0 had it, written by hand."""


def _documents(path: Path) -> list[Object]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def test_the_plain_manifests_are_those_of_the_chart(helm: Helm) -> None:
    made = pages(lambda values: release_objects(helm, RELEASE, NAMESPACE, values))
    assert {path.name for path in made} == {"rbac.yaml", "operator.yaml", "webhook.yaml"}
    for path, content in made.items():
        assert path.read_text() == content, "run: make generate"


def test_a_change_of_the_chart_changes_the_plain_manifests(helm: Helm) -> None:
    """Whatever it is about: there is no list of what is compared."""

    def render(values: Object) -> list[Object]:
        objects = release_objects(helm, RELEASE, NAMESPACE, values)
        named(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"] = "x"
        return objects

    changed = {path.name for path, content in pages(render).items() if path.read_text() != content}
    assert "operator.yaml" in changed


def test_the_selector_of_the_deployment_is_that_of_the_first_release() -> None:
    """It cannot be changed: an apply over it would be refused."""
    now, before = (named(_documents(path), "Deployment") for path in (DEPLOY / "operator.yaml", RELEASED))
    assert now["spec"]["selector"] == before["spec"]["selector"]
    assert (
        before["spec"]["selector"]["matchLabels"].items()
        <= now["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_program_understands_the_arguments_of_the_plain_manifests() -> None:
    deployment = named(_documents(DEPLOY / "operator.yaml"), "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    options = operator_arguments().parse_args(container["args"])
    image = named(_documents(RELEASED), "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"][0]
    assert options.image == image["value"]


@pytest.fixture(scope="module")
def cluster(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChartCluster]:
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    with chart_cluster(found, tmp_path_factory.mktemp("plain"), helm) as made:
        yield made


@pytest.mark.kubernetes
def test_the_plain_manifests_are_applied_over_those_of_the_first_release(
    cluster: ChartCluster, tmp_path: Path
) -> None:
    program = find_kubectl(tmp_path)
    if program is None:
        pytest.skip(NO_KUBECTL)
    kubectl = Kubectl(program, cluster.kubeconfig)
    said = kubectl("apply", "--server-side", "-f", str(RELEASED))
    assert "error" not in said.lower(), said
    said = kubectl("apply", "--server-side", "--force-conflicts", "-k", str(DEPLOY))
    assert "error" not in said.lower(), said
    live = cluster.api.found("Deployment", NAMESPACE, RELEASE)["spec"]["template"]["spec"]["containers"][0]
    [wanted] = named(_documents(DEPLOY / "operator.yaml"), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert live["args"] == wanted["args"]
    assert [port["name"] for port in live["ports"]] == ["metrics"]
    assert "command" not in live

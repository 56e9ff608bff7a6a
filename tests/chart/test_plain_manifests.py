# SPDX-License-Identifier: Apache-2.0
"""The plain manifests of ``deploy/`` are generated from the chart, and apply over those of 0.1.0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mailproxy_operator.cli import argument_parser as operator_arguments
from support.helm import ROOT, Helm, Object, find_object, release_objects
from support.helm_cluster import ChartCluster, chart_cluster
from support.kube_server import ABSENT, programs
from support.kubectl import ABSENT as NO_KUBECTL
from support.kubectl import Kubectl, find_kubectl

sys.path.insert(0, str(ROOT / "charts"))
from plain_manifests import DEPLOY, NAMESPACE, RELEASE, pages  # type: ignore[import-not-found]

RELEASED = Path(__file__).parent / "data/operator-0.1.0.yaml"
"""``deploy/operator.yaml`` of release 0.1.0, which was not generated."""


def _documents(path: Path) -> list[Object]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def test_plain_manifests_are_fresh(helm: Helm) -> None:
    made = pages(lambda values: release_objects(helm, RELEASE, NAMESPACE, values))
    assert {path.name for path in made} == {"rbac.yaml", "operator.yaml", "webhook.yaml"}
    for path, content in made.items():
        assert path.read_text() == content, "run: make generate"


def test_change_of_the_chart_changes_the_plain_manifests(helm: Helm) -> None:
    """Any change: the comparison covers whole objects."""

    def render(values: Object) -> list[Object]:
        objects = release_objects(helm, RELEASE, NAMESPACE, values)
        find_object(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0][
            "name"
        ] = "x"
        return objects

    changed = {path.name for path, content in pages(render).items() if path.read_text() != content}
    assert "operator.yaml" in changed


def test_deployment_selector_equals_that_of_release_0_1_0() -> None:
    """The API server rejects a change of a selector."""
    now, before = (
        find_object(_documents(path), "Deployment") for path in (DEPLOY / "operator.yaml", RELEASED)
    )
    assert now["spec"]["selector"] == before["spec"]["selector"]
    assert (
        before["spec"]["selector"]["matchLabels"].items()
        <= now["spec"]["template"]["metadata"]["labels"].items()
    )


def test_operator_parses_arguments_of_the_plain_manifests() -> None:
    deployment = find_object(_documents(DEPLOY / "operator.yaml"), "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    options = operator_arguments().parse_args(container["args"])
    image = find_object(_documents(RELEASED), "Deployment")["spec"]["template"]["spec"]["containers"][0][
        "env"
    ][0]
    assert options.image == image["value"]


@pytest.fixture(scope="module")
def cluster(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChartCluster]:
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    with chart_cluster(found, tmp_path_factory.mktemp("plain"), helm) as made:
        yield made


@pytest.mark.kubernetes
def test_plain_manifests_apply_over_release_0_1_0(cluster: ChartCluster, tmp_path: Path) -> None:
    program = find_kubectl(tmp_path)
    if program is None:
        pytest.skip(NO_KUBECTL)
    kubectl = Kubectl(program, cluster.kubeconfig)
    output = kubectl("apply", "--server-side", "-f", str(RELEASED))
    assert "error" not in output.lower(), output
    output = kubectl("apply", "--server-side", "--force-conflicts", "-k", str(DEPLOY))
    assert "error" not in output.lower(), output
    live = cluster.api.found("Deployment", NAMESPACE, RELEASE)["spec"]["template"]["spec"]["containers"][0]
    [wanted] = find_object(_documents(DEPLOY / "operator.yaml"), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert live["args"] == wanted["args"]
    assert [port["name"] for port in live["ports"]] == ["metrics"]
    assert "command" not in live

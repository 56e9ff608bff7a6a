# SPDX-License-Identifier: Apache-2.0
"""Hundreds of resources at once: all settle with a limited number of requests, and then requests stop."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from support.kube_cluster import USER, Cluster, Operator, real_cluster
from support.kube_server import Request, programs
from support.kube_world import Addresses, World

pytestmark = pytest.mark.kubernetes

COUNT: Final = 300
PATIENCE: Final = 300.0
MOST_REQUESTS: Final = 40
"""For each resource, from creation until ready: first 6 gets and 6 applies, later 9 lists a reconcile."""


@pytest.fixture
def crowd(real: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An API server and an operator that are used for nothing else."""
    found = programs()
    assert found is not None, "there is one already"
    del real
    with real_cluster(found, tmp_path_factory.mktemp("many")) as cluster:
        kubeconfig = cluster.kubeconfig("operator", cluster.operator_token())
        operator = Operator(cluster, "many", kubeconfig)
        try:
            yield World(cluster, operator.started(), Addresses())
        finally:
            operator.stop()


def requests(world: World) -> list[Request]:
    assert world.cluster.server is not None
    return [one for one in world.cluster.server.requests(USER) if one.verb != "watch"]


def all_settled(world: World, waiting: list[str]) -> bool:
    """Remove settled resources from the end of the list, and return whether none is left."""
    while waiting and world.condition("Reconciling", waiting[-1]) == ("False", "Settled"):
        waiting.pop()
    return not waiting


def test_many_resources_settle_and_cause_no_more_requests(crowd: World) -> None:
    names = [f"edge-{number}" for number in range(COUNT)]
    with ThreadPoolExecutor(8) as hands:
        list(hands.map(lambda name: crowd.put(name, replicas=0), names))
        crowd.until(lambda: crowd.find("Deployment", names[-1]), "the last Deployment", timeout=PATIENCE)

        def report(name: str) -> None:
            crowd.report(crowd.until(lambda: crowd.find("Deployment", name), name, timeout=PATIENCE), 0)

        list(hands.map(report, names))
    waiting = list(names)
    crowd.until(lambda: all_settled(crowd, waiting), "all to settle", timeout=PATIENCE)
    sent = requests(crowd)
    assert len(sent) <= MOST_REQUESTS * COUNT
    assert [one for one in sent if one.code >= 400 and one.code != 404] == []
    assert {kind: len(crowd.api.list(kind, crowd.namespace)) for kind in ("Deployment", "ConfigMap")} == {
        "Deployment": COUNT,
        "ConfigMap": COUNT,
    }
    before = crowd.versions()
    quiet = len(requests(crowd))
    crowd.put("one-more", replicas=0)
    crowd.until(lambda: crowd.find("Deployment", "one-more"), "one more", timeout=PATIENCE)
    after = {at: version for at, version in crowd.versions().items() if "one-more" not in at[1]}
    assert after == before, "no other resource was changed"
    assert len(requests(crowd)) - quiet <= MOST_REQUESTS, "and no other resource was reconciled"

# SPDX-License-Identifier: Apache-2.0
"""API servers for these tests: the emulated one always, a real one where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.kube_cluster import EMULATED, REAL, Cluster, Operator, emulated_cluster, real_cluster
from support.kube_server import ABSENT, programs
from support.kube_world import Addresses, World
from support.kubectl import ABSENT as NO_KUBECTL
from support.kubectl import Kubectl, find_kubectl

NewOperator = Callable[..., Operator]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real API server."""
    found = programs()
    if found is None:
        pytest.skip(ABSENT)
    with real_cluster(found, tmp_path_factory.mktemp("kube")) as made:
        yield made


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The emulated API server."""
    with emulated_cluster(tmp_path_factory.mktemp("emulated")) as made:
        yield made


@pytest.fixture(scope="session", params=[EMULATED, REAL])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Both API servers: where they differ, the emulated one is wrong."""
    found: Cluster = request.getfixturevalue("real" if request.param == REAL else "emulated")
    return found


@pytest.fixture(scope="session")
def addresses() -> Addresses:
    """Addresses for pods."""
    return Addresses()


@pytest.fixture(scope="module")
def operator(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Operator]:
    """The operator for the whole cluster, with the rights of ``deploy/rbac.yaml`` and no others."""
    kubeconfig = cluster.kubeconfig("operator", cluster.operator_token())
    name = request.module.__name__.rpartition(".")[2]
    running = Operator(cluster, f"operator-{name}", kubeconfig, ["--resync=30"])
    try:
        yield running.started()
    finally:
        running.stop()


@pytest.fixture
def world(cluster: Cluster, operator: Operator, addresses: Addresses) -> Iterator[World]:
    """A namespace that the operator watches."""
    made = World(cluster, operator, addresses)
    yield made
    made.close()


@pytest.fixture
def idle_world(cluster: Cluster, addresses: Addresses) -> Iterator[World]:
    """A namespace for operators that a test starts itself."""
    made = World(cluster, None, addresses)
    yield made
    made.close()


@pytest.fixture
def new_operator(cluster: Cluster) -> Iterator[NewOperator]:
    """Start operators for one test, by name and options."""
    started: list[Operator] = []

    def new(
        name: str, *options: str, token: str | None = None, environment: dict[str, str] | None = None
    ) -> Operator:
        wanted = cluster.operator_token() if token is None else token
        kubeconfig = cluster.kubeconfig(name, wanted)
        started.append(Operator(cluster, name, kubeconfig, options, environment))
        return started[-1]

    yield new
    for one in started:
        one.stop()


@pytest.fixture(scope="session")
def kubectl(real: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """kubectl on the real API server, with all rights."""
    program = find_kubectl(tmp_path_factory.mktemp("kubectl"))
    if program is None:
        pytest.skip(NO_KUBECTL)
    return Kubectl(program, real.kubeconfig("admin", real.api.user.token))

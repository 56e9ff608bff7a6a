# SPDX-License-Identifier: Apache-2.0
"""Several operators, of which only the holder of the Lease works."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.kube_cluster import REAL, SYSTEM, Operator
from support.kube_world import World

pytestmark = pytest.mark.kubernetes

LEASE = "mailproxy-operator"
EXPIRY = 40.0
"""Seconds: a Lease is valid for 15, and is read every two."""

NewOperator = Callable[..., Operator]


def holder(world: World) -> str:
    """Return the holder of the Lease, as host name and process id; empty without a holder."""
    lease = world.api.find("Lease", SYSTEM, LEASE)
    return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")


def holds(world: World, operator: Operator) -> bool:
    return holder(world).endswith(f"_{operator.pid}")


def is_leader(operator: Operator) -> bool:
    text = operator.admin.request("GET", "/metrics").body["message"]
    return "mailproxy_operator_leader 1.0" in text


@pytest.fixture
def start(idle_world: World, new_operator: NewOperator) -> Callable[[str], Operator]:
    """Start an operator for this world's namespace that takes part in leader election."""
    idle_world.api.delete("Lease", SYSTEM, LEASE)

    def started(name: str) -> Operator:
        options = (f"--lease-namespace={SYSTEM}", f"--namespace={idle_world.namespace}", "--resync=30")
        return new_operator(name, *options).started()

    return started


def test_standby_takes_over_when_leader_ends(idle_world: World, start: Callable[[str], Operator]) -> None:
    world = idle_world
    first = start("first")
    world.until(lambda: holds(world, first), "the Lease")
    second = start("second")
    world.put()
    world.until(lambda: world.condition()[0], "work")
    assert (is_leader(first), is_leader(second)) == (True, False)
    world.until(
        lambda: second.admin.request("GET", "/readyz").status == 200, "the standby operator to be ready"
    )
    first.stop()
    assert first.process.returncode == 0
    assert not holds(world, first), "it was given back"
    world.until(lambda: holds(world, second), "the other one")
    world.put(workers=2)
    world.until(lambda: world.condition()[0], "work")
    assert is_leader(second)
    transitions = world.api.found("Lease", SYSTEM, LEASE)["spec"]["leaseTransitions"]
    assert transitions >= 1


def test_standby_takes_over_when_lease_of_killed_leader_expires(
    idle_world: World, start: Callable[[str], Operator]
) -> None:
    world = idle_world
    first = start("killed")
    world.until(lambda: holds(world, first), "the Lease")
    second = start("heir")
    first.process.kill()
    first.process.wait(20)
    world.put()
    world.until(lambda: holds(world, second), "the other one", timeout=EXPIRY)
    world.until(lambda: world.condition()[0], "work")


def test_operator_that_loses_lease_ends(idle_world: World, start: Callable[[str], Operator]) -> None:
    world = idle_world
    first = start("robbed")
    world.until(lambda: holds(world, first), "the Lease")

    def is_stolen() -> bool:
        lease = world.api.found("Lease", SYSTEM, LEASE)
        lease["spec"]["holderIdentity"] = "other"
        return world.api.replace(lease).status == 200

    world.until(is_stolen, "the theft")
    assert first.wait_for_exit(EXPIRY) == 1
    assert holder(world) == "other", "the Lease of another holder is not released"


def test_lease_is_owned_by_pod_of_holder(idle_world: World, new_operator: NewOperator) -> None:
    """Only granted rights are used: OpenShift's admission requires one to change an owner reference."""
    world = idle_world
    world.api.delete("Lease", SYSTEM, LEASE)
    for number in (0, 1):
        pod = {"POD_NAMESPACE": SYSTEM, "POD_NAME": f"op-{number}", "POD_UID": f"uid-{number}"}
        options = (f"--namespace={world.namespace}", "--resync=30")
        one = new_operator(f"owner-{number}", *options, environment=pod).started()
        world.until(lambda one=one: holds(world, one), "the Lease")  # type: ignore[misc]
        [owner] = world.api.found("Lease", SYSTEM, LEASE)["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "Pod", "name": f"op-{number}", "uid": f"uid-{number}"}
        one.stop()


@pytest.mark.parametrize("cluster", [REAL], indirect=True, scope="session")
def test_forbidden_lease_is_logged(idle_world: World, new_operator: NewOperator) -> None:
    options = ("--lease-namespace=kube-system", f"--namespace={idle_world.namespace}")
    operator = new_operator("unwelcome", *options).started()
    operator.eventually(lambda: "could not be acquired" in operator.output_text(), "to be logged")
    assert "forbidden" in operator.output_text()
    assert operator.process.poll() is None

# SPDX-License-Identifier: Apache-2.0
"""Members of Services on an API server: from EndpointSlices to the annotation of pods, without a new pod."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from support.endpoint_slices import Object, endpoint, service, slice_of
from support.kube_world import World

pytestmark = pytest.mark.kubernetes

SPEC: Final[dict[str, Any]] = {
    "mail": {"authMode": "Upstream", "routes": [{"domains": ["*"], "upstream": "dovecot"}]},
    "upstreams": [{"name": "dovecot", "service": {"name": "dovecot"}, "hash": "User", "memberGrace": "3s"}],
}
MEMBERS_HASH: Final = "mailproxy.dev/members-hash"


def write_slice(world: World, *endpoints: Object, name: str = "dovecot-a") -> None:
    _ = world.api.apply(slice_of(*endpoints, name=name, namespace=world.namespace)).checked_body


def states(world: World) -> dict[str, str]:
    found = world.find("ConfigMap", "edge-members")
    if found is None:
        return {}
    lists = json.loads(found["data"]["members.json"])["upstreams"]
    return {member["id"]: member["state"] for member in lists["dovecot"]["members"]}


def test_members_follow_the_endpoint_slices_of_a_service(world: World) -> None:
    world.put(**SPEC)
    world.until(lambda: world.condition("GroupsReady") == ("False", "ServiceNotFound"), "the condition")
    made = service(namespace=world.namespace, clusterIP="None")
    _ = world.api.apply(made).checked_body
    write_slice(world, endpoint(0), endpoint(1))
    world.until(lambda: states(world) == {"dovecot-0": "Ready", "dovecot-1": "Ready"}, "both members")
    counts = [{"name": "dovecot", "ready": 2, "total": 2}]
    world.until(lambda: world.status()["upstreams"] == counts, "the status, which is written last")
    assert world.condition("GroupsReady") == ("True", "MembersReady")
    world.settle()
    [pod] = world.pods()[:1]
    before, template = pod["metadata"]["annotations"][MEMBERS_HASH], world.found("Deployment")["spec"]
    # Another slice, and a pod that terminates.
    write_slice(world, endpoint(2), name="dovecot-b")
    write_slice(world, endpoint(0), endpoint(1, ready=False, terminating=True))
    expected = {"dovecot-0": "Ready", "dovecot-1": "Draining", "dovecot-2": "Ready"}
    world.until(lambda: states(world) == expected, "three members")
    name = pod["metadata"]["name"]
    world.until(
        lambda: world.found("Pod", name)["metadata"]["annotations"][MEMBERS_HASH] != before, "the annotation"
    )
    assert world.found("Deployment")["spec"] == template
    # It vanishes, is kept for memberGrace, and is removed without another event.
    write_slice(world, endpoint(0))
    world.until(lambda: states(world).get("dovecot-1") == "Gone", "the member to be gone")
    world.until(lambda: states(world) == {"dovecot-0": "Ready", "dovecot-2": "Ready"}, "its removal")
    for one in ("dovecot-a", "dovecot-b"):
        _ = world.api.delete("EndpointSlice", world.namespace, one)
    world.until(lambda: world.condition("GroupsReady") == ("False", "NoReadyMembers"), "no ready member")

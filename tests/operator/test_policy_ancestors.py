# SPDX-License-Identifier: Apache-2.0
"""``status.ancestors`` of policies: our entry is written and removed, those of others are kept."""

from __future__ import annotations

from typing import Any, Final

from mailproxy_operator.policies import ancestors
from mailproxy_operator.policies.backend_tls import PolicyVerdict, invalid
from support.backend_tls import policy

GOOD: Final = PolicyVerdict()
FOREIGN: Final = {
    "ancestorRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
    "controllerName": "example.org/gateway",
    "conditions": [{"type": "Accepted", "status": "True"}],
}
FIRST, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def with_status(*entries: Any, generation: int = 3) -> dict[str, Any]:
    made = policy()
    made["metadata"]["generation"] = generation
    return {**made, "status": {"ancestors": list(entries)}}


def test_entry_has_ancestor_controller_and_conditions() -> None:
    [entry] = ancestors.with_entry(with_status(), "edge", GOOD, FIRST)
    assert entry["ancestorRef"] == {
        "group": "mailproxy.dev",
        "kind": "MailProxy",
        "namespace": "mail",
        "name": "edge",
    }
    assert entry["controllerName"] == "mailproxy.dev/operator"
    found = [(one["type"], one["status"], one["reason"]) for one in entry["conditions"]]
    assert found == [("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "ResolvedRefs")]
    assert {one["observedGeneration"] for one in entry["conditions"]} == {3}


def test_entries_of_others_are_kept() -> None:
    """Also one for an ancestor of the same name."""
    entries = ancestors.with_entry(with_status(FOREIGN), "edge", GOOD, FIRST)
    assert entries[0] == FOREIGN
    assert len(entries) == 2
    two = ancestors.with_entry(with_status(*entries), "pop", GOOD, FIRST)
    assert two[:2] == entries
    assert ancestors.without_entry(with_status(*two), "edge") == [FOREIGN, two[2]]
    assert ancestors.names_in(with_status(*two)) == {"edge", "pop"}


def test_entry_without_a_change_is_not_written() -> None:
    entries = ancestors.with_entry(with_status(FOREIGN), "edge", GOOD, FIRST)
    written = with_status(*entries)
    assert not ancestors.is_changed(written, ancestors.with_entry(written, "edge", GOOD, LATER))
    assert not ancestors.is_changed(written, ancestors.without_entry(written, "pop"))
    assert ancestors.is_changed(written, ancestors.with_entry(written, "edge", invalid("x"), LATER))


def test_transition_time_changes_with_the_status_only() -> None:
    written = with_status(*ancestors.with_entry(with_status(), "edge", GOOD, FIRST))
    [entry] = ancestors.with_entry(written, "edge", invalid("x"), LATER)
    assert [one["lastTransitionTime"] for one in entry["conditions"]] == [LATER, FIRST]
    [again] = ancestors.with_entry(with_status(entry, generation=4), "edge", invalid("y"), "later still")
    assert [one["lastTransitionTime"] for one in again["conditions"]] == [LATER, FIRST]
    assert again["conditions"][0]["observedGeneration"] == 4


def test_full_status_has_room_for_known_ancestors_only() -> None:
    own = ancestors.with_entry(with_status(), "edge", GOOD, FIRST)
    full = with_status(*own, *[FOREIGN] * 15)
    assert ancestors.has_room(full, "edge")
    assert not ancestors.has_room(full, "pop")
    assert ancestors.has_room(with_status(*[FOREIGN] * 15), "pop")

# SPDX-License-Identifier: Apache-2.0
"""``status.ancestors`` of a BackendTLSPolicy: the entry of each MailProxy that uses it.  Pure.

Entries of other controllers are kept unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.policies.backend_tls import MAX_ANCESTORS, PolicyCondition, PolicyVerdict

CONTROLLER = f"{names.GROUP}/operator"


def has_room(policy: Manifest, name: str) -> bool:
    """Return whether a MailProxy has an entry, or can get one: the API allows sixteen."""
    listed = _listed(policy)
    return any(_is_of(one, name) for one in listed) or len(listed) < MAX_ANCESTORS


def names_in(policy: Manifest) -> set[str]:
    """Return the MailProxies with an entry."""
    return {str(one["ancestorRef"].get("name")) for one in _listed(policy) if _is_ours(one)}


def with_entry(policy: Manifest, name: str, verdict: PolicyVerdict, now: str) -> list[Manifest]:
    """Return the entries with that of a MailProxy.

    Args:
        policy: The policy.
        name: The MailProxy, in the namespace of the policy.
        verdict: What becomes of the policy.
        now: The time, as RFC 3339 text.
    """
    listed = _listed(policy)
    own = next((one for one in listed if _is_of(one, name)), None)
    entry = {
        "ancestorRef": {
            "group": names.GROUP,
            "kind": names.KIND,
            "namespace": str(policy["metadata"]["namespace"]),
            "name": name,
        },
        "controllerName": CONTROLLER,
        "conditions": _conditions(policy, verdict, (own or {}).get("conditions") or (), now),
    }
    if own is None:
        return [*listed, entry]
    return [entry if one is own else one for one in listed]


def without_entry(policy: Manifest, name: str) -> list[Manifest]:
    """Return the entries without that of a MailProxy."""
    return [one for one in _listed(policy) if not _is_of(one, name)]


def is_changed(policy: Manifest, entries: list[Manifest]) -> bool:
    """Return whether entries differ from those of the policy."""
    return entries != _listed(policy)


def _listed(policy: Manifest) -> list[Manifest]:
    return list((policy.get("status") or {}).get("ancestors") or ())


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("controllerName") == CONTROLLER)


def _is_of(entry: Mapping[str, Any], name: str) -> bool:
    return _is_ours(entry) and bool(entry["ancestorRef"].get("name") == name)


def _conditions(
    policy: Manifest, verdict: PolicyVerdict, previous: Iterable[Mapping[str, Any]], now: str
) -> list[Manifest]:
    before = {one.get("type"): one for one in previous}
    pairs: tuple[tuple[str, PolicyCondition], ...] = (
        ("Accepted", verdict.accepted),
        ("ResolvedRefs", verdict.resolved),
    )
    found: list[Manifest] = []
    for kind, one in pairs:
        status = "True" if one.is_met else "False"
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else None
        found.append(
            {
                "type": kind,
                "status": status,
                "observedGeneration": int(policy["metadata"].get("generation") or 0),
                "lastTransitionTime": since or now,
                "reason": str(one.reason),
                "message": one.message,
            }
        )
    return found

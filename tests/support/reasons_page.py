# SPDX-License-Identifier: Apache-2.0
"""Checks that every reason that the operator writes is on ``docs/reference/conditions.md``."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from support import pages

PAGE: Final = Path(__file__).parents[2] / "docs/reference/conditions.md"
MANAGER: Final = "mailproxy-operator"


@functools.cache
def documented_conditions() -> frozenset[tuple[str, str, str]]:
    """Condition type, status and reason, as on the page."""
    sections = re.findall(r"^### (\w+)\n\n(.+)$", PAGE.read_text(), re.MULTILINE)
    return frozenset(
        (name, status, reason)
        for reason, states in sections
        for name, status in re.findall(r"`(\w+)=(\w+)`", states)
    )


@functools.cache
def documented_words() -> frozenset[str]:
    """The reasons of the page's tables."""
    return frozenset(word for row in pages.rows(PAGE) for word in pages.quoted(row[0]))


def check_status(status: Mapping[str, Any]) -> None:
    """Fail if a status has a reason that is not on the page; other managers may add other conditions."""
    documented = documented_conditions()
    types = {kind for kind, _, _ in documented}
    found = {(one["type"], one["status"], one["reason"]) for one in status.get("conditions") or []}
    assert {each for each in found if each[0] in types} - documented == set(), (
        "not on docs/reference/conditions.md"
    )
    sysctls = {one["reason"] for one in status.get("sysctls") or [] if "reason" in one}
    assert sysctls - documented_words() == set(), "not on docs/reference/conditions.md"


def check_event(event: Mapping[str, Any]) -> None:
    """Fail if an event of the operator has a reason that is not on the page, or another type than there."""
    if event.get("reportingController") != MANAGER:
        return
    if event["action"] == "Inject":
        cause = str(event["note"]).partition(":")[0]
        assert {event["reason"], cause} <= documented_words(), f"{event['reason']}, {cause}"
        return
    if event["action"] == "LoadCertificate":
        assert event["reason"] in documented_words(), event["reason"]
        return
    if event["action"] in {"LogIn", "LoadRoutes"}:
        assert event["reason"] in documented_words(), event["reason"]
        assert event["type"] == "Warning"
        return
    types = re.findall(rf"^### {event['reason']}\n\n.+Event: (.+)\.$", PAGE.read_text(), re.MULTILINE)
    assert types, f"{event['reason']} has no event on docs/reference/conditions.md"
    assert event["type"] in types[0], event


def check_world(proxies: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> None:
    """Check the statuses of resources, and the events."""
    for proxy in proxies:
        check_status(proxy.get("status") or {})
    for event in events:
        check_event(event)

# SPDX-License-Identifier: Apache-2.0
"""Evaluates the members of Services that groups of upstreams are: the condition ``GroupsReady``."""

from __future__ import annotations

from collections.abc import Sequence

from mailproxy_operator.controller.upstream_tls import Found
from mailproxy_operator.members.groups import GroupState
from mailproxy_operator.reasons import Reason

CONDITION = "GroupsReady"


def groups_ready(groups: Sequence[GroupState]) -> Found | None:
    """Evaluate the groups.

    Args:
        groups: The groups that are Services.

    Returns:
        ``None`` if there is none: then there is no such condition.
    """
    if not groups:
        return None
    failing = [group for group in groups if group.cause is not None]
    failing.sort(key=lambda group: group.is_unknown)
    if not failing or failing[0].cause is None:
        ready, total = sum(group.ready for group in groups), sum(group.total for group in groups)
        return "True", Reason.MEMBERS_READY, f"{ready} of {total} members of Services are ready"
    first = failing[0]
    others = ", ".join(sorted(group.name for group in failing[1:]))
    more = f"; logins may also fail at {others}" if others else ""
    status = "Unknown" if first.is_unknown else "False"
    return status, failing[0].cause.reason, failing[0].cause.message + more

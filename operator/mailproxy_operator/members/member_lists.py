# SPDX-License-Identifier: Apache-2.0
"""Computes the lists of members from what is known about Services, and from the lists before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mailproxy_config.upstream_members import (
    MAX_DOCUMENT_BYTES,
    MAX_MEMBERS,
    InvalidMembers,
    Member,
    MemberDocument,
    MemberList,
    MemberState,
    dump_members,
    parse_members,
)
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.errors import ConditionCause
from mailproxy_operator.members.endpoints import Endpoint
from mailproxy_operator.members.groups import GroupState, ServiceGroup, ServiceState
from mailproxy_operator.reasons import Reason

_UNKNOWN: Final = ServiceState(
    failure=ConditionCause(Reason.ENDPOINTS_UNKNOWN, "the EndpointSlices have not been read yet")
)


@dataclass(frozen=True, slots=True)
class Members:
    """The members of all groups of a resource.

    Attributes:
        text: The document for the proxies; empty if no group is a Service.
        groups: What came of each group.
        ports: The ports of members, for NetworkPolicies.
        changes_at: When the first member that is kept is removed, as a Unix time; ``None`` if there is none.
    """

    text: str = ""
    groups: tuple[GroupState, ...] = ()
    ports: frozenset[int] = frozenset()
    changes_at: float | None = None


NO_MEMBERS: Final = Members()
"""The members of a resource without Services as upstreams."""


def members(
    groups: Sequence[ServiceGroup], states: Mapping[Key, ServiceState], previous: str, now: float
) -> Members:
    """Return the members of all groups.

    Args:
        groups: The groups that are Services.
        states: What is known about the Services.
        previous: The document before; empty, or of any content, if there is none.
        now: A Unix time.
    """
    if not groups:
        return NO_MEMBERS
    before = _parsed(previous)
    lists: dict[str, MemberList] = {}
    found: list[GroupState] = []
    changes: list[float] = []
    for group in groups:
        last = before.upstreams.get(group.name)
        if last is not None and last.service != str(group.service):
            last = None
        made, state = _group(group, states.get(group.service, _UNKNOWN), last, now)
        found.append(state)
        if made is not None:
            lists[group.name] = made
            if not state.is_unknown:  # otherwise the members stay, whatever the time is
                changes += [float(member.until) for member in made.members if member.until]
    document = before
    if not previous or lists != before.upstreams:
        document = MemberDocument(before.generation + 1, lists)
    text = dump_members(document)
    if len(text) > MAX_DOCUMENT_BYTES:
        return _too_large(text, previous, before, found)
    return Members(text, tuple(found), _ports(lists), min(changes, default=None))


def _ports(lists: Mapping[str, MemberList]) -> frozenset[int]:
    members = (member for made in lists.values() for member in made.members)
    return frozenset(port for member in members for port in member.ports.values())


def _parsed(text: str) -> MemberDocument:
    try:
        return parse_members(text.encode())
    except InvalidMembers:
        return MemberDocument()


def _too_large(text: str, previous: str, before: MemberDocument, groups: Iterable[GroupState]) -> Members:
    """Keep the document before: a ConfigMap cannot hold the new one."""
    cause = ConditionCause(
        Reason.TOO_MANY_MEMBERS,
        f"the members of all groups need {len(text)} bytes, and a ConfigMap has room for "
        f"{MAX_DOCUMENT_BYTES}; the members before stay in use: divide the groups among several resources",
    )
    states = tuple(replace(group, cause=cause) for group in groups)
    return Members(previous, states, _ports(before.upstreams))


def _group(
    group: ServiceGroup, state: ServiceState, last: MemberList | None, now: float
) -> tuple[MemberList | None, GroupState]:
    """Return the list of a group, ``None`` if its DNS name is to be used, and what came of it."""
    if state.failure is not None:
        counts = _counts(group, last)
        return last, replace(counts, cause=state.failure, is_unknown=True)
    if state.service is not None and state.service.get("spec", {}).get("type") == "ExternalName":
        return None, GroupState(name=group.name)
    ports = _Ports(state.service, group.ports)
    merged = sorted(_members(group, state.endpoints, ports, last, now), key=lambda each: each.id)
    # Of too many, the ready ones are used; the choice is the same in all pods.
    used = sorted(sorted(merged, key=_is_unready)[:MAX_MEMBERS], key=lambda each: each.id)
    made = MemberList(service=str(group.service), members=tuple(used))
    counts = _counts(group, made)
    return made, replace(counts, cause=_cause(group, state, ports, counts, len(merged)))


def _is_unready(member: Member) -> bool:
    return member.state is not MemberState.READY


def _counts(group: ServiceGroup, made: MemberList | None) -> GroupState:
    if made is None:
        return GroupState(name=group.name)
    return GroupState(name=group.name, ready=made.count(MemberState.READY), total=len(made.members))


def _members(
    group: ServiceGroup,
    endpoints: Iterable[Endpoint],
    ports: _Ports,
    last: MemberList | None,
    now: float,
) -> Iterator[Member]:
    """Yield the members: the endpoints, and for a while those that were members before."""
    known = {member.id: member for member in last.members} if last else {}
    seen: set[str] = set()
    for each in endpoints:
        seen.add(each.id)
        member = Member(id=each.id, addresses=each.addresses, ports=ports.of(each))
        if each.is_ready and member.ports:
            yield member
        elif each.is_terminating:
            yield replace(member, state=MemberState.DRAINING)
        elif each.id in known or last is None:
            # Without a list before, nobody knows whether it was ready: its users are not moved for now.
            yield from _kept(member, known.get(each.id), group.grace, now)
    for id_, member in known.items():
        if id_ not in seen:
            yield from _kept(member, member, group.grace, now)


def _kept(member: Member, before: Member | None, grace: float, now: float) -> Iterator[Member]:
    """Yield a member that is not ready until its time is over."""
    until = math.ceil(now + grace)
    if before is not None and before.until:
        until = min(before.until, until)  # later ones are of a clock that was fast, or of a longer grace
    if now < until and grace > 0:
        yield replace(member, state=MemberState.GONE, until=until)


def _cause(
    group: ServiceGroup, state: ServiceState, ports: _Ports, counts: GroupState, total: int
) -> ConditionCause | None:
    """Return why logins of a group may fail."""
    name = f"upstream {group.name}: Service {group.service}"
    if state.service is None and not state.endpoints:
        return ConditionCause(Reason.SERVICE_NOT_FOUND, f"{name} does not exist")
    has_port = len(ports.missing) < len(group.ports)
    missing = [port for port in ports.missing if port in group.needed or not has_port]
    if missing and state.service is not None:
        return ConditionCause(
            Reason.PORT_NOT_FOUND,
            f"{name} has no TCP port {', '.join(missing)} (it has {ports.existing}): set "
            "service.port, or add the port",
        )
    if total > MAX_MEMBERS:
        return ConditionCause(
            Reason.TOO_MANY_MEMBERS, f"{name} has {total} members; only {MAX_MEMBERS} get logins"
        )
    if counts.ready:
        return None
    return ConditionCause(
        Reason.NO_READY_MEMBERS,
        f"{name} has no ready endpoint ({counts.total} that are not ready): logins get a temporary failure",
    )


@dataclass
class _Ports:
    """The ports of a Service that logins go to.

    Attributes:
        missing: Those that the Service does not have.
    """

    service: Manifest | None
    keys: frozenset[str]
    missing: list[str] = field(init=False)

    def __post_init__(self) -> None:
        spec = (self.service or {}).get("spec") or {}
        self._tcp = [one for one in spec.get("ports") or () if one.get("protocol", "TCP") == "TCP"]
        # Clients connect to members of a headless Service themselves, to any port.
        self._is_direct = self.service is None or spec.get("clusterIP") == "None"
        self._names = {str(one["port"]): str(one.get("name") or "") for one in self._tcp}
        self._names |= {name: name for one in self._tcp if (name := one.get("name"))}
        self.missing = sorted(
            key for key in self.keys - self._names.keys() if not (self._is_direct and key.isdecimal())
        )

    @property
    def existing(self) -> str:
        """The ports that the Service has, for messages."""
        shown = (f"{one['port']} {one.get('name') or ''}".strip() for one in self._tcp)
        return ", ".join(shown) or "none"

    def of(self, endpoint: Endpoint) -> dict[str, int]:
        """Return the ports of an endpoint by the ports that logins go to; without those that it lacks."""
        return {key: port for key in sorted(self.keys) if (port := self._number(key, endpoint))}

    def _number(self, key: str, endpoint: Endpoint) -> int:
        if key in self._names:
            return endpoint.ports.get(self._names[key], 0)
        if self.service is None and key in endpoint.ports:
            return endpoint.ports[key]
        return int(key) if self._is_direct and key.isdecimal() else 0

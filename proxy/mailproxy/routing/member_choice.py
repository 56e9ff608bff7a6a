# SPDX-License-Identifier: Apache-2.0
"""Which member of a Service a login is sent to (``service`` of a group of upstreams)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from mailproxy.dns.upstream_names import refusal
from mailproxy.enums import GroupLogin, UpstreamStage
from mailproxy.errors import UpstreamError
from mailproxy.protocols.types import UpstreamServer
from mailproxy.routing.group_choice import GroupChoice
from mailproxy.telemetry.metrics import Counter
from mailproxy_config.upstream_groups import GroupFallback, GroupMembers, UpstreamGroup
from mailproxy_config.upstream_members import MAX_MEMBERS, Member, MemberList, MemberState


class _Candidate(NamedTuple):
    """A member: its identifier, its addresses, and whether it gets logins."""

    id: bytes
    servers: tuple[UpstreamServer, ...]
    is_ready: bool


def _by_id(candidate: _Candidate) -> bytes:
    return candidate.id


@lru_cache(maxsize=2 * MAX_MEMBERS)
def _refusal(address: str) -> str:
    """Return ``refusal`` of an address; lists that follow each other have most addresses in common."""
    return refusal(_plain(address))


def _plain(address: str) -> IPv4Address | IPv6Address:
    """Return an address; an IPv4-mapped one is its IPv4 address."""
    found = ip_address(address)
    return found if isinstance(found, IPv4Address) else found.ipv4_mapped or found


class MemberChoice(GroupChoice):
    """Chooses members of the Service that a group is, for one worker.

    Without a list of members, the DNS name of the Service is used, but not with ``hash``: any member could
    get the login then.

    Args:
        group: The group.
        members: Its Service.
        port: The port of the protocol.
        tries: The number of servers that one login may be sent to.
        networks: Networks whose addresses are used though they are loopback or link-local ones.
        lists: The lists of members by the name of the group; they are replaced while this object lives.
        counters: The metric of the group.
    """

    __slots__ = (
        "_adopted",
        "_candidates",
        "_counters",
        "_key",
        "_lists",
        "_members",
        "_networks",
        "_ready",
        "_turn",
        "_uses_name",
    )

    def __init__(
        self,
        group: UpstreamGroup,
        members: GroupMembers,
        *,
        port: int,
        tries: int,
        networks: Sequence[str],
        lists: Mapping[str, MemberList],
        counters: Mapping[GroupLogin, Counter],
    ) -> None:
        super().__init__(group, port, tries)
        self._members = members
        self._key = members.port_key(port)
        self._networks = tuple(map(ip_network, networks))
        self._lists = lists
        self._counters = counters
        self._turn = os.getpid()  # not every worker begins with the first member
        self._adopt(lists.get(group.name))

    def servers(self, key: bytes) -> tuple[UpstreamServer, ...]:
        """Return the addresses of members in the order in which a login tries them, at most ``tries``.

        Args:
            key: The login name, its domain in lower case.

        Returns:
            Nothing if no member may get this login now.
        """
        current = self._lists.get(self._group_name)
        if current is not self._adopted:
            self._adopt(current)
        if self._uses_name:
            return super().servers(key)
        found = self._hashed(key) if self._is_hashed else self._next_ready()
        return found[: self._tries]

    def no_server(self) -> UpstreamError:
        """Count a login that no member may get, and return the error."""
        self._counters[GroupLogin.UNAVAILABLE].value += 1
        reason = "the member of this login is not ready" if self._ready else "no member is ready"
        counts = f"{len(self._ready)} of {len(self._candidates)}"
        return UpstreamError(
            f'upstream "{self._group_name}": {reason} ({counts})', stage=UpstreamStage.RESOLVE
        )

    def _adopt(self, current: MemberList | None) -> None:
        """Use a list of members from now on."""
        self._adopted = current
        usable = current if current is not None and current.service == self._members.service else None
        self._uses_name = usable is None and not (self._is_hashed and self._members.file)
        found = map(self._candidate, usable.members) if usable else ()
        self._candidates = tuple(sorted(found, key=_by_id))
        self._ready = tuple(each.servers for each in self._candidates if each.is_ready)

    def _candidate(self, member: Member) -> _Candidate:
        port = member.ports.get(self._key, 0)
        servers = tuple(UpstreamServer(each, port) for each in member.addresses if self._is_allowed(each))
        is_ready = member.state is MemberState.READY and port > 0 and bool(servers)
        return _Candidate(member.id.encode(), servers, is_ready)

    def _is_allowed(self, address: str) -> bool:
        """Whether the address may be connected to: an EndpointSlice may have been written by anybody."""
        return not _refusal(address) or any(_plain(address) in network for network in self._networks)

    def _next_ready(self) -> tuple[UpstreamServer, ...]:
        """Return the ready members, another one first each time, and their second addresses last."""
        if not self._ready:
            return ()
        self._counters[GroupLogin.OWNER].value += 1
        self._turn += 1
        if self._tries == 1:
            return self._ready[self._turn % len(self._ready)]
        start = self._turn % len(self._ready)
        ordered = (*self._ready[start:], *self._ready[:start])[: self._tries]
        return tuple(
            [each[0] for each in ordered] + [server for each in ordered for server in each[1:]],
        )

    def _hashed(self, key: bytes) -> tuple[UpstreamServer, ...]:
        """Return the member that a login belongs to; with ``fallback``, the ready ones behind it."""
        if not self._candidates:
            return ()
        start = sha256(b"%b\x00%b\x00" % (self._name, key))

        def number(candidate: _Candidate) -> bytes:
            # All weights are 1, so scores are in the order of these numbers (``rendezvous_score``).
            whole = start.copy()
            whole.update(candidate.id)
            return whole.digest()[:8]

        owner = max(self._candidates, key=number)
        has_fallback = self._members.fallback is GroupFallback.NEXT
        if owner.is_ready and (not has_fallback or self._tries == 1):
            self._counters[GroupLogin.OWNER].value += 1
            return owner.servers
        if not has_fallback or not self._ready:
            return ()
        self._counters[GroupLogin.OWNER if owner.is_ready else GroupLogin.FALLBACK].value += 1
        ordered = sorted(self._candidates, key=number, reverse=True)
        return tuple(server for each in ordered if each.is_ready for server in each.servers)

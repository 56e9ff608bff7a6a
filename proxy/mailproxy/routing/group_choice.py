# SPDX-License-Identifier: Apache-2.0
"""Which server of a group a login is sent to, and in which order the others are tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import UpstreamError
from mailproxy.protocols.types import UpstreamServer
from mailproxy_config.upstream_groups import GroupHash, GroupServer, UpstreamGroup

_RANGE: Final = 2.0**64


def rendezvous_score(group: bytes, key: bytes, server: bytes, weight: int = 1) -> float:
    """Return how well a server fits a key: the server with the highest score of a group gets it.

    The score depends on nothing else, so that it is the same in all workers, pods and versions.
    Servers get parts of the keys by their weights; a new server takes its part from all others alike.

    Args:
        group: The name of the group.
        key: The login name, its domain in lower case.
        server: The identifier of the server.
        weight: Its weight, at least 1.
    """
    digest = sha256(b"%b\x00%b\x00%b" % (group, key, server)).digest()
    number = (int.from_bytes(digest[:8], "big") + 0.5) / _RANGE
    # The largest 512 numbers are 1.0 after rounding, whose logarithm is 0.
    return -weight / math.log(number) if number < 1.0 else math.inf


class GroupChoice:
    """Chooses servers of one group for one worker.

    Args:
        group: The group.
        port: The port of servers without one.
        tries: The number of servers that one login may be sent to.
    """

    __slots__ = ("_backups", "_current", "_group_name", "_is_hashed", "_name", "_primaries", "_tries")

    def __init__(self, group: UpstreamGroup, port: int, tries: int) -> None:
        self._tries = tries
        self._group_name = group.name
        self._name = group.name.encode()
        self._is_hashed = group.hash is GroupHash.USER
        self._primaries = _members(group.servers, port, backup=False)
        self._backups = _members(group.servers, port, backup=True)
        self._current = dict.fromkeys(self._primaries, 0)

    def servers(self, key: bytes) -> tuple[UpstreamServer, ...]:
        """Return servers in the order in which a login tries them, at most ``tries``; backups are last.

        Args:
            key: The login name, its domain in lower case.
        """
        if self._is_hashed:
            primaries = self._by_score(self._primaries, key)
            return (primaries + self._by_score(self._backups, key))[: self._tries]
        first = self._next() if len(self._primaries) > 1 else self._primaries[0][1]
        if self._tries == 1:
            return (first,)
        others = [server for _, server, _ in (*self._primaries, *self._backups) if server is not first]
        return (first, *others)[: self._tries]

    def no_server(self) -> UpstreamError:
        """Return the error of a login for which ``servers`` has returned nothing."""
        return UpstreamError(f'upstream "{self._group_name}" has no server', stage=UpstreamStage.RESOLVE)

    def _next(self) -> UpstreamServer:
        """Return the next server by smooth weighted round robin, as nginx's upstreams."""
        total = 0
        best = self._primaries[0]
        for member in self._primaries:
            total += member[2]
            self._current[member] += member[2]
            if self._current[member] > self._current[best]:
                best = member
        self._current[best] -= total
        return best[1]

    def _by_score(self, members: Sequence[_Member], key: bytes) -> tuple[UpstreamServer, ...]:
        """Return servers by their score, the highest first; equal scores by identifier."""
        scored = sorted(
            (-rendezvous_score(self._name, key, id_, weight), id_, server) for id_, server, weight in members
        )
        return tuple(server for _, _, server in scored)


_Member = tuple[bytes, UpstreamServer, int]
"""Identifier, address and weight of a server."""


def _members(servers: Sequence[GroupServer], port: int, *, backup: bool) -> tuple[_Member, ...]:
    return tuple(
        (each.address.encode(), UpstreamServer(each.host, _port(each, port)), each.weight)
        for each in servers
        if each.backup is backup
    )


def _port(server: GroupServer, port: int) -> int:
    return 0 if server.host.startswith("unix:") else server.port or port

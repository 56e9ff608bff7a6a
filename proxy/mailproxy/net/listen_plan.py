# SPDX-License-Identifier: Apache-2.0
"""From ``listen`` lines to sockets.  Pure: nothing is looked up or opened here.

Lines for several addresses of one port share the socket of the wildcard
address, where there is one, unless they carry ``bind`` (or a parameter that
implies it; the configuration's compiler has set ``bind`` then).  Which line a
connection belongs to is told by the local address it was accepted on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mailproxy_config.addresses import format_host_port
from mailproxy_config.errors import Problems
from mailproxy_config.model import KeepAlive, ListenConfig, ProxyConfig

_UNIX: Final = "unix:"
_WILDCARDS: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - what to look for


class Route(NamedTuple):
    """A ``listen`` line: the index of its server, and its own index there."""

    server: int
    listen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketPlan:
    """One address to listen on.

    ``key`` names it: ``0.0.0.0:143``, ``[::]:143``, ``unix:/run/x``.  A
    connection belongs to ``routes[local address]``, as ``getsockname`` writes
    that address, and to ``default`` where nothing stands for it.
    """

    key: str
    family: socket.AddressFamily
    address: str
    """As ``bind`` wants it: an IP address without brackets, or a path."""
    port: int
    backlog: int = 511
    rcvbuf: int | None = None
    sndbuf: int | None = None
    ipv6only: bool = True
    keepalive: KeepAlive | None = None
    multipath: bool = False
    default: Route
    routes: Mapping[str, Route] = field(default_factory=dict)

    @property
    def is_unix(self) -> bool:
        """Whether this is a path instead of an address and a port."""
        return self.family == socket.AF_UNIX


@dataclass(frozen=True, slots=True)
class Difference:
    """What a reload does to sockets.

    ``stays`` and ``opens`` are plans of the new configuration, ``closes`` of the
    old one.  A key can be in both ``opens`` and ``closes``: something changed
    that an open socket cannot take; open the new one first, so that no client
    is refused in between.
    """

    stays: tuple[SocketPlan, ...]
    opens: tuple[SocketPlan, ...]
    closes: tuple[SocketPlan, ...]


class _Entry(NamedTuple):
    """One address of one ``listen`` line."""

    family: socket.AddressFamily
    address: str
    port: int
    listen: ListenConfig
    route: Route


def plan(config: ProxyConfig, names: Mapping[str, Sequence[str]]) -> tuple[SocketPlan, ...]:
    """Decide which sockets a configuration needs.

    Args:
        config: The configuration.
        names: The addresses of every host name in its ``listen`` lines, without brackets.

    Returns:
        One plan per socket, in the order of the configuration.

    Raises:
        ConfigError: Two lines come to the same address, which only host names can hide until now.
    """
    entries = list(_entries(config, names))
    _refuse_duplicates(entries)
    groups: dict[tuple[int, int], list[_Entry]] = {}
    for number, entry in enumerate(entries):
        group = (-1 - number, 0) if entry.family == socket.AF_UNIX else (int(entry.family), entry.port)
        groups.setdefault(group, []).append(entry)
    return tuple(planned for group in groups.values() for planned in _grouped(group))


def difference(old: Sequence[SocketPlan], new: Sequence[SocketPlan]) -> Difference:
    """Compare what is open with what is wanted."""
    before = {planned.key: planned for planned in old}
    stays = tuple(
        planned for planned in new if planned.key in before and _can_become(before[planned.key], planned)
    )
    staying = {planned.key for planned in stays}
    return Difference(
        stays=stays,
        opens=tuple(planned for planned in new if planned.key not in staying),
        closes=tuple(planned for planned in old if planned.key not in staying),
    )


def is_host_name(address: str) -> bool:
    """Whether the address of a ``listen`` line has to be looked up."""
    if address == "*" or address.startswith(("[", _UNIX)):
        return False
    try:
        socket.inet_pton(socket.AF_INET, address)
    except OSError:
        return True
    return False


def _entries(config: ProxyConfig, names: Mapping[str, Sequence[str]]) -> Iterator[_Entry]:
    for number, server in enumerate(config.servers):
        for index, listen in enumerate(server.listen):
            route = Route(number, index)
            if listen.address.startswith(_UNIX):
                yield _Entry(socket.AF_UNIX, listen.address.removeprefix(_UNIX), 0, listen, route)
                continue
            for address in dict.fromkeys(_addresses(listen.address, names)):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                yield _Entry(family, address, listen.port or 0, listen, route)


def _addresses(address: str, names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Give the addresses in the form that ``getsockname`` has."""
    if address == "*":
        yield _WILDCARDS[socket.AF_INET]
    elif address.startswith("["):
        yield _canonical(address[1:-1])
    else:
        yield from map(_canonical, names[address] if is_host_name(address) else (address,))


def _canonical(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address))


def _refuse_duplicates(entries: Sequence[_Entry]) -> None:
    problems = Problems()
    seen: dict[str, Route] = {}
    for entry in entries:
        first = seen.setdefault(_key(entry), entry.route)
        if first is not entry.route:
            problems.add(_path(entry.route), f"{_key(entry)} is already taken by {_path(first)}")
    problems.raise_if_any()


def _path(route: Route) -> str:
    return f"servers[{route.server}].listen[{route.listen}]"


def _grouped(group: Sequence[_Entry]) -> Iterator[SocketPlan]:
    wildcard = next((entry for entry in group if entry.address == _WILDCARDS.get(entry.family)), None)
    for entry in group:
        if entry is wildcard:
            shared = {
                other.address: other.route for other in group if other is not entry and not other.listen.bind
            }
            yield _planned(entry, shared)
        elif wildcard is None or entry.listen.bind:
            yield _planned(entry, {})


def _planned(entry: _Entry, routes: Mapping[str, Route]) -> SocketPlan:
    listen = entry.listen
    is_tcp = entry.family != socket.AF_UNIX
    return SocketPlan(
        key=_key(entry),
        family=entry.family,
        address=entry.address,
        port=entry.port,
        backlog=listen.backlog,
        rcvbuf=listen.rcvbuf,
        sndbuf=listen.sndbuf,
        ipv6only=listen.ipv6only or entry.family != socket.AF_INET6,
        keepalive=listen.so_keepalive if is_tcp else None,
        multipath=listen.multipath and is_tcp,
        default=entry.route,
        routes=routes,
    )


def _key(entry: _Entry) -> str:
    if entry.family == socket.AF_UNIX:
        return _UNIX + entry.address
    return format_host_port(entry.address, entry.port)


def _can_become(old: SocketPlan, new: SocketPlan) -> bool:
    """Whether an open socket can take what is new.

    The protocol and IPV6_V6ONLY are fixed once a socket is bound, and an option
    that is no longer given cannot be brought back to what it would have been.
    A UNIX socket stays in any case: two of them cannot have the same path, and
    its buffers are those of who writes.
    """
    if new.is_unix:
        return True
    if (old.multipath, old.ipv6only) != (new.multipath, new.ipv6only):
        return False
    before, after = _settings(old), _settings(new)
    return not any(was is not None and now is None for was, now in zip(before, after, strict=True))


def _settings(planned: SocketPlan) -> tuple[object, ...]:
    keepalive = planned.keepalive or KeepAlive()
    return (
        planned.rcvbuf,
        planned.sndbuf,
        planned.keepalive,
        keepalive.idle,
        keepalive.interval,
        keepalive.count,
    )

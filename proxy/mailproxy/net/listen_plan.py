# SPDX-License-Identifier: Apache-2.0
"""The sockets that the ``listen`` lines of a configuration need, and host names in them.

Lines for several addresses of one port share the socket of the wildcard
address, where there is one, unless they carry ``bind`` (or a parameter that
implies it; the configuration's compiler has set ``bind`` then).  The
local address of an accepted connection decides to which line it belongs.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mailproxy_config.addresses import format_host_port
from mailproxy_config.errors import Problems
from mailproxy_config.model import KeepAlive, ListenConfig, ProxyConfig
from mailproxy_config.shared_listeners import Key, key_of

_UNIX: Final = "unix:"
_WILDCARDS: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - what to look for


class ListenRef(NamedTuple):
    """A ``listen`` line: the index of its server, and its own index there."""

    server: int
    listen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketPlan:
    """One address to listen on.

    ``key`` names it: ``0.0.0.0:143``, ``[::]:143``, ``unix:/run/x``.  A
    connection belongs to ``routes[local address]``, written as ``getsockname``
    does, and to ``default`` where there is no such entry.
    """

    key: str
    family: socket.AddressFamily
    address: str
    """For ``bind``: an IP address without brackets, or a path."""
    port: int
    backlog: int = 511
    rcvbuf: int | None = None
    sndbuf: int | None = None
    ipv6only: bool = True
    keepalive: KeepAlive | None = None
    multipath: bool = False
    default: ListenRef
    routes: Mapping[str, ListenRef] = field(default_factory=dict)
    """Several servers may share an ``ssl`` line; the first of them stands for all, see ``shared_lines``."""

    @property
    def is_unix(self) -> bool:
        """Whether this is a path instead of an address and a port."""
        return self.family == socket.AF_UNIX


@dataclass(frozen=True, slots=True)
class SocketDiff:
    """How a reload changes the sockets.

    ``stays`` and ``opens`` are plans of the new configuration, ``closes`` of the
    old one.  A key can be in both ``opens`` and ``closes``: an option changed
    that an open socket cannot take.  Open the new one first, so that no client
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
    route: ListenRef


def plan_sockets(config: ProxyConfig, names: Mapping[str, Sequence[str]]) -> tuple[SocketPlan, ...]:
    """Compute the sockets that a configuration needs.  Pure.

    Args:
        config: The configuration.
        names: The addresses of every host name in its ``listen`` lines, without brackets.

    Returns:
        One plan per socket, in the order of the configuration.

    Raises:
        ConfigError: Two lines have the same address, which was hidden by host names until now.
    """
    entries = list(_entries(config, names))
    _refuse_duplicates(entries)
    groups: dict[tuple[int, int], list[_Entry]] = {}
    for number, entry in enumerate(entries):
        group = (-1 - number, 0) if entry.family == socket.AF_UNIX else (int(entry.family), entry.port)
        groups.setdefault(group, []).append(entry)
    return tuple(planned for group in groups.values() for planned in _grouped(group))


def diff_plans(old: Sequence[SocketPlan], new: Sequence[SocketPlan]) -> SocketDiff:
    """Compare the open sockets with those of a new configuration."""
    before = {planned.key: planned for planned in old}
    stays = tuple(
        planned for planned in new if planned.key in before and _can_reuse(before[planned.key], planned)
    )
    staying = {planned.key for planned in stays}
    return SocketDiff(
        stays=stays,
        opens=tuple(planned for planned in new if planned.key not in staying),
        closes=tuple(planned for planned in old if planned.key not in staying),
    )


def listening_addresses(plans: Sequence[SocketPlan]) -> frozenset[tuple[str, int]]:
    """Return addresses and ports that are listened on, wildcards included; none for UNIX sockets."""
    found = {
        (address, plan.port) for plan in plans if not plan.is_unix for address in (plan.address, *plan.routes)
    }
    found |= {("0.0.0.0", plan.port) for plan in plans if plan.address == "::" and not plan.ipv6only}  # noqa: S104 - as above
    return frozenset(found)


def is_host_name(address: str) -> bool:
    """Whether the address of a ``listen`` line has to be looked up."""
    if address == "*" or address.startswith(("[", _UNIX)):
        return False
    try:
        socket.inet_pton(socket.AF_INET, address)
    except OSError:
        return True
    return False


def shared_lines(config: ProxyConfig) -> dict[ListenRef, tuple[ListenRef, ...]]:
    """Return the ``ssl`` lines that several servers have, by the line of the first, which is included."""
    found: dict[Key, list[ListenRef]] = {}
    for number, server in enumerate(config.servers):
        for index, listen in enumerate(server.listen):
            if listen.ssl:
                found.setdefault(key_of(listen), []).append(ListenRef(number, index))
    return {refs[0]: tuple(refs) for refs in found.values() if len({ref.server for ref in refs}) > 1}


def _entries(config: ProxyConfig, names: Mapping[str, Sequence[str]]) -> Iterator[_Entry]:
    repeated = {ref for refs in shared_lines(config).values() for ref in refs[1:]}
    for number, server in enumerate(config.servers):
        for index, listen in enumerate(server.listen):
            route = ListenRef(number, index)
            if route in repeated:
                continue
            if listen.address.startswith(_UNIX):
                yield _Entry(socket.AF_UNIX, listen.address.removeprefix(_UNIX), 0, listen, route)
                continue
            for address in dict.fromkeys(_addresses(listen.address, names)):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                yield _Entry(family, address, listen.port or 0, listen, route)


def _addresses(address: str, names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the addresses in the form that ``getsockname`` has."""
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
    seen: dict[str, ListenRef] = {}
    for entry in entries:
        first = seen.setdefault(_key(entry), entry.route)
        if first is not entry.route:
            problems.add(_path(entry.route), f"{_key(entry)} is already taken by {_path(first)}")
    problems.raise_if_any()


def _path(route: ListenRef) -> str:
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


def _planned(entry: _Entry, routes: Mapping[str, ListenRef]) -> SocketPlan:
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


def _can_reuse(old: SocketPlan, new: SocketPlan) -> bool:
    """Whether an open socket can take the new options.

    The protocol and IPV6_V6ONLY are fixed once a socket is bound, and an option
    that is no longer given cannot be set back to the kernel's default.
    A UNIX socket stays in any case: two of them cannot have the same path, and
    its buffers are those of the sender.
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


def resolve_names(config: ProxyConfig) -> dict[str, tuple[str, ...]]:
    """Look up every host name that a configuration listens on or trusts, with the system's resolver.

    Blocks until the system's resolver has answered or timed out.

    Returns:
        The addresses of each, without brackets, of the address families of this machine.

    Raises:
        ConfigError: Some are not found; one problem for each line with such a name.
    """
    problems = Problems()
    found: dict[str, tuple[str, ...]] = {}
    for path, name in _host_names(config):
        if name not in found:
            found[name] = _look_up(name)
        if not found[name]:
            problems.add(path, f"host not found: {name}")
    problems.raise_if_any()
    return found


def _host_names(config: ProxyConfig) -> Iterator[tuple[str, str]]:
    """Yield every host name with the path of its field."""
    for number, server in enumerate(config.servers):
        for index, listen in enumerate(server.listen):
            if is_host_name(listen.address):
                yield f"servers[{number}].listen[{index}].address", listen.address
        for index, entry in enumerate(server.set_real_ip_from):
            if _is_trusted_name(entry):
                yield f"servers[{number}].set_real_ip_from[{index}]", entry


def _is_trusted_name(entry: str) -> bool:
    """Whether an entry of ``set_real_ip_from`` is neither ``unix:`` nor an address or network."""
    if entry == "unix:":
        return False
    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return True
    return False


def _look_up(name: str) -> tuple[str, ...]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(sockaddr[0]).partition("%")[0] for *_, sockaddr in answers))

# SPDX-License-Identifier: Apache-2.0
"""The addresses of the host names in ``Auth-Server`` (``auth_http_server_names``).

The authentication service is trusted, DNS less so: a name must not lead to this pod, to the metadata service
of a cloud, or back to the proxy.  Loopback, link-local, unspecified and multicast addresses and the proxy's
own listeners are refused unless ``auth_http_server_networks`` lists them.  Addresses that the service
sent itself are not checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from mailproxy.dns.address_order import Destination, IpAddress, ordered
from mailproxy.dns.lookup import (
    Cancel,
    LookupCache,
    LookupLimits,
    LookupResult,
    OnFailure,
    ignore_failure,
    not_pending,
    packed,
)
from mailproxy.dns.search_list import SearchList, system_search_list
from mailproxy.enums import DnsPurpose, DnsResult, UpstreamStage
from mailproxy.errors import UpstreamError
from mailproxy.protocols.types import UpstreamAddress, UpstreamServer
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import ResolverConfig

if TYPE_CHECKING:
    from mailproxy.dns.dns_client import DnsClient

MAX_ADDRESSES: Final = 16
"""Addresses of all items of ``Auth-Server`` together, and of one name; more are ignored."""
SHORTEST_TTL: Final = 1
LONGEST_TTL: Final = 300
"""Seconds that addresses are cached; a TTL outside of this range is changed to the nearer end."""
NEGATIVE_TTL: Final = 5
"""Seconds that a name without a usable address, or with a family missing, is cached."""
FAILURE_TTL: Final = 1
"""Seconds that a failure of the name servers is cached (RFC 9520 section 3.2: at least 1)."""
MAX_NAMES: Final = 4_000
"""Names that are cached per ``resolver``."""
MAX_LOOKUPS: Final = 500
"""Lookups in progress per ``resolver``; one more fails at once."""
RESOLUTION_DELAY: Final = 0.5
"""Seconds that one family is waited for when the other has addresses (RFC 8305 section 3 recommends 0.05)."""

_NAT64: Final = IPv6Network("64:ff9b::/96")
_THIS_NETWORK: Final = ip_network("0.0.0.0/8")
_ABSENT: Final = frozenset({DnsResult.OK, DnsResult.NXDOMAIN})
_LOOP: Final = "a listener of this proxy"
_EXPLANATIONS: Final = {
    DnsResult.NXDOMAIN: "the name does not exist, or has no address",
    DnsResult.SERVFAIL: "the name server failed",
    DnsResult.REFUSED: "the name server refused the query",
    DnsResult.TIMEOUT: "no reply within resolverTimeout",
    DnsResult.INVALID: "the name server sent no usable reply, or too many lookups are in progress",
}

OnRefused = Callable[[str, str, str], None]
"""Called with a name, its address, and why the address is refused."""
Resolved = tuple[UpstreamAddress, ...] | UpstreamError
Listeners = Collection[tuple[str, int]]
"""Addresses and ports; ``0.0.0.0`` and ``::`` are all addresses of this machine."""


@dataclass(slots=True)
class NameAddresses:
    """The addresses of a name.

    Attributes:
        usable: In the order in which they are tried.
        refused: The first address that is refused, and why; ``None`` if there is none.
        logged: Ports at which an address has been reported as one of our listeners.
    """

    usable: tuple[Destination, ...]
    refused: tuple[str, str] | None = None
    logged: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Family:
    """The addresses of one family; the result is also ``OK`` for a name without addresses of it."""

    result: DnsResult
    addresses: tuple[IpAddress, ...] = ()
    ttl: int = LONGEST_TTL


def ignore_refused(_name: str, _address: str, _reason: str) -> None:
    """Do not report refused addresses."""


class UpstreamNames:
    """Resolves the items of ``Auth-Server`` for all servers with the same directives.

    Must be created and used within a running event loop.

    Args:
        config: ``resolver``; ``None`` is the system's name servers and search list.
        timeout: ``resolver_timeout`` in seconds, for one name; 0 is no limit.
        networks: ``auth_http_server_networks``.
        metrics: Counts lookups.
        client: Sends the queries; made from ``config`` if none is given.
        on_failure: Called for each lookup without an address.
        on_refused: Called for each refused address, once per lookup.

    Attributes:
        listeners: Our own; names must not lead to them.
    """

    def __init__(
        self,
        config: ResolverConfig | None,
        *,
        timeout: float,
        networks: Sequence[str] = (),
        metrics: WorkerMetrics,
        client: DnsClient | None = None,
        on_failure: OnFailure = ignore_failure,
        on_refused: OnRefused = ignore_refused,
    ) -> None:
        # A worker without names does not load the DNS library.
        from mailproxy.dns.dns_client import DnsClient  # noqa: PLC0415

        config = config or ResolverConfig(system=True)
        self._client = client or DnsClient(config)
        self._search = system_search_list(self._client.resolv_conf) if config.system else SearchList()
        self._networks = tuple(ip_network(network) for network in networks)
        self._on_refused = on_refused
        self._on_failure = partial(on_failure, DnsPurpose.UPSTREAM)
        self.listeners: Listeners = ()
        self.names: LookupCache[str, NameAddresses] = LookupCache(
            DnsPurpose.UPSTREAM,
            self._look_up,
            timeout=timeout,
            valid=config.valid,
            metrics=metrics,
            on_failure=self._on_failure,
            limits=LookupLimits(SHORTEST_TTL, LONGEST_TTL, NEGATIVE_TTL, MAX_NAMES, MAX_LOOKUPS),
        )

    def resolve(self, servers: Sequence[UpstreamServer], on_done: Callable[[Resolved], None]) -> Cancel:
        """Find the addresses to connect to.

        Args:
            servers: The items of ``Auth-Server``.
            on_done: Called once, unless cancelled, with at least one and at most 16 addresses in the
                order of the items, or with the error if there is none.  It is called before this
                returns if no item has to be looked up.

        Returns:
            Cancels the lookups.
        """
        found: dict[str, LookupResult[NameAddresses]] = {}
        missing: list[str] = []
        for host in dict.fromkeys(server.host for server in servers if is_name(server.host)):
            result = self.names.cached(host)
            if result is None:
                missing.append(host)
            else:
                found[host] = result
        if not missing:
            on_done(self.candidates(servers, found))
            return not_pending
        return Resolution(self, servers, found, on_done).start(missing)

    async def close(self) -> None:
        """Cancel all lookups in progress, which fail, and close sockets and threads."""
        await self.names.close()
        await self._client.close()

    # -- from names to candidates

    def candidates(
        self, servers: Sequence[UpstreamServer], found: dict[str, LookupResult[NameAddresses]]
    ) -> Resolved:
        """Return the addresses of all items, or the error if there is none."""
        candidates: dict[tuple[str, int], UpstreamAddress] = {}
        errors: list[UpstreamError] = []
        for server in servers:
            if not is_name(server.host):
                candidates.setdefault((server.host, server.port), UpstreamAddress(server.host, server.port))
                continue
            addresses = self._usable(server, found[server.host])
            if isinstance(addresses, UpstreamError):
                errors.append(addresses)
                continue
            name = server.host.removesuffix(".")
            for address in addresses:
                candidates.setdefault((address, server.port), UpstreamAddress(address, server.port, name))
        if candidates:
            return tuple(candidates.values())[:MAX_ADDRESSES]
        # An outage ends by itself: a refused address is the error only if all are.
        return next((error for error in errors if not error.is_misconfigured), errors[0])

    def _usable(
        self, server: UpstreamServer, result: LookupResult[NameAddresses]
    ) -> list[str] | UpstreamError:
        """Return the addresses of one name, or why there is none."""
        if result.value is None:
            return _error(server.host, f"does not resolve: {_EXPLANATIONS[result.result]}")
        addresses: list[str] = []
        refused = result.value.refused
        for destination in result.value.usable:
            if self._is_listener(destination, server.port):
                refused = (format_host_port(destination.text, server.port), _LOOP)
                if server.port not in result.value.logged:
                    result.value.logged.add(server.port)
                    self._on_refused(server.host, *refused)
            else:
                addresses.append(destination.text)
        if addresses or refused is None:
            return addresses
        address, reason = refused
        error = _error(
            server.host,
            f"resolves to {address}, which is refused ({reason}): correct the name's records, or list "
            "the address in authHttpServerNetworks",
        )
        error.is_misconfigured = True
        return error

    def _is_listener(self, destination: Destination, port: int) -> bool:
        """Whether connecting would lead back to this proxy."""
        listeners = self.listeners
        if (destination.text, port) not in listeners:
            if not destination.is_own:
                return False
            wildcard = "::" if ":" in destination.text else "0.0.0.0"  # noqa: S104 - compared, never bound
            if (wildcard, port) not in listeners:
                return False
        return not self._is_allowed(destination.address)

    # -- lookups

    async def _look_up(self, name: str) -> LookupResult[NameAddresses]:
        """Look a name up with each domain of the search list; another failure than NXDOMAIN is kept."""
        failure = DnsResult.NXDOMAIN
        for candidate in self._search.candidates(name):
            families = await self._families(candidate)
            addresses = [address for family in families for address in family.addresses]
            is_whole = all(family.result is DnsResult.OK for family in families)
            if addresses:
                ttl = min(family.ttl for family in families if family.addresses)
                return self._checked(name, addresses, ttl if is_whole else min(ttl, NEGATIVE_TTL))
            if failure is DnsResult.NXDOMAIN:
                others = (family.result for family in families)
                failure = next((each for each in others if each not in _ABSENT), failure)
        if failure is not DnsResult.NXDOMAIN:
            return LookupResult(failure, ttl=FAILURE_TTL)
        self._on_failure(name, failure)
        return LookupResult(failure, ttl=0)

    async def _families(self, name: str) -> list[_Family]:
        """Look up A and AAAA records; the second family is not waited for long."""
        first = self._client.next_server()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._family(name, kind, first)) for kind in self._client.record_types]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            has_addresses = any(task.done() and task.result().addresses for task in tasks)
            await asyncio.wait(tasks, timeout=RESOLUTION_DELAY if has_addresses else None)
            for task in tasks:
                task.cancel()
        late = _Family(DnsResult.TIMEOUT)
        return [late if task.cancelled() else task.result() for task in tasks]

    async def _family(self, name: str, kind: str, first: int) -> _Family:
        from mailproxy.dns.dns_client import DnsError  # noqa: PLC0415 - as above

        try:
            found = await self._client.family_of(name, kind, first)
        except DnsError as error:
            return _Family(error.result)
        if found is None:
            return _Family(DnsResult.NXDOMAIN)
        addresses, ttls = found
        return _Family(DnsResult.OK, tuple(map(_plain, addresses[:MAX_ADDRESSES])), min(ttls, default=0))

    def _checked(self, name: str, addresses: Sequence[IpAddress], ttl: int) -> LookupResult[NameAddresses]:
        """Sort the addresses, and drop those that are refused."""
        usable: list[IpAddress] = []
        refused: list[tuple[str, str]] = []
        for address in dict.fromkeys(addresses):
            reason = refusal(address)
            if reason and not self._is_allowed(address):
                refused.append((str(address), reason))
            else:
                usable.append(address)
        for one in refused:
            self._on_refused(name, *one)
        try:
            destinations = ordered(usable)[:MAX_ADDRESSES]
        except OSError:
            return LookupResult(DnsResult.INVALID)
        value = NameAddresses(destinations, refused[0] if refused else None)
        return LookupResult(DnsResult.OK, value, ttl if usable else min(ttl, NEGATIVE_TTL))

    def _is_allowed(self, address: IpAddress) -> bool:
        return any(address in network for network in self._networks)


class Resolution:
    """The lookups for one login.

    Attributes:
        owner: Leads to the session that ends when a callback raises (``containment``).
    """

    __slots__ = ("_cancels", "_found", "_names", "_on_done", "_servers", "_waiting", "owner")

    def __init__(
        self,
        names: UpstreamNames,
        servers: Sequence[UpstreamServer],
        found: dict[str, LookupResult[NameAddresses]],
        on_done: Callable[[Resolved], None],
    ) -> None:
        self._names = names
        self._servers = servers
        self._found = found
        self._on_done = self.owner = on_done
        self._waiting = 0
        self._cancels: list[Cancel] = []

    def start(self, missing: Sequence[str]) -> Cancel:
        """Look the missing names up, all at the same time."""
        self._waiting = len(missing)
        for name in missing:
            self._cancels.append(self._names.names.find(name, partial(self.on_name, name)))
        return self.cancel

    def on_name(self, name: str, result: LookupResult[NameAddresses]) -> None:
        """Receive the addresses of one name."""
        self._found[name] = result
        self._waiting -= 1
        if self._waiting == 0:
            self._on_done(self._names.candidates(self._servers, self._found))

    def cancel(self) -> None:
        """Cancel the lookups in progress."""
        for cancel in self._cancels:
            cancel()


@lru_cache(maxsize=1024)
def is_name(host: str) -> bool:
    """Whether a host of ``UpstreamServer`` has to be looked up."""
    return packed(host) is None and not host.startswith("unix:")


def refusal(address: IpAddress) -> str:
    """Return why a name must not resolve to an address; empty if it may."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        address = IPv4Address(address.packed[12:])
    if address.is_unspecified or address in _THIS_NETWORK:
        return "unspecified"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "multicast" if address.is_multicast else ""


def _plain(address: bytes) -> IpAddress:
    """Return an address; an IPv4-mapped one is its IPv4 address."""
    found = ip_address(address)
    return found if isinstance(found, IPv4Address) else found.ipv4_mapped or found


def _error(name: str, text: str) -> UpstreamError:
    return UpstreamError(f'"{name}" in Auth-Server {text}', stage=UpstreamStage.RESOLVE)

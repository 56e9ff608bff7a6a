# SPDX-License-Identifier: Apache-2.0
"""Sends DNS queries for a ``resolver`` directive: the name of an address, the addresses of a name.

c-ares (through aiodns) implements the protocol: ids, source ports, matching,
TCP after a truncated reply, and repeating a lost datagram, to the next server
each time.  This module does what nginx's ``resolver`` does: it chooses the
server that a new query goes to first, decides which replies count, and repeats
a query until it is cancelled.  It has no timeouts of its own.

Imported only where there is a ``resolver``: it loads the DNS library.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import aiodns
import pycares
from pycares import errno

from mailproxy.dns.lookup import LookupResult, packed
from mailproxy.enums import DnsResult
from mailproxy_config.addresses import format_host_port, parse_host_port
from mailproxy_config.model import ResolverConfig

MAX_QUERIES: Final = 4_000
"""Queries in the DNS library, including those whose caller has stopped waiting."""
MAX_ALIASES: Final = 50
"""``CNAME`` records that are followed one after the other, as in nginx."""
DNS_PORT: Final = 53
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
MAX_CACHED: Final = 4_000
_LIBRARY_TTL: Final = 3_600
_HOST_NAME: Final = re.compile(rb"[A-Za-z0-9.-]+")

_FAILURES: Final = {
    errno.ARES_ENOTFOUND: DnsResult.NXDOMAIN,
    errno.ARES_ESERVFAIL: DnsResult.SERVFAIL,
    errno.ARES_ENOTIMP: DnsResult.REFUSED,
    errno.ARES_EREFUSED: DnsResult.REFUSED,
    errno.ARES_ECANCELLED: DnsResult.INVALID,
}
_ABSENT: Final = frozenset({errno.ARES_ENODATA, errno.ARES_ENOTFOUND})
_UNREACHABLE: Final = frozenset({errno.ARES_ECONNREFUSED, errno.ARES_ESERVICE})

FoundAddresses = tuple[list[bytes], list[int]]
"""Packed addresses, and the TTLs of all records on the way to them."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a query is repeated.

    Attributes:
        first_timeout: Seconds until a query is repeated while nothing is known about the server.
            c-ares uses measured response times after that, at least 0.25 s.
        rounds: How often c-ares sends a query to all servers before it starts again with the next.
        pause: Seconds between two attempts while no server can be reached.
    """

    first_timeout: float = 2.0
    rounds: int = 3
    pause: float = 5.0


class DnsError(Exception):
    """A query failed.

    Attributes:
        result: The failure.
    """

    def __init__(self, result: DnsResult) -> None:
        super().__init__(result.value)
        self.result = result


class _NoReply(Exception):
    """No server replied in time; the query is repeated at once."""


class _ServersUnreachable(Exception):
    """No server could be reached; the query is repeated after a pause."""


class _UnusableReply(Exception):
    """The reply is not usable; the query is sent to the next server."""


class DnsClient:
    """Queries to the name servers of one ``resolver`` directive.

    Host names among the servers are resolved once, before the first query, by
    the system's resolver; each of their addresses becomes a server.

    Args:
        config: The directive.
        retry: When queries are repeated.
        resolv_conf: The file with the system's name servers, for ``system``; read once.

    Attributes:
        resolv_conf: As given.
        record_types: ``A`` and ``AAAA``, as far as the directive allows them.
    """

    def __init__(
        self, config: ResolverConfig, retry: RetryPolicy = RetryPolicy(), *, resolv_conf: Path = _RESOLV_CONF
    ) -> None:
        self._config = config
        self.record_types = ["A"] * config.ipv4 + ["AAAA"] * config.ipv6
        self._retry = retry
        self.resolv_conf = resolv_conf
        self._servers: tuple[str, ...] = ()
        self._finding = asyncio.Lock()
        self._find_again_at = 0.0
        self._first_server = 0
        self._in_progress = 0
        self._library: aiodns.DNSResolver | None = None
        self._libraries: weakref.WeakSet[aiodns.DNSResolver] = weakref.WeakSet()
        self._cached_until: dict[tuple[str, str], float] = {}

    async def name_of(self, address: bytes) -> LookupResult[bytes]:
        """Look up the name of a packed address: its first ``PTR`` record.

        The result is ``INVALID``, and may be cached, if that record holds no host name.
        """
        try:
            records = await self.query(reverse_name(address), "PTR", self.next_server())
        except DnsError as error:
            return LookupResult(error.result, ttl=0 if error.result is DnsResult.NXDOMAIN else None)
        if not records:
            return LookupResult(DnsResult.NXDOMAIN, ttl=0)
        record = next((record for record in records if isinstance(record.data, pycares.PTRRecordData)), None)
        if record is None:
            return LookupResult(DnsResult.INVALID)
        name = host_name(cast(pycares.PTRRecordData, record.data).dname)
        return LookupResult(DnsResult.INVALID if name is None else DnsResult.OK, name, record.ttl)

    async def addresses_of(self, name: bytes) -> LookupResult[frozenset[bytes]]:
        """Look up all addresses of a host, of the families that the directive allows.

        As in nginx, the lookup fails if one family fails; a family without
        records is no failure.  If both fail, any other failure takes
        precedence over NXDOMAIN.
        """
        first = self.next_server()
        families: list[asyncio.Task[FoundAddresses | None]] = []
        try:
            async with asyncio.TaskGroup() as group:
                families = [
                    group.create_task(self.family_of(name.decode(), kind, first))
                    for kind in self.record_types
                ]
        except ExceptionGroup as failures:
            error = failures.exceptions[0]
            if isinstance(error, DnsError):
                return LookupResult(error.result)
            raise
        ttls: list[int] = []
        addresses: set[bytes] = set()
        for found in (family.result() for family in families):
            if found is None:
                return LookupResult(DnsResult.NXDOMAIN, ttl=0)
            addresses.update(found[0])
            ttls += found[1]
        if not addresses:
            return LookupResult(DnsResult.NXDOMAIN, ttl=0)
        return LookupResult(DnsResult.OK, frozenset(addresses), min(ttls))

    async def family_of(self, name: str, kind: str, first: int) -> FoundAddresses | None:
        """Look up the addresses of one family and follow aliases that the server did not follow.

        Args:
            name: In presentation form.
            kind: ``A`` or ``AAAA``.
            first: From ``next_server``.

        Returns:
            ``None`` if the name does not exist.

        Raises:
            DnsError: See ``query``.
        """
        ttls: list[int] = []
        seen: set[str] = set()
        while name not in seen and len(seen) <= MAX_ALIASES:
            seen.add(name)
            try:
                records = await self.query(name, kind, first)
            except DnsError as error:
                if error.result is DnsResult.NXDOMAIN:
                    return None
                raise
            ttls += [record.ttl for record in records]
            addresses, alias = _addresses_and_alias(records)
            if addresses or not records:
                return addresses, ttls
            if alias is None:
                raise DnsError(DnsResult.INVALID)
            name = alias
        return None

    def next_server(self) -> int:
        """Return the position of the server that the next lookup starts with: round robin."""
        self._first_server += 1
        return self._first_server - 1

    async def query(self, name: str, kind: str, first: int) -> Sequence[pycares.DNSRecord]:
        """Query the records of one type (``PTR``, ``A``, ``AAAA``) until there is a reply.

        Without a reply the query is repeated without end: the caller sets the timeout.

        Args:
            name: In presentation form.
            kind: The type of record.
            first: From ``next_server``; all queries of one lookup start with the same server.

        Returns:
            The answer section; empty if the name has no such record.

        Raises:
            DnsError: The name does not exist, a server refused or failed, or
                no server sent a usable reply.
        """
        unusable = 0
        while True:
            try:
                return await self._attempt(name, kind, first)
            except _ServersUnreachable:
                await asyncio.sleep(self._retry.pause)
            except _UnusableReply as error:
                unusable += 1
                if unusable >= len(self._servers):
                    raise DnsError(DnsResult.INVALID) from error
            except _NoReply:
                pass
            first += 1

    async def close(self) -> None:
        """Close all sockets and threads; queries in progress fail."""
        self._library = None
        for library in tuple(self._libraries):
            await library.close()

    async def _attempt(self, name: str, kind: str, first: int) -> Sequence[pycares.DNSRecord]:
        """Query each server once."""
        library = await self._library_for(name, kind, first)
        if self._in_progress >= MAX_QUERIES:
            raise DnsError(DnsResult.INVALID)
        future = library.query_dns(name, kind)
        self._in_progress += 1
        future.add_done_callback(self._query_ended)
        try:
            # Shielded: the library continues a query whose caller is gone, and it must be counted.
            answer = (await asyncio.shield(future)).answer
        except aiodns.error.DNSError as error:
            return self._handle_error(error.args[0], name, kind)
        if not answer:
            raise _UnusableReply  # an RCODE that the library does not report
        self._cached_until[name, kind] = time.monotonic() + min(record.ttl for record in answer)
        return answer

    def _handle_error(self, code: int, name: str, kind: str) -> Sequence[pycares.DNSRecord]:
        if code == errno.ARES_ETIMEOUT:
            raise _NoReply
        if code in _UNREACHABLE:
            raise _ServersUnreachable
        if code in _ABSENT:
            self._cached_until[name, kind] = time.monotonic() + _LIBRARY_TTL
        if code == errno.ARES_ENODATA:
            return ()
        if code in _FAILURES:
            raise DnsError(_FAILURES[code])
        raise _UnusableReply

    def _query_ended(self, future: asyncio.Future[pycares.DNSResult]) -> None:
        self._in_progress -= 1
        if not future.cancelled():
            future.exception()  # marks it as retrieved: the caller may be gone

    async def _library_for(self, name: str, kind: str, first: int) -> aiodns.DNSResolver:
        """Return the library with the servers in the order of this lookup."""
        if not self._servers:
            await self._find_servers()
        library = self._library
        if library is None or self._is_in_library_cache(name, kind):
            library = self._new_library()
        servers = self._servers
        if len(servers) > 1:
            start = first % len(servers)
            library.nameservers = servers[start:] + servers[:start]
        return library

    def _is_in_library_cache(self, name: str, kind: str) -> bool:
        """Whether the library might reply from its own cache, which has no limit and ignores ``valid=``.

        That cache cannot be disabled from here, so the library is replaced before it can be used.
        """
        is_full = len(self._cached_until) >= MAX_CACHED
        return is_full or self._cached_until.get((name, kind), 0.0) > time.monotonic()

    def _new_library(self) -> aiodns.DNSResolver:
        self._cached_until.clear()
        library = aiodns.DNSResolver(
            self._servers,
            loop=asyncio.get_running_loop(),
            # NOCHECKRESP: a failure is a result, not a reason to query the next server.
            # EDNS is the library's default and stays off because flags are given.
            flags=pycares.ARES_FLAG_NOCHECKRESP,
            timeout=self._retry.first_timeout,
            tries=self._retry.rounds,
        )
        self._library = library
        self._libraries.add(library)
        return library

    async def _find_servers(self) -> None:
        async with self._finding:
            if self._servers:
                return
            if time.monotonic() < self._find_again_at:
                raise _ServersUnreachable
            if self._config.system:
                self._servers = system_servers(self.resolv_conf)
            else:
                found = [await servers_of(address) for address in self._config.addresses]
                self._servers = tuple(dict.fromkeys(server for servers in found for server in servers))
            if not self._servers:
                self._find_again_at = time.monotonic() + self._retry.pause
                raise _ServersUnreachable


def system_servers(resolv_conf: Path) -> tuple[str, ...]:
    """Read the ``nameserver`` lines of a resolv.conf(5); the default is the local host."""
    try:
        words = [line.split() for line in resolv_conf.read_text("ascii", "replace").splitlines()]
    except OSError:
        words = []
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver" and packed(line[1])]
    return tuple(format_host_port(server, DNS_PORT) for server in servers or ["127.0.0.1"])


async def servers_of(address: str) -> list[str]:
    """Return the servers for one address of the directive; none for a host name that does not resolve."""
    written, port = parse_host_port(address)
    host, port = written.strip("[]"), port or DNS_PORT
    if packed(host):
        return [format_host_port(host, port)]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return [format_host_port(str(sockaddr[0]), port) for *_, sockaddr in found]


def _addresses_and_alias(records: Sequence[pycares.DNSRecord]) -> tuple[list[bytes], str | None]:
    """Return the addresses among some records, and the target of the last alias."""
    found: list[bytes | None] = []
    alias = None
    for record in records:
        data = record.data
        if isinstance(data, pycares.ARecordData | pycares.AAAARecordData):
            found.append(packed(data.addr))
        elif isinstance(data, pycares.CNAMERecordData):
            alias = data.cname
    return [address for address in found if address is not None], alias


def reverse_name(address: bytes) -> str:
    """Return the name of a packed address's PTR record (RFC 1035 section 3.5, RFC 3596 section 2.5).

    As in nginx, an IPv4-mapped address is an IPv6 address.
    """
    if len(address) == 4:
        return ".".join(str(byte) for byte in reversed(address)) + ".in-addr.arpa"
    return ".".join(reversed(address.hex())) + ".ip6.arpa"


def host_name(name: str | bytes) -> bytes | None:
    """Return the name in a PTR record in lower case without a trailing dot, ``None`` if it is no host name.

    ``name`` is in presentation form, in which special characters (a control
    character, a dot within a label) are escaped with a backslash.  Names with
    a backslash are no host names.
    """
    data = name.encode("ascii", "replace") if isinstance(name, str) else name
    data = data.removesuffix(b".")
    return data.lower() if _HOST_NAME.fullmatch(data) else None

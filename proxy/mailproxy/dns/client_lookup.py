# SPDX-License-Identifier: Apache-2.0
"""The two questions about a client: what is it called, and where is who is called so?

Import it only where there is a ``resolver``: it loads the DNS library.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, cast

import pycares

from mailproxy.dns.dns_client import DnsClient, DnsError
from mailproxy.dns.dns_names import host_name, packed, reverse_name
from mailproxy.dns.measures import LookupResult
from mailproxy.enums import DnsResult
from mailproxy_config.model import ResolverConfig

MAX_LINKS: Final = 50
"""``CNAME`` records that are followed one after the other, as in nginx."""

_Found = tuple[list[bytes], list[int]]
"""Packed addresses, and the TTLs of everything that led to them."""


class ClientLookup:
    """Asks for names and for addresses.

    Args:
        config: The ``resolver`` directive.
        servers: Who is asked; the directive's own where none is given.
    """

    def __init__(self, config: ResolverConfig, servers: DnsClient | None = None) -> None:
        self._servers = servers or DnsClient(config)
        self._kinds = ["A"] * config.ipv4 + ["AAAA"] * config.ipv6

    async def name(self, address: bytes) -> LookupResult[bytes]:
        """Ask what a packed address is called: the first ``PTR`` record counts.

        The answer is ``INVALID``, and may be kept, when that is no host name.
        """
        try:
            records = await self._servers.ask(reverse_name(address), "PTR", self._servers.turn())
        except DnsError as failed:
            return LookupResult(failed.result, ttl=0 if failed.result is DnsResult.NXDOMAIN else None)
        if not records:
            return LookupResult(DnsResult.NXDOMAIN, ttl=0)
        record = next((record for record in records if isinstance(record.data, pycares.PTRRecordData)), None)
        if record is None:
            return LookupResult(DnsResult.INVALID)
        name = host_name(cast(pycares.PTRRecordData, record.data).dname)
        return LookupResult(DnsResult.INVALID if name is None else DnsResult.OK, name, record.ttl)

    async def addresses(self, name: bytes) -> LookupResult[frozenset[bytes]]:
        """Ask for all addresses of a host, of the families that the directive allows.

        One family that fails spoils the other, as in nginx; one that is merely
        empty does not.  When both fail, a failure that may pass counts.
        """
        turn = self._servers.turn()
        families: list[asyncio.Task[_Found | None]] = []
        try:
            async with asyncio.TaskGroup() as group:
                families = [
                    group.create_task(self._family(name.decode(), kind, turn)) for kind in self._kinds
                ]
        except ExceptionGroup as failures:
            failed = failures.exceptions[0]
            if isinstance(failed, DnsError):
                return LookupResult(failed.result)
            raise
        return _joined([family.result() for family in families])

    async def close(self) -> None:
        """Let go of the servers."""
        await self._servers.close()

    async def _family(self, name: str, kind: str, turn: int) -> _Found | None:
        """Give one family's addresses, through aliases where the server did not follow them.

        ``None`` when the name does not exist.
        """
        ttls: list[int] = []
        seen: set[str] = set()
        while name not in seen and len(seen) <= MAX_LINKS:
            seen.add(name)
            try:
                records = await self._servers.ask(name, kind, turn)
            except DnsError as failed:
                if failed.result is DnsResult.NXDOMAIN:
                    return None
                raise
            ttls += [record.ttl for record in records]
            addresses, alias = _read(records)
            if addresses or not records:
                return addresses, ttls
            if alias is None:
                raise DnsError(DnsResult.INVALID)
            name = alias
        return None


def _read(records: Sequence[pycares.DNSRecord]) -> tuple[list[bytes], str | None]:
    """Take the addresses from an answer, and where its last alias leads."""
    found: list[bytes | None] = []
    alias = None
    for record in records:
        data = record.data
        if isinstance(data, pycares.ARecordData | pycares.AAAARecordData):
            found.append(packed(data.addr))
        elif isinstance(data, pycares.CNAMERecordData):
            alias = data.cname
    return [address for address in found if address is not None], alias


def _joined(families: Sequence[_Found | None]) -> LookupResult[frozenset[bytes]]:
    ttls: list[int] = []
    addresses: set[bytes] = set()
    for found in families:
        if found is None:
            return LookupResult(DnsResult.NXDOMAIN, ttl=0)
        addresses.update(found[0])
        ttls += found[1]
    if not addresses:
        return LookupResult(DnsResult.NXDOMAIN, ttl=0)
    return LookupResult(DnsResult.OK, frozenset(addresses), min(ttls))

# SPDX-License-Identifier: Apache-2.0
"""The name of an SMTP client: what its address says it is called, if that name says the same of the address.

nginx's ``resolver`` and ``resolver_timeout``.  The result goes to the
authorization service as ``Client-Host`` and to an upstream with ``XCLIENT``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from mailproxy.dns.cache import Cache
from mailproxy.dns.dns_names import packed
from mailproxy.dns.lookup import LookupCache
from mailproxy.dns.measures import Answer, Cancel, Failure, WorkerMetrics, unreported
from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy.protocols.types import TEMPUNAVAIL, UNAVAILABLE
from mailproxy_config.model import ResolverConfig

if TYPE_CHECKING:
    from mailproxy.dns.dns_client import DnsClient

Addresses = frozenset[bytes]
"""Packed IP addresses."""


class Resolver:
    """Finds and confirms client names for everybody with the same ``resolver``.

    Must be made and used within a running loop.

    Args:
        config: The directive.
        timeout: ``resolver_timeout`` in seconds: the limit of each of the two look-ups; 0 is no limit.
        metrics: Where look-ups are counted.
        servers: Who is asked; the directive's own where none is given.
        failed: Called for each look-up that fails or times out.
    """

    def __init__(
        self,
        config: ResolverConfig,
        *,
        timeout: float,
        metrics: WorkerMetrics,
        servers: DnsClient | None = None,
        failed: Failure = unreported,
    ) -> None:
        # Only who has a resolver pays for the DNS library.
        from mailproxy.dns.client_lookup import ClientLookup  # noqa: PLC0415

        self._questions = ClientLookup(config, servers)
        self.names: LookupCache[bytes, bytes] = LookupCache(
            DnsPurpose.PTR,
            self._questions.name,
            timeout=timeout,
            cache=Cache(config.valid, metrics),
            metrics=metrics,
            failed=lambda address, result: failed(DnsPurpose.PTR, str(ip_address(address)), result),
        )
        self.addresses: LookupCache[bytes, Addresses] = LookupCache(
            DnsPurpose.FORWARD,
            self._questions.addresses,
            timeout=timeout,
            cache=Cache(config.valid, metrics),
            metrics=metrics,
            failed=lambda name, result: failed(DnsPurpose.FORWARD, name.decode("ascii", "replace"), result),
        )

    def look_up(self, address: str, done: Callable[[bytes], None]) -> Cancel:
        """Find the confirmed name of a client.

        ``done`` is told the name in lower case, ``[UNAVAILABLE]`` or
        ``[TEMPUNAVAIL]``: before this returns when everything is known
        already, otherwise later, from the loop.

        Args:
            address: The client's address as text; anything but an IP address
                (``unix:``) has no name for now.
            done: Called exactly once, unless cancelled.

        Returns:
            How to lose interest.
        """
        data = packed(address)
        if data is None:
            done(TEMPUNAVAIL)
            return _nothing
        name = self.names.cached(data)
        if name is None:
            confirmation = _Confirmation(self, data, done)
            confirmation.step = self.names.find(data, confirmation.named)
            return confirmation.cancel
        if name.value is None:
            done(_placeholder(name.result))
            return _nothing
        addresses = self.addresses.cached(name.value)
        if addresses is None:
            confirmation = _Confirmation(self, data, done)
            confirmation.confirm(name.value)
            return confirmation.cancel
        done(_verdict(data, name.value, addresses))
        return _nothing

    async def client_name(self, address: str) -> bytes:
        """Find the confirmed name of a client: ``look_up`` for who can wait."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        cancel = self.look_up(address, answer.set_result)
        try:
            return await answer
        finally:
            cancel()

    async def close(self) -> None:
        """Give up on everything under way (``[TEMPUNAVAIL]``), and let go of sockets and threads."""
        await self.names.close()
        await self.addresses.close()
        await self._questions.close()


class _Confirmation:
    """One client's way from an address to a name that leads back to it.

    ``owner`` leads to what ends where a step raises: whoever gets the name.
    """

    __slots__ = ("_address", "_done", "_name", "_resolver", "owner", "step")

    def __init__(self, resolver: Resolver, address: bytes, done: Callable[[bytes], None]) -> None:
        self._resolver = resolver
        self._address = address
        self._done = self.owner = done
        self._name = b""
        self.step: Cancel = _nothing

    def named(self, answer: Answer[bytes]) -> None:
        if answer.value is None:
            self._done(_placeholder(answer.result))
            return
        addresses = self._resolver.addresses.cached(answer.value)
        if addresses is None:
            self.confirm(answer.value)
        else:
            self._done(_verdict(self._address, answer.value, addresses))

    def confirm(self, name: bytes) -> None:
        self._name = name
        self.step = self._resolver.addresses.find(name, self.confirmed)

    def confirmed(self, answer: Answer[Addresses]) -> None:
        self._done(_verdict(self._address, self._name, answer))

    def cancel(self) -> None:
        self.step()


def _verdict(address: bytes, name: bytes, answer: Answer[Addresses]) -> bytes:
    if answer.value is None:
        return _placeholder(answer.result)
    return name if address in answer.value else UNAVAILABLE


def _placeholder(result: DnsResult) -> bytes:
    return UNAVAILABLE if result is DnsResult.NXDOMAIN else TEMPUNAVAIL


def _nothing() -> None:
    """There is nothing to lose interest in."""

# SPDX-License-Identifier: Apache-2.0
"""The host name of an SMTP client: the PTR record of its address, confirmed by an A or AAAA record.

Implements nginx's ``resolver`` and ``resolver_timeout``.  The name goes to the
authentication service as ``Client-Host`` and to an upstream with ``XCLIENT``.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from mailproxy.dns.lookup import (
    Cancel,
    LookupCache,
    LookupResult,
    OnFailure,
    ignore_failure,
    not_pending,
    packed,
)
from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy.protocols.types import TEMPUNAVAIL, UNAVAILABLE
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import ResolverConfig

if TYPE_CHECKING:
    from mailproxy.dns.dns_client import DnsClient

Addresses = frozenset[bytes]
"""Packed IP addresses."""


class Resolver:
    """Finds and confirms client names for all servers with the same ``resolver`` directive.

    Must be created and used within a running event loop.

    Args:
        config: The directive.
        timeout: ``resolver_timeout`` in seconds, for each of the two lookups; 0 is no limit.
        metrics: Counts lookups.
        client: Sends the queries; made from ``config`` if none is given.
        on_failure: Called for each lookup that fails or times out.
    """

    def __init__(
        self,
        config: ResolverConfig,
        *,
        timeout: float,
        metrics: WorkerMetrics,
        client: DnsClient | None = None,
        on_failure: OnFailure = ignore_failure,
    ) -> None:
        # A worker without a resolver does not load the DNS library.
        from mailproxy.dns.dns_client import DnsClient  # noqa: PLC0415

        self._client = client or DnsClient(config)
        self.names: LookupCache[bytes, bytes] = LookupCache(
            DnsPurpose.PTR,
            self._client.name_of,
            timeout=timeout,
            valid=config.valid,
            metrics=metrics,
            on_failure=lambda address, result: on_failure(DnsPurpose.PTR, str(ip_address(address)), result),
        )
        self.addresses: LookupCache[bytes, Addresses] = LookupCache(
            DnsPurpose.FORWARD,
            self._client.addresses_of,
            timeout=timeout,
            valid=config.valid,
            metrics=metrics,
            on_failure=lambda name, result: on_failure(DnsPurpose.FORWARD, name.decode("ascii"), result),
        )

    def look_up(self, address: str, done: Callable[[bytes], None]) -> Cancel:
        """Find the confirmed name of a client.

        Args:
            address: The client's address as text.  Anything but an IP address (``unix:``) has
                the name ``[TEMPUNAVAIL]``.
            done: Called once, unless cancelled, with the name in lower case, ``[UNAVAILABLE]`` or
                ``[TEMPUNAVAIL]``.  It is called before this returns if everything is cached,
                otherwise later by the event loop.

        Returns:
            Cancels the lookup.
        """
        data = packed(address)
        if data is None:
            done(TEMPUNAVAIL)
            return not_pending
        name = self.names.cached(data)
        if name is None:
            confirmation = Confirmation(self, data, done)
            confirmation.cancel_step = self.names.find(data, confirmation.on_name)
            return confirmation.cancel
        if name.value is None:
            done(_placeholder(name.result))
            return not_pending
        addresses = self.addresses.cached(name.value)
        if addresses is None:
            confirmation = Confirmation(self, data, done)
            confirmation.confirm(name.value)
            return confirmation.cancel
        done(_confirmed_name(data, name.value, addresses))
        return not_pending

    async def close(self) -> None:
        """Cancel all lookups in progress (``[TEMPUNAVAIL]``) and close sockets and threads."""
        await self.names.close()
        await self.addresses.close()
        await self._client.close()


class Confirmation:
    """The two lookups for one client.

    Attributes:
        owner: Leads to the session that ends when a callback raises (``containment``).
        cancel_step: Cancels the lookup in progress.
    """

    __slots__ = ("_address", "_done", "_name", "_resolver", "cancel_step", "owner")

    def __init__(self, resolver: Resolver, address: bytes, done: Callable[[bytes], None]) -> None:
        self._resolver = resolver
        self._address = address
        self._done = self.owner = done
        self._name = b""
        self.cancel_step: Cancel = not_pending

    def on_name(self, found: LookupResult[bytes]) -> None:
        """Receive the result of the PTR lookup."""
        if found.value is None:
            self._done(_placeholder(found.result))
            return
        addresses = self._resolver.addresses.cached(found.value)
        if addresses is None:
            self.confirm(found.value)
        else:
            self._done(_confirmed_name(self._address, found.value, addresses))

    def confirm(self, name: bytes) -> None:
        """Look up the addresses of a name."""
        self._name = name
        self.cancel_step = self._resolver.addresses.find(name, self.on_addresses)

    def on_addresses(self, found: LookupResult[Addresses]) -> None:
        """Receive the result of the address lookup."""
        self._done(_confirmed_name(self._address, self._name, found))

    def cancel(self) -> None:
        """Cancel the lookup in progress."""
        self.cancel_step()


def _confirmed_name(address: bytes, name: bytes, found: LookupResult[Addresses]) -> bytes:
    if found.value is None:
        return _placeholder(found.result)
    return name if address in found.value else UNAVAILABLE


def _placeholder(result: DnsResult) -> bytes:
    return UNAVAILABLE if result is DnsResult.NXDOMAIN else TEMPUNAVAIL

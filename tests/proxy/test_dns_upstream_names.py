# SPDX-License-Identifier: Apache-2.0
"""Names in ``Auth-Server``, with a name server whose replies the test chooses."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.dns import upstream_names
from mailproxy.dns.dns_client import DnsClient, RetryPolicy
from mailproxy.dns.upstream_names import MAX_ADDRESSES, Resolved, UpstreamNames, is_name, refusal
from mailproxy.enums import CacheResult, DnsPurpose, DnsResult, UpstreamStage
from mailproxy.errors import UpstreamError
from mailproxy.protocols.types import UpstreamAddress, UpstreamServer
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import ResolverConfig
from support.dns_server import (
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    DnsReply,
    DnsServer,
    address_record,
    cname_record,
    dns_server,
    reply_with,
)

QUICK = RetryPolicy(first_timeout=0.25, rounds=1, pause=0.01)
NAME = "dovecot.mail.example"
V4, V6 = "192.0.2.1", "2001:db8::1"
SILENT = DnsReply(silent=True)


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.zone[NAME, "A"] = reply_with(address_record(V4))
        server.zone[NAME, "AAAA"] = reply_with(address_record(V6))
        yield server


class Harness:
    """A resolver, its metrics, and what it reports."""

    def __init__(
        self,
        *addresses: str,
        timeout: float = 10.0,
        networks: Sequence[str] = (),
        resolv_conf: Path = Path("/nonexistent"),
        **config: Any,
    ) -> None:
        self.config = ResolverConfig(addresses=addresses, **config)
        self.metrics = WorkerMetrics()
        self.failures: list[tuple[DnsPurpose, str, DnsResult]] = []
        self.refused: list[tuple[str, str, str]] = []
        self.names = UpstreamNames(
            self.config,
            timeout=timeout,
            networks=networks,
            metrics=self.metrics,
            client=DnsClient(self.config, QUICK, resolv_conf=resolv_conf),
            on_failure=lambda *failure: self.failures.append(failure),
            on_refused=lambda *refused: self.refused.append(refused),
        )

    async def __aenter__(self) -> Harness:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.names.close()

    async def resolve(self, *hosts: str, port: int = 143) -> Resolved:
        """Resolve some items of ``Auth-Server``."""
        done: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
        self.names.resolve([UpstreamServer(host, port) for host in hosts], done.set_result)
        return await done

    async def addresses(self, *hosts: str, port: int = 143) -> list[str]:
        found = await self.resolve(*hosts, port=port)
        assert not isinstance(found, UpstreamError), found
        return [candidate.address for candidate in found]

    async def error(self, *hosts: str, port: int = 143) -> UpstreamError:
        found = await self.resolve(*hosts, port=port)
        assert isinstance(found, UpstreamError), found
        assert found.stage is UpstreamStage.RESOLVE
        return found

    def queries(self, result: DnsResult) -> int:
        return self.metrics.dns_queries[DnsPurpose.UPSTREAM, result].value


# --- names, addresses, lists ------------------------------------------------------------------------


async def test_name_resolves_to_its_addresses_of_both_families(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        found = await harness.resolve(NAME, port=1143)
    assert isinstance(found, tuple)
    assert set(found) == {UpstreamAddress(V4, 1143, NAME), UpstreamAddress(V6, 1143, NAME)}
    assert sorted(dns.query_types()) == ["A", "AAAA"]


async def test_name_with_ipv6_addresses_only(dns: DnsServer) -> None:
    dns.zone["six.example", "A"] = DnsReply()
    dns.zone["six.example", "AAAA"] = reply_with(address_record(V6))
    async with Harness(dns.address) as harness:
        assert await harness.addresses("six.example") == [V6]


@pytest.mark.parametrize(("family", "address"), [("ipv4", V6), ("ipv6", V4)])
async def test_disabled_address_family_is_not_queried(dns: DnsServer, family: str, address: str) -> None:
    async with Harness(dns.address, **{family: False}) as harness:
        assert await harness.addresses(NAME) == [address]
    assert len(dns.queries) == 1


async def test_aliases_are_followed(dns: DnsServer) -> None:
    for kind in ("A", "AAAA"):
        dns.zone["alias.example", kind] = reply_with(cname_record(NAME))
    async with Harness(dns.address) as harness:
        found = await harness.resolve("alias.example")
    assert isinstance(found, tuple)
    assert {candidate.name for candidate in found} == {"alias.example"}


async def test_literals_are_candidates_at_once_and_are_not_checked(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        results: list[Resolved] = []
        hosts = ("127.0.0.1", "fe80::1", "169.254.169.254")
        harness.names.resolve([UpstreamServer(host, 143) for host in hosts], results.append)
        assert results == [tuple(UpstreamAddress(host, 143) for host in hosts)]
    assert dns.queries == []


async def test_candidates_keep_the_order_of_the_items(dns: DnsServer) -> None:
    dns.zone["b.example", "A"] = reply_with(address_record("192.0.2.2"))
    async with Harness(dns.address, ipv6=False) as harness:
        assert await harness.addresses("b.example", "192.0.2.9", NAME) == ["192.0.2.2", "192.0.2.9", V4]


async def test_address_is_a_candidate_once(dns: DnsServer) -> None:
    dns.zone["b.example", "A"] = reply_with(address_record(V4))
    async with Harness(dns.address, ipv6=False) as harness:
        found = await harness.resolve(V4, NAME, "b.example", NAME)
    assert found == (UpstreamAddress(V4, 143),)


async def test_at_most_16_addresses_of_one_name(dns: DnsServer) -> None:
    dns.zone[NAME, "A"] = reply_with(*(address_record(f"192.0.2.{number}") for number in range(1, 18)))
    async with Harness(dns.address, ipv6=False) as harness:
        assert await harness.addresses(NAME) == [f"192.0.2.{number}" for number in range(1, 17)]


async def test_at_most_16_addresses_of_all_items(dns: DnsServer) -> None:
    for name, part in (("a.example", 0), ("b.example", 100)):
        records = (address_record(f"192.0.2.{part + number}") for number in range(1, 13))
        dns.zone[name, "A"] = reply_with(*records)
    async with Harness(dns.address, ipv6=False) as harness:
        found = await harness.addresses("a.example", "b.example")
    assert found == [f"192.0.2.{number}" for number in (*range(1, 13), *range(101, 105))]
    assert len(found) == MAX_ADDRESSES


async def test_items_that_resolve_are_used_where_others_do_not(dns: DnsServer) -> None:
    async with Harness(dns.address, ipv6=False) as harness:
        assert await harness.addresses("missing.example", NAME) == [V4]
        assert harness.failures == [(DnsPurpose.UPSTREAM, "missing.example", DnsResult.NXDOMAIN)]


# --- the search list --------------------------------------------------------------------------------


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    file = tmp_path / "resolv.conf"
    file.write_text("search mail.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n")
    return file


async def search(dns: DnsServer, resolv_conf: Path, name: str) -> Resolved:
    """Look a name up with a search list, at a name server on a port of its own."""
    async with Harness(system=True, resolv_conf=resolv_conf) as harness:
        harness.names._client._servers = (dns.address,)  # a resolv.conf has no ports
        return await harness.resolve(name)


async def test_short_name_is_found_with_the_search_list(dns: DnsServer, resolv_conf: Path) -> None:
    full = "dovecot-0.dovecot.mail.svc.cluster.local"
    dns.zone[full, "A"] = reply_with(address_record(V4))
    dns.zone[full, "AAAA"] = DnsReply()
    found = await search(dns, resolv_conf, "dovecot-0.dovecot.mail.svc")
    assert found == (UpstreamAddress(V4, 143, "dovecot-0.dovecot.mail.svc"),)
    asked = list(dict.fromkeys(name for _, name, _ in dns.queries))
    domains = ("mail.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert asked == [f"dovecot-0.dovecot.mail.svc.{domain}" for domain in domains]


async def test_name_with_a_dot_at_its_end_is_not_searched(dns: DnsServer, resolv_conf: Path) -> None:
    found = await search(dns, resolv_conf, NAME + ".")
    assert isinstance(found, tuple)
    assert {candidate.name for candidate in found} == {NAME}
    assert {name for _, name, _ in dns.queries} == {NAME}


async def test_failure_with_one_domain_does_not_end_the_search(dns: DnsServer, resolv_conf: Path) -> None:
    for kind in ("A", "AAAA"):
        dns.zone[f"{NAME}.mail.svc.cluster.local", kind] = DnsReply(code=SERVFAIL)
    assert isinstance(await search(dns, resolv_conf, NAME), tuple)


async def test_failure_with_one_domain_is_the_failure_of_the_name(dns: DnsServer, resolv_conf: Path) -> None:
    for kind in ("A", "AAAA"):
        dns.zone["x.mail.svc.cluster.local", kind] = DnsReply(code=SERVFAIL)
    found = await search(dns, resolv_conf, "x")
    assert isinstance(found, UpstreamError)
    assert "the name server failed" in str(found)


async def test_search_list_is_not_used_with_addresses_of_name_servers(
    dns: DnsServer, resolv_conf: Path
) -> None:
    async with Harness(dns.address, resolv_conf=resolv_conf) as harness:
        await harness.error("dovecot")
    assert {name for _, name, _ in dns.queries} == {"dovecot"}


async def test_without_resolver_the_name_servers_are_those_of_the_system(
    dns: DnsServer, resolv_conf: Path
) -> None:
    names = UpstreamNames(None, timeout=5.0, metrics=WorkerMetrics())
    assert names._client._config == ResolverConfig(system=True)
    await names.close()


# --- cache and limits -------------------------------------------------------------------------------


async def test_result_is_cached_and_delivered_at_once(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        first = await harness.resolve(NAME)
        results: list[Resolved] = []
        harness.names.resolve([UpstreamServer(NAME, 143)], results.append)
        assert results == [first]
        assert harness.metrics.dns_cache[CacheResult.MISS].value == 1
        assert harness.metrics.dns_cache[CacheResult.HIT].value == 1
        assert harness.metrics.dns_cache_entries.value == 1
        assert harness.queries(DnsResult.OK) == 1
    assert len(dns.queries) == 2
    assert harness.metrics.dns_cache_entries.value == 0


@pytest.mark.parametrize(
    ("ttl", "valid", "cached", "expired"),
    [(0, None, 0.5, 3), (7, None, 6, 9), (86_400, None, 299, 302), (7, 20.0, 19, 22)],
)
async def test_cache_time_is_the_ttl_from_1_to_300_seconds_or_valid(
    dns: DnsServer,
    ttl: int,
    valid: float | None,
    cached: float,
    expired: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dns.zone[NAME, "A"] = reply_with(address_record(V4, ttl))
    dns.zone[NAME, "AAAA"] = reply_with(address_record(V6, ttl=86_400))
    async with Harness(dns.address, valid=valid) as harness:
        await harness.resolve(NAME)
        entry = harness.names.names._cache._entries[NAME]
        now = asyncio.get_running_loop().time()
        assert now + cached <= entry[0] <= now + expired


async def test_name_without_addresses_is_cached_for_5_seconds(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        error = await harness.error("missing.example")
        assert '"missing.example" in Auth-Server does not resolve: the name does not exist' in str(error)
        assert not error.is_misconfigured
        await harness.error("missing.example")
        assert harness.queries(DnsResult.NXDOMAIN) == 1
        assert harness.metrics.dns_cache[CacheResult.NEGATIVE_HIT].value == 1
        expires = harness.names.names._cache._entries["missing.example"][0]
        assert 4 <= expires - asyncio.get_running_loop().time() <= 6
        assert harness.failures == [(DnsPurpose.UPSTREAM, "missing.example", DnsResult.NXDOMAIN)]


async def test_one_query_per_name_at_a_time(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        found = await asyncio.gather(*(harness.resolve(NAME) for _ in range(50)))
        assert len(set(map(str, found))) == 1
        assert harness.queries(DnsResult.OK) == 1
    assert len(dns.queries) == 2


async def test_lookup_goes_on_while_somebody_waits(dns: DnsServer) -> None:
    dns.zone[NAME, "A"] = dns.zone[NAME, "AAAA"] = SILENT
    async with Harness(dns.address) as harness:
        cancelled: list[Resolved] = []
        cancel = harness.names.resolve([UpstreamServer(NAME, 143)], cancelled.append)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(harness.resolve(NAME))
            await dns.wait_for_queries(2)
            cancel()
            cancel()
            dns.zone[NAME, "A"] = dns.zone[NAME, "AAAA"] = reply_with(address_record(V4))
            assert isinstance(await waiting, tuple)
        assert cancelled == []


async def test_lookup_ends_with_the_last_login_that_waits(dns: DnsServer) -> None:
    dns.zone[NAME, "A"] = dns.zone[NAME, "AAAA"] = SILENT
    async with Harness(dns.address) as harness:
        cancel = harness.names.resolve([UpstreamServer(NAME, 143)], lambda _: None)
        await dns.wait_for_queries(2)
        assert len(harness.names.names._pending) == 1
        cancel()
        assert harness.names.names._pending == {}


async def test_lookups_above_the_limit_fail_at_once(dns: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_names, "MAX_LOOKUPS", 2)
    dns.default_reply = SILENT
    async with Harness(dns.address) as harness:
        for number in range(2):
            harness.names.resolve([UpstreamServer(f"n{number}.example", 143)], lambda _: None)
        results: list[Resolved] = []
        harness.names.resolve([UpstreamServer("n2.example", 143)], results.append)
        assert "too many lookups are in progress" in str(results)


async def test_lookup_without_reply_ends_at_resolver_timeout(dns: DnsServer) -> None:
    dns.default_reply = SILENT
    async with Harness(dns.address, timeout=0.2) as harness:
        error = await harness.error("hangs.example")
        assert "no reply within resolverTimeout" in str(error)
        assert not error.is_misconfigured
        assert harness.failures == [(DnsPurpose.UPSTREAM, "hangs.example", DnsResult.TIMEOUT)]
        assert harness.metrics.dns_timeouts[DnsPurpose.UPSTREAM].value == 1


@pytest.mark.parametrize(
    ("code", "result", "text"),
    [
        (SERVFAIL, DnsResult.SERVFAIL, "the name server failed"),
        (REFUSED, DnsResult.REFUSED, "refused the query"),
    ],
)
async def test_failed_lookup_is_an_outage_and_cached_for_a_second(
    dns: DnsServer, code: int, result: DnsResult, text: str
) -> None:
    dns.default_reply = DnsReply(code=code)
    async with Harness(dns.address, valid=60.0) as harness:
        error = await harness.error("fails.example")
        assert text in str(error)
        assert not error.is_misconfigured
        assert text in str(await harness.error("fails.example"))
        assert harness.queries(result) == 1
        assert harness.failures == [(DnsPurpose.UPSTREAM, "fails.example", result)]
        expires = harness.names.names._cache._entries["fails.example"][0]
        assert 0 <= expires - asyncio.get_running_loop().time() <= 2


@pytest.mark.parametrize("reply", [DnsReply(code=SERVFAIL), SILENT, DnsReply(code=NXDOMAIN)])
async def test_one_family_is_used_where_the_other_fails(
    dns: DnsServer, reply: DnsReply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_names, "RESOLUTION_DELAY", 0.1)
    dns.zone[NAME, "AAAA"] = reply
    async with Harness(dns.address) as harness:
        assert await harness.addresses(NAME) == [V4]
        expires = harness.names.names._cache._entries[NAME][0]
        assert expires - asyncio.get_running_loop().time() <= 6  # looked up again soon


async def test_closing_fails_lookups_in_progress(dns: DnsServer) -> None:
    dns.default_reply = SILENT
    harness = Harness(dns.address)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(harness.error("hangs.example"))
        await dns.wait_for_queries(2)
        await harness.names.close()
        assert not (await waiting).is_misconfigured


# --- refused addresses ------------------------------------------------------------------------------

REFUSED_ADDRESSES = [
    *(("127.0.0.1", "loopback"), ("127.255.255.254", "loopback"), ("::1", "loopback")),
    *(("169.254.169.254", "link-local"), ("fe80::1", "link-local"), ("febf::1", "link-local")),
    *(("0.0.0.0", "unspecified"), ("0.1.2.3", "unspecified"), ("::", "unspecified")),
    *(("224.0.0.1", "multicast"), ("239.255.255.255", "multicast"), ("ff02::1", "multicast")),
    *(("::ffff:127.0.0.1", "loopback"), ("::ffff:169.254.169.254", "link-local")),
    *(("64:ff9b::7f00:1", "loopback"), ("64:ff9b::a9fe:a9fe", "link-local")),
]


async def resolve_to(dns: DnsServer, address: str, **options: Any) -> tuple[Harness, Resolved]:
    """Resolve a name with this one address."""
    dns.zone["x.example", "A"] = dns.zone["x.example", "AAAA"] = DnsReply()
    dns.zone["x.example", "AAAA" if ":" in address else "A"] = reply_with(address_record(address))
    async with Harness(dns.address, **options) as harness:
        return harness, await harness.resolve("x.example")


@pytest.mark.parametrize(("address", "reason"), REFUSED_ADDRESSES)
async def test_name_must_not_resolve_to_this_pod_or_its_link(
    dns: DnsServer, address: str, reason: str
) -> None:
    harness, error = await resolve_to(dns, address)
    assert isinstance(error, UpstreamError)
    assert error.is_misconfigured
    text = f'"x.example" in Auth-Server resolves to {harness.refused[0][1]}, which is refused ({reason})'
    assert str(error).startswith(text)
    assert "authHttpServerNetworks" in str(error)
    assert [(name, why) for name, _, why in harness.refused] == [("x.example", reason)]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("::1", "::1"),
        ("169.254.1.1", "169.254.1.0/24"),
        ("fe80::1", "fe80::/10"),
        ("::ffff:127.0.0.1", "127.0.0.1/32"),
    ],
)
async def test_listed_networks_are_allowed(dns: DnsServer, address: str, network: str) -> None:
    harness, found = await resolve_to(dns, address, networks=("10.0.0.0/8", network))
    assert isinstance(found, tuple)
    assert harness.refused == []


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "100.64.0.1", "fd00::9", "198.18.0.1"])
async def test_private_addresses_are_allowed(dns: DnsServer, address: str) -> None:
    _, found = await resolve_to(dns, address)
    assert found == (UpstreamAddress(address, 143, "x.example"),)


async def test_mapped_address_is_its_ipv4_address(dns: DnsServer) -> None:
    _, found = await resolve_to(dns, "::ffff:192.0.2.7")
    assert found == (UpstreamAddress("192.0.2.7", 143, "x.example"),)


async def test_other_addresses_of_a_name_are_used(dns: DnsServer) -> None:
    dns.zone["x.example", "A"] = reply_with(address_record("127.0.0.1"), address_record(V4))
    async with Harness(dns.address, ipv6=False) as harness:
        assert await harness.addresses("x.example") == [V4]
        assert harness.refused == [("x.example", "127.0.0.1", "loopback")]
        assert await harness.addresses("x.example") == [V4]
        assert len(harness.refused) == 1  # once per lookup


async def test_outage_of_one_item_and_refused_address_of_another_is_an_outage(dns: DnsServer) -> None:
    dns.zone["x.example", "A"] = reply_with(address_record("127.0.0.1"))
    async with Harness(dns.address, ipv6=False) as harness:
        error = await harness.error("x.example", "missing.example")
        assert not error.is_misconfigured
        assert '"missing.example"' in str(error)


@pytest.mark.parametrize(
    ("address", "listeners", "is_loop"),
    [
        ("192.0.2.1", {("192.0.2.1", 143)}, True),
        ("192.0.2.1", {("192.0.2.1", 993)}, False),
        ("192.0.2.1", {("0.0.0.0", 143)}, False),  # an address of another machine
        ("127.0.0.1", {("0.0.0.0", 143)}, True),
        ("127.0.0.1", {("::", 143)}, False),
        ("::1", {("::", 143)}, True),
    ],
)
async def test_own_listeners_are_refused(
    dns: DnsServer,
    address: str,
    listeners: set[tuple[str, int]],
    is_loop: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream_names, "refusal", lambda _: "")  # of loopback, which this test uses
    dns.zone["x.example", "A"] = dns.zone["x.example", "AAAA"] = DnsReply()
    dns.zone["x.example", "AAAA" if ":" in address else "A"] = reply_with(address_record(address))
    async with Harness(dns.address) as harness:
        harness.names.listeners = listeners
        for _ in range(2):
            found = await harness.resolve("x.example")
            assert isinstance(found, UpstreamError) is is_loop
        if isinstance(found, UpstreamError):
            assert found.is_misconfigured
            assert "which is refused (a listener of this proxy)" in str(found)
            assert len(harness.refused) == 1
    async with Harness(dns.address, networks=(address,)) as harness:
        harness.names.listeners = listeners
        assert isinstance(await harness.resolve("x.example"), tuple)


@given(st.ip_addresses())
def test_refused_addresses_are_those_of_this_pod_and_its_link(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        assert refusal(address)
    elif address.version == 4 and not str(address).startswith("0."):
        assert not refusal(address)


@given(st.ip_addresses().map(str))
def test_addresses_are_no_names(address: str) -> None:
    assert not is_name(address)
    assert is_name(f"x{address.replace(':', '-')}.example")

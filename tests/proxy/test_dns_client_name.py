# SPDX-License-Identifier: Apache-2.0
"""Client names, with a name server whose replies the test chooses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.dns import Resolver
from mailproxy.dns.dns_client import DnsClient, RetryPolicy
from mailproxy.enums import CacheResult, DnsPurpose, DnsResult
from mailproxy.protocols.types import TEMPUNAVAIL, UNAVAILABLE
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import ResolverConfig, Seconds
from support.dns_server import (
    FORMERR,
    NOTAUTH,
    NOTIMP,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    DnsReply,
    DnsServer,
    Record,
    address_record,
    client_name,
    cname_record,
    dns_server,
    ptr_record,
    reply_with,
    wire,
)

REVERSE = "1.2.0.192.in-addr.arpa"
CLIENT = "192.0.2.1"
CLIENT_6 = "2001:db8::1"
REVERSE_6 = ".".join("1" + "0" * 23 + "8bd01002") + ".ip6.arpa"
NAME = "mail.example.com"
ALIASED = Record("PTR", wire(NAME), owner=wire("x.example"))
SILENT = DnsReply(silent=True)
EMPTY = DnsReply()
QUICK = RetryPolicy(first_timeout=0.25, rounds=1, pause=0.01)


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.set_ptr(REVERSE, ptr_record(NAME))
        server.set_ptr(REVERSE_6, ptr_record(NAME))
        server.zone[NAME, "A"] = reply_with(address_record(CLIENT))
        server.zone[NAME, "AAAA"] = reply_with(address_record(CLIENT_6))
        yield server


class Harness:
    """A resolver and its metrics."""

    def __init__(
        self, *addresses: str, timeout: float = 10.0, retry: RetryPolicy = QUICK, **config: Any
    ) -> None:
        self.config = ResolverConfig(addresses=addresses, **config)
        self.metrics = WorkerMetrics()
        self.resolver = Resolver(
            self.config, timeout=timeout, metrics=self.metrics, client=DnsClient(self.config, retry)
        )

    def queries(self, purpose: DnsPurpose, result: DnsResult) -> int:
        return self.metrics.dns_queries[purpose, result].value

    async def __aenter__(self) -> Harness:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.resolver.close()

    async def name(self, address: str = CLIENT) -> bytes:
        return await client_name(self.resolver, address)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (CLIENT, b"mail.example.com"),
        (CLIENT_6, b"mail.example.com"),
        ("2001:DB8:0::1", b"mail.example.com"),  # a form that a PROXY header may contain
        ("192.0.2.9", UNAVAILABLE),  # there is no PTR record
        ("::ffff:192.0.2.1", UNAVAILABLE),  # an IPv6 address with a reverse name of its own
        ("unix:", TEMPUNAVAIL),
        ("nonsense", TEMPUNAVAIL),
    ],
)
async def test_name_is_confirmed_by_forward_lookup(dns: DnsServer, address: str, name: bytes) -> None:
    async with Harness(dns.address) as harness:
        assert await harness.name(address) == name


async def test_queries_are_those_of_nginx(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        await harness.name()
    assert dns.queries[0] == ("udp", REVERSE, "PTR")
    assert sorted(dns.queries[1:]) == [("udp", NAME, "A"), ("udp", NAME, "AAAA")]
    assert {header[2:] for header in dns.headers} == {
        b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    }  # RD, no EDNS


@pytest.mark.parametrize(
    ("reply", "name", "result"),
    [
        (DnsReply(code=NXDOMAIN), UNAVAILABLE, DnsResult.NXDOMAIN),
        (EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
        (DnsReply(code=SERVFAIL), TEMPUNAVAIL, DnsResult.SERVFAIL),
        (DnsReply(code=NOTIMP), TEMPUNAVAIL, DnsResult.REFUSED),
        (DnsReply(code=REFUSED), TEMPUNAVAIL, DnsResult.REFUSED),
        (DnsReply(code=FORMERR), TEMPUNAVAIL, DnsResult.INVALID),
        (DnsReply(code=NOTAUTH), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(Record("TXT", b"\1x")), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(cname_record("other.example.com")), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(cname_record("x.example"), ALIASED), b"mail.example.com", DnsResult.OK),
        (reply_with(ptr_record(NAME), ptr_record("second.example.com")), b"mail.example.com", DnsResult.OK),
        # Only the first record is used.
        (reply_with(ptr_record("second.example.com"), ptr_record(NAME)), UNAVAILABLE, DnsResult.OK),
        (reply_with(ptr_record("MAIL.Example.COM")), b"mail.example.com", DnsResult.OK),
        (reply_with(ptr_record("")), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(ptr_record((b"ma\0il", b"example"))), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(ptr_record((b"mail\r\nX: y",))), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(ptr_record((b"mail_1", b"example"))), TEMPUNAVAIL, DnsResult.INVALID),
        # A dot within a label.
        (reply_with(ptr_record((b"mail.example", b"com"))), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(ptr_record((b"m\xc3\xa4il", b"example"))), TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(ptr_record((b"[UNAVAILABLE]",))), TEMPUNAVAIL, DnsResult.INVALID),  # not the placeholder
    ],
)  # fmt: skip
async def test_client_name_by_ptr_reply(
    dns: DnsServer, reply: DnsReply, name: bytes, result: DnsResult
) -> None:
    dns.zone[REVERSE, "PTR"] = reply
    async with Harness(dns.address) as harness:
        assert await harness.name() == name
        assert harness.queries(DnsPurpose.PTR, result) == 1


A_OK, AAAA_OK = reply_with(address_record(CLIENT)), reply_with(address_record(CLIENT_6))


@pytest.mark.parametrize(
    ("a", "aaaa", "name", "result"),
    [
        (A_OK, EMPTY, b"mail.example.com", DnsResult.OK),  # a family without addresses is not a failure
        (EMPTY, EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
        (reply_with(address_record("192.0.2.7")), AAAA_OK, UNAVAILABLE, DnsResult.OK),
        (
            reply_with(address_record("192.0.2.7"), address_record(CLIENT)),
            AAAA_OK,
            b"mail.example.com",
            DnsResult.OK,
        ),
        (DnsReply(code=NXDOMAIN), DnsReply(code=NXDOMAIN), UNAVAILABLE, DnsResult.NXDOMAIN),
        (A_OK, DnsReply(code=NXDOMAIN), UNAVAILABLE, DnsResult.NXDOMAIN),  # the failure determines the result
        (A_OK, DnsReply(code=SERVFAIL), TEMPUNAVAIL, DnsResult.SERVFAIL),
        (DnsReply(code=NXDOMAIN), DnsReply(code=SERVFAIL), TEMPUNAVAIL, DnsResult.SERVFAIL),
        (A_OK, DnsReply(code=REFUSED), TEMPUNAVAIL, DnsResult.REFUSED),
        (DnsReply(code=FORMERR), AAAA_OK, TEMPUNAVAIL, DnsResult.INVALID),
        (reply_with(Record("TXT", b"\1x")), AAAA_OK, TEMPUNAVAIL, DnsResult.INVALID),
        (
            reply_with(cname_record("b.example"), address_record(CLIENT, owner="b.example")),
            EMPTY,
            b"mail.example.com",
            DnsResult.OK,
        ),
        (
            reply_with(cname_record("c.example")),
            EMPTY,
            b"mail.example.com",
            DnsResult.OK,
        ),  # the server did not resolve the alias
        (reply_with(cname_record("loop.example")), EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
        (reply_with(cname_record("gone.example")), EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
    ],
)
async def test_client_name_by_address_replies(
    dns: DnsServer, a: DnsReply, aaaa: DnsReply, name: bytes, result: DnsResult
) -> None:
    dns.zone[NAME, "A"], dns.zone[NAME, "AAAA"] = a, aaaa
    dns.zone["c.example", "A"] = A_OK
    dns.zone["loop.example", "A"] = reply_with(cname_record(NAME))
    async with Harness(dns.address) as harness:
        assert await harness.name() == name
        assert harness.queries(DnsPurpose.FORWARD, result) == 1
        assert harness.queries(DnsPurpose.PTR, DnsResult.OK) == 1


async def test_alias_chain_is_limited(dns: DnsServer) -> None:
    for link in range(60):
        dns.zone[f"n{link}.example", "A"] = reply_with(cname_record(f"n{link + 1}.example"))
    dns.zone[NAME, "A"], dns.zone[NAME, "AAAA"] = reply_with(cname_record("n0.example")), EMPTY
    async with Harness(dns.address) as harness:
        assert await harness.name() == UNAVAILABLE
    assert dns.query_types().count("A") == 51


@pytest.mark.parametrize(
    ("families", "address", "name"),
    [
        ({"ipv6": False}, CLIENT, b"mail.example.com"),
        ({"ipv6": False}, CLIENT_6, UNAVAILABLE),
        ({"ipv4": False}, CLIENT, UNAVAILABLE),
        ({"ipv4": False}, CLIENT_6, b"mail.example.com"),
    ],
)
async def test_disabled_address_family_is_not_queried(
    dns: DnsServer, families: dict[str, Any], address: str, name: bytes
) -> None:
    async with Harness(dns.address, **families) as harness:
        assert await harness.name(address) == name
    assert len(dns.queries) == 2


@pytest.mark.parametrize("question", [(REVERSE, "PTR"), (NAME, "A"), (NAME, "AAAA")])
async def test_lookup_ends_at_resolver_timeout(dns: DnsServer, question: tuple[str, str]) -> None:
    dns.zone[question] = SILENT
    purpose = DnsPurpose.PTR if question[1] == "PTR" else DnsPurpose.FORWARD
    async with Harness(dns.address, timeout=0.05) as harness:
        assert await harness.name() == TEMPUNAVAIL
        assert harness.metrics.dns_timeouts[purpose].value == 1
        assert harness.queries(purpose, DnsResult.TIMEOUT) == 1


async def test_zero_resolver_timeout_repeats_query_until_reply(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [SILENT, SILENT, reply_with(ptr_record(NAME))]
    async with Harness(dns.address, timeout=0) as harness:
        assert await harness.name() == b"mail.example.com"
    assert dns.query_types().count("PTR") == 3


async def test_reply_with_wrong_id_is_ignored(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [
        DnsReply((ptr_record("wrong.example"),), wrong_id=True),
        reply_with(ptr_record(NAME)),
    ]
    async with Harness(dns.address) as harness:
        assert await harness.name() == b"mail.example.com"


async def test_malformed_reply_is_retried_at_next_server(dns: DnsServer) -> None:
    async with dns_server() as other:
        other.zone[REVERSE, "PTR"] = DnsReply((ptr_record(NAME),), garbage=True)
        async with Harness(other.address, dns.address) as harness:
            assert await harness.name() == b"mail.example.com"
        assert (other.query_types()[0], dns.query_types()[0]) == ("PTR", "PTR")


async def test_truncated_reply_is_repeated_over_tcp(dns: DnsServer) -> None:
    dns.zone[NAME, "A"] = DnsReply((address_record(CLIENT),), truncated=True)
    dns.zone[REVERSE, "PTR"] = DnsReply((ptr_record(NAME),), truncated=True)
    async with Harness(dns.address) as harness:
        assert await harness.name() == b"mail.example.com"
    assert [kind for transport, _, kind in dns.queries if transport == "tcp"] == ["PTR", "A"]


async def test_cached_name_is_returned_at_once(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        await harness.name()
        names: list[bytes] = []
        harness.resolver.look_up(CLIENT, names.append)
        assert names == [b"mail.example.com"]
        assert harness.metrics.dns_cache[CacheResult.HIT].value == 2
        assert harness.metrics.dns_cache_entries.value == 2
    assert len(dns.queries) == 3
    assert harness.metrics.dns_cache_entries.value == 0


async def test_confirmation_is_cached_by_name(dns: DnsServer) -> None:
    dns.set_ptr("2.2.0.192.in-addr.arpa", ptr_record(NAME))
    async with Harness(dns.address) as harness:
        assert [await harness.name(), await harness.name("192.0.2.2")] == [b"mail.example.com", UNAVAILABLE]
    assert sorted(dns.query_types()) == ["A", "AAAA", "PTR", "PTR"]


async def test_expired_confirmation_is_repeated_with_cached_name(dns: DnsServer, clock: list[float]) -> None:
    dns.zone[NAME, "A"] = reply_with(address_record(CLIENT, ttl=0))
    async with Harness(dns.address, ipv6=False) as harness:
        for _ in range(3):
            assert await harness.name() == b"mail.example.com"
            clock[0] += 3
    assert dns.query_types() == ["PTR", "A", "A", "A"]


async def test_nxdomain_is_cached(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        assert [await harness.name("192.0.2.9") for _ in range(3)] == [UNAVAILABLE] * 3
        assert harness.metrics.dns_cache[CacheResult.NEGATIVE_HIT].value == 2
    assert len(dns.queries) == 1


async def test_servfail_is_not_cached(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [DnsReply(code=SERVFAIL), reply_with(ptr_record(NAME))]
    async with Harness(dns.address) as harness:
        assert [await harness.name(), await harness.name()] == [TEMPUNAVAIL, b"mail.example.com"]


async def test_valid_replaces_ttl(dns: DnsServer, clock: list[float]) -> None:
    dns.set_ptr(REVERSE, ptr_record(NAME, ttl=3600))
    dns.zone[NAME, "A"] = reply_with(address_record(CLIENT, ttl=0))
    async with Harness(dns.address, valid=Seconds(5.0), ipv6=False) as harness:
        for moment in (0, 4, 7, 9):
            clock[0] = 1000.0 + moment
            assert await harness.name() == b"mail.example.com"
    assert dns.query_types() == ["PTR", "A", "PTR", "A"]  # the library does not cache longer than that


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the cache; the event loop keeps the real one."""
    now = [1000.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr("mailproxy.dns.lookup.time", Clock)
    monkeypatch.setattr("mailproxy.dns.dns_client.time", Clock)
    return now


async def test_simultaneous_lookups_share_queries(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        names = await asyncio.gather(*(harness.name() for _ in range(20)))
    assert names == [b"mail.example.com"] * 20
    assert len(dns.queries) == 3


async def test_cancelled_lookup_is_not_called_back(dns: DnsServer) -> None:
    names: list[bytes] = []
    async with Harness(dns.address) as harness:
        cancel = harness.resolver.look_up(CLIENT, names.append)
        other = asyncio.create_task(harness.name())  # noqa: TID251 - owned by this test
        await dns.wait_for_queries(1)
        cancel()
        cancel()
        assert await other == b"mail.example.com"
    assert names == []


async def test_closing_resolver_ends_lookups_with_tempunavail(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = SILENT
    async with Harness(dns.address) as harness:
        names: list[bytes] = []
        harness.resolver.look_up(CLIENT, names.append)
        await dns.wait_for_queries(1)
    await asyncio.sleep(0)
    assert names == [TEMPUNAVAIL]


def test_dns_library_is_loaded_only_with_resolver() -> None:
    program = "import sys, mailproxy.dns; sys.exit(bool({'aiodns', 'pycares'} & set(sys.modules)))"
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 0


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6))
async def test_any_ptr_labels_give_name_or_tempunavail(labels: list[bytes]) -> None:
    allowed = set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
    async with dns_server() as dns:
        dns.set_ptr(REVERSE, ptr_record(labels))
        async with Harness(dns.address) as harness:
            name = await harness.name()
    is_host_name = bool(labels) and all(set(label) <= allowed for label in labels)
    assert name == (UNAVAILABLE if is_host_name else TEMPUNAVAIL)

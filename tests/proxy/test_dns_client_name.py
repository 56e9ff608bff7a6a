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
from mailproxy.telemetry.metrics import Meter
from mailproxy_config.model import ResolverConfig, Seconds
from support.dns_server import (
    FORMERR,
    NOTAUTH,
    NOTIMP,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    DnsServer,
    Record,
    Reply,
    client_name,
    cname,
    dns_server,
    found,
    host,
    ptr,
    wire,
)

REVERSE = "1.2.0.192.in-addr.arpa"
CLIENT = "192.0.2.1"
CLIENT_6 = "2001:db8::1"
REVERSE_6 = ".".join("1" + "0" * 23 + "8bd01002") + ".ip6.arpa"
NAME = "mail.example.com"
ALIASED = Record("PTR", wire(NAME), owner=wire("x.example"))
SILENT = Reply(silent=True)
EMPTY = Reply()
QUICK = RetryPolicy(first_timeout=0.25, rounds=1, pause=0.01)


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.answers_ptr(REVERSE, ptr(NAME))
        server.answers_ptr(REVERSE_6, ptr(NAME))
        server.zone[NAME, "A"] = found(host(CLIENT))
        server.zone[NAME, "AAAA"] = found(host(CLIENT_6))
        yield server


class Harness:
    """A resolver and its metrics."""

    def __init__(
        self, *addresses: str, timeout: float = 10.0, retry: RetryPolicy = QUICK, **config: Any
    ) -> None:
        self.config = ResolverConfig(addresses=addresses, **config)
        self.meter = Meter()
        self.resolver = Resolver(
            self.config, timeout=timeout, meter=self.meter, client=DnsClient(self.config, retry)
        )

    def queries(self, purpose: DnsPurpose, result: DnsResult) -> int:
        return self.meter.dns_queries[purpose, result].value

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
        ("2001:DB8:0::1", b"mail.example.com"),  # as a PROXY header may write it
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
    assert dns.asked[0] == ("udp", REVERSE, "PTR")
    assert sorted(dns.asked[1:]) == [("udp", NAME, "A"), ("udp", NAME, "AAAA")]
    assert {header[2:] for header in dns.headers} == {
        b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    }  # RD, no EDNS


@pytest.mark.parametrize(
    ("reply", "name", "result"),
    [
        (Reply(code=NXDOMAIN), UNAVAILABLE, DnsResult.NXDOMAIN),
        (EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
        (Reply(code=SERVFAIL), TEMPUNAVAIL, DnsResult.SERVFAIL),
        (Reply(code=NOTIMP), TEMPUNAVAIL, DnsResult.REFUSED),
        (Reply(code=REFUSED), TEMPUNAVAIL, DnsResult.REFUSED),
        (Reply(code=FORMERR), TEMPUNAVAIL, DnsResult.INVALID),
        (Reply(code=NOTAUTH), TEMPUNAVAIL, DnsResult.INVALID),
        (found(Record("TXT", b"\1x")), TEMPUNAVAIL, DnsResult.INVALID),
        (found(cname("other.example.com")), TEMPUNAVAIL, DnsResult.INVALID),
        (found(cname("x.example"), ALIASED), b"mail.example.com", DnsResult.OK),
        (found(ptr(NAME), ptr("second.example.com")), b"mail.example.com", DnsResult.OK),
        (found(ptr("second.example.com"), ptr(NAME)), UNAVAILABLE, DnsResult.OK),  # only the first counts
        (found(ptr("MAIL.Example.COM")), b"mail.example.com", DnsResult.OK),
        (found(ptr("")), TEMPUNAVAIL, DnsResult.INVALID),
        (found(ptr((b"ma\0il", b"example"))), TEMPUNAVAIL, DnsResult.INVALID),
        (found(ptr((b"mail\r\nX: y",))), TEMPUNAVAIL, DnsResult.INVALID),
        (found(ptr((b"mail_1", b"example"))), TEMPUNAVAIL, DnsResult.INVALID),
        (found(ptr((b"mail.example", b"com"))), TEMPUNAVAIL, DnsResult.INVALID),  # a dot within a label
        (found(ptr((b"m\xc3\xa4il", b"example"))), TEMPUNAVAIL, DnsResult.INVALID),
        (found(ptr((b"[UNAVAILABLE]",))), TEMPUNAVAIL, DnsResult.INVALID),  # not the placeholder
    ],
)  # fmt: skip
async def test_client_name_by_ptr_reply(dns: DnsServer, reply: Reply, name: bytes, result: DnsResult) -> None:
    dns.zone[REVERSE, "PTR"] = reply
    async with Harness(dns.address) as harness:
        assert await harness.name() == name
        assert harness.queries(DnsPurpose.PTR, result) == 1


A_OK, AAAA_OK = found(host(CLIENT)), found(host(CLIENT_6))


@pytest.mark.parametrize(
    ("a", "aaaa", "name", "result"),
    [
        (A_OK, EMPTY, b"mail.example.com", DnsResult.OK),  # an empty family is no failure
        (EMPTY, EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
        (found(host("192.0.2.7")), AAAA_OK, UNAVAILABLE, DnsResult.OK),
        (found(host("192.0.2.7"), host(CLIENT)), AAAA_OK, b"mail.example.com", DnsResult.OK),
        (Reply(code=NXDOMAIN), Reply(code=NXDOMAIN), UNAVAILABLE, DnsResult.NXDOMAIN),
        (A_OK, Reply(code=NXDOMAIN), UNAVAILABLE, DnsResult.NXDOMAIN),  # the failure decides
        (A_OK, Reply(code=SERVFAIL), TEMPUNAVAIL, DnsResult.SERVFAIL),
        (Reply(code=NXDOMAIN), Reply(code=SERVFAIL), TEMPUNAVAIL, DnsResult.SERVFAIL),
        (A_OK, Reply(code=REFUSED), TEMPUNAVAIL, DnsResult.REFUSED),
        (Reply(code=FORMERR), AAAA_OK, TEMPUNAVAIL, DnsResult.INVALID),
        (found(Record("TXT", b"\1x")), AAAA_OK, TEMPUNAVAIL, DnsResult.INVALID),
        (
            found(cname("b.example"), host(CLIENT, owner="b.example")),
            EMPTY,
            b"mail.example.com",
            DnsResult.OK,
        ),
        (found(cname("c.example")), EMPTY, b"mail.example.com", DnsResult.OK),  # the server did not follow it
        (found(cname("loop.example")), EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
        (found(cname("gone.example")), EMPTY, UNAVAILABLE, DnsResult.NXDOMAIN),
    ],
)
async def test_client_name_by_address_replies(
    dns: DnsServer, a: Reply, aaaa: Reply, name: bytes, result: DnsResult
) -> None:
    dns.zone[NAME, "A"], dns.zone[NAME, "AAAA"] = a, aaaa
    dns.zone["c.example", "A"] = A_OK
    dns.zone["loop.example", "A"] = found(cname(NAME))
    async with Harness(dns.address) as harness:
        assert await harness.name() == name
        assert harness.queries(DnsPurpose.FORWARD, result) == 1
        assert harness.queries(DnsPurpose.PTR, DnsResult.OK) == 1


async def test_alias_chain_is_limited(dns: DnsServer) -> None:
    for link in range(60):
        dns.zone[f"n{link}.example", "A"] = found(cname(f"n{link + 1}.example"))
    dns.zone[NAME, "A"], dns.zone[NAME, "AAAA"] = found(cname("n0.example")), EMPTY
    async with Harness(dns.address) as harness:
        assert await harness.name() == UNAVAILABLE
    assert dns.kinds().count("A") == 51


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
    assert len(dns.asked) == 2


@pytest.mark.parametrize("question", [(REVERSE, "PTR"), (NAME, "A"), (NAME, "AAAA")])
async def test_lookup_ends_at_resolver_timeout(dns: DnsServer, question: tuple[str, str]) -> None:
    dns.zone[question] = SILENT
    purpose = DnsPurpose.PTR if question[1] == "PTR" else DnsPurpose.FORWARD
    async with Harness(dns.address, timeout=0.05) as harness:
        assert await harness.name() == TEMPUNAVAIL
        assert harness.meter.dns_timeouts[purpose].value == 1
        assert harness.queries(purpose, DnsResult.TIMEOUT) == 1


async def test_zero_resolver_timeout_repeats_query_until_reply(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [SILENT, SILENT, found(ptr(NAME))]
    async with Harness(dns.address, timeout=0) as harness:
        assert await harness.name() == b"mail.example.com"
    assert dns.kinds().count("PTR") == 3


async def test_reply_with_wrong_id_is_ignored(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [Reply((ptr("wrong.example"),), wrong_id=True), found(ptr(NAME))]
    async with Harness(dns.address) as harness:
        assert await harness.name() == b"mail.example.com"


async def test_malformed_reply_is_retried_at_next_server(dns: DnsServer) -> None:
    async with dns_server() as other:
        other.zone[REVERSE, "PTR"] = Reply((ptr(NAME),), garbage=True)
        async with Harness(other.address, dns.address) as harness:
            assert await harness.name() == b"mail.example.com"
        assert (other.kinds()[0], dns.kinds()[0]) == ("PTR", "PTR")


async def test_truncated_reply_is_repeated_over_tcp(dns: DnsServer) -> None:
    dns.zone[NAME, "A"] = Reply((host(CLIENT),), truncated=True)
    dns.zone[REVERSE, "PTR"] = Reply((ptr(NAME),), truncated=True)
    async with Harness(dns.address) as harness:
        assert await harness.name() == b"mail.example.com"
    assert [kind for transport, _, kind in dns.asked if transport == "tcp"] == ["PTR", "A"]


async def test_cached_name_is_returned_at_once(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        await harness.name()
        names: list[bytes] = []
        harness.resolver.look_up(CLIENT, names.append)
        assert names == [b"mail.example.com"]
        assert harness.meter.dns_cache[CacheResult.HIT].value == 2
        assert harness.meter.dns_cache_entries.value == 2
    assert len(dns.asked) == 3
    assert harness.meter.dns_cache_entries.value == 0


async def test_confirmation_is_cached_by_name(dns: DnsServer) -> None:
    dns.answers_ptr("2.2.0.192.in-addr.arpa", ptr(NAME))
    async with Harness(dns.address) as harness:
        assert [await harness.name(), await harness.name("192.0.2.2")] == [b"mail.example.com", UNAVAILABLE]
    assert sorted(dns.kinds()) == ["A", "AAAA", "PTR", "PTR"]


async def test_expired_confirmation_is_repeated_with_cached_name(dns: DnsServer, clock: list[float]) -> None:
    dns.zone[NAME, "A"] = found(host(CLIENT, ttl=0))
    async with Harness(dns.address, ipv6=False) as harness:
        for _ in range(3):
            assert await harness.name() == b"mail.example.com"
            clock[0] += 3
    assert dns.kinds() == ["PTR", "A", "A", "A"]


async def test_nxdomain_is_cached(dns: DnsServer) -> None:
    async with Harness(dns.address) as harness:
        assert [await harness.name("192.0.2.9") for _ in range(3)] == [UNAVAILABLE] * 3
        assert harness.meter.dns_cache[CacheResult.NEGATIVE_HIT].value == 2
    assert len(dns.asked) == 1


async def test_servfail_is_not_cached(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [Reply(code=SERVFAIL), found(ptr(NAME))]
    async with Harness(dns.address) as harness:
        assert [await harness.name(), await harness.name()] == [TEMPUNAVAIL, b"mail.example.com"]


async def test_valid_replaces_ttl(dns: DnsServer, clock: list[float]) -> None:
    dns.answers_ptr(REVERSE, ptr(NAME, ttl=3600))
    dns.zone[NAME, "A"] = found(host(CLIENT, ttl=0))
    async with Harness(dns.address, valid=Seconds(5.0), ipv6=False) as harness:
        for moment in (0, 4, 7, 9):
            clock[0] = 1000.0 + moment
            assert await harness.name() == b"mail.example.com"
    assert dns.kinds() == ["PTR", "A", "PTR", "A"]  # the library does not cache longer than that


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
    assert len(dns.asked) == 3


async def test_cancelled_lookup_is_not_called_back(dns: DnsServer) -> None:
    names: list[bytes] = []
    async with Harness(dns.address) as harness:
        cancel = harness.resolver.look_up(CLIENT, names.append)
        other = asyncio.create_task(harness.name())  # noqa: TID251 - owned by this test
        await dns.was_asked(1)
        cancel()
        cancel()
        assert await other == b"mail.example.com"
    assert names == []


async def test_closing_resolver_ends_lookups_with_tempunavail(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = SILENT
    async with Harness(dns.address) as harness:
        names: list[bytes] = []
        harness.resolver.look_up(CLIENT, names.append)
        await dns.was_asked(1)
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
        dns.answers_ptr(REVERSE, ptr(labels))
        async with Harness(dns.address) as harness:
            name = await harness.name()
    is_host_name = bool(labels) and all(set(label) <= allowed for label in labels)
    assert name == (UNAVAILABLE if is_host_name else TEMPUNAVAIL)

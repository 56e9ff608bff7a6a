# SPDX-License-Identifier: Apache-2.0
"""Who a client is, asked of a name server that says what the test wants."""

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
    DnsServer,
    Record,
    Reply,
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
QUICK = RetryPolicy(first=0.25, rounds=1, pause=0.01)


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.answers_ptr(REVERSE, ptr(NAME))
        server.answers_ptr(REVERSE_6, ptr(NAME))
        server.zone[NAME, "A"] = found(host(CLIENT))
        server.zone[NAME, "AAAA"] = found(host(CLIENT_6))
        yield server


class Asking:
    """A resolver and its numbers."""

    def __init__(
        self, *addresses: str, timeout: float = 10.0, pace: RetryPolicy = QUICK, **config: Any
    ) -> None:
        self.config = ResolverConfig(addresses=addresses, **config)
        self.metrics = WorkerMetrics()
        self.resolver = Resolver(
            self.config, timeout=timeout, metrics=self.metrics, servers=DnsClient(self.config, pace)
        )

    def queries(self, purpose: DnsPurpose, result: DnsResult) -> int:
        return self.metrics.dns_queries[purpose, result].value

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.resolver.close()

    async def name(self, address: str = CLIENT) -> bytes:
        return await self.resolver.client_name(address)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (CLIENT, b"mail.example.com"),
        (CLIENT_6, b"mail.example.com"),
        ("2001:DB8:0::1", b"mail.example.com"),  # as a PROXY header may write it
        ("192.0.2.9", UNAVAILABLE),  # nobody knows this address
        ("::ffff:192.0.2.1", UNAVAILABLE),  # an IPv6 address with a reverse name of its own
        ("unix:", TEMPUNAVAIL),
        ("nonsense", TEMPUNAVAIL),
    ],
)
async def test_a_name_counts_when_it_leads_back_to_the_client(
    dns: DnsServer, address: str, name: bytes
) -> None:
    async with Asking(dns.address) as asking:
        assert await asking.name(address) == name


async def test_the_questions_are_those_of_nginx(dns: DnsServer) -> None:
    async with Asking(dns.address) as asking:
        await asking.name()
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
        (found(ptr((b"[UNAVAILABLE]",))), TEMPUNAVAIL, DnsResult.INVALID),  # must not pass for ours
    ],
)  # fmt: skip
async def test_what_the_reverse_answer_leads_to(
    dns: DnsServer, reply: Reply, name: bytes, result: DnsResult
) -> None:
    dns.zone[REVERSE, "PTR"] = reply
    async with Asking(dns.address) as asking:
        assert await asking.name() == name
        assert asking.queries(DnsPurpose.PTR, result) == 1


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
async def test_what_the_forward_answers_lead_to(
    dns: DnsServer, a: Reply, aaaa: Reply, name: bytes, result: DnsResult
) -> None:
    dns.zone[NAME, "A"], dns.zone[NAME, "AAAA"] = a, aaaa
    dns.zone["c.example", "A"] = A_OK
    dns.zone["loop.example", "A"] = found(cname(NAME))
    async with Asking(dns.address) as asking:
        assert await asking.name() == name
        assert asking.queries(DnsPurpose.FORWARD, result) == 1
        assert asking.queries(DnsPurpose.PTR, DnsResult.OK) == 1


async def test_a_chain_of_aliases_has_an_end(dns: DnsServer) -> None:
    for link in range(60):
        dns.zone[f"n{link}.example", "A"] = found(cname(f"n{link + 1}.example"))
    dns.zone[NAME, "A"], dns.zone[NAME, "AAAA"] = found(cname("n0.example")), EMPTY
    async with Asking(dns.address) as asking:
        assert await asking.name() == UNAVAILABLE
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
async def test_a_family_that_is_off_is_not_asked_for(
    dns: DnsServer, families: dict[str, Any], address: str, name: bytes
) -> None:
    async with Asking(dns.address, **families) as asking:
        assert await asking.name(address) == name
    assert len(dns.asked) == 2


@pytest.mark.parametrize("question", [(REVERSE, "PTR"), (NAME, "A"), (NAME, "AAAA")])
async def test_silence_ends_at_resolver_timeout(dns: DnsServer, question: tuple[str, str]) -> None:
    dns.zone[question] = SILENT
    purpose = DnsPurpose.PTR if question[1] == "PTR" else DnsPurpose.FORWARD
    async with Asking(dns.address, timeout=0.05) as asking:
        assert await asking.name() == TEMPUNAVAIL
        assert asking.metrics.dns_timeouts[purpose].value == 1
        assert asking.queries(purpose, DnsResult.TIMEOUT) == 1


async def test_without_a_limit_the_question_is_asked_until_there_is_an_answer(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [SILENT, SILENT, found(ptr(NAME))]
    async with Asking(dns.address, timeout=0) as asking:
        assert await asking.name() == b"mail.example.com"
    assert dns.kinds().count("PTR") == 3


async def test_an_answer_with_a_wrong_id_is_ignored(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [Reply((ptr("wrong.example"),), wrong_id=True), found(ptr(NAME))]
    async with Asking(dns.address) as asking:
        assert await asking.name() == b"mail.example.com"


async def test_a_malformed_answer_sends_us_to_the_next_server(dns: DnsServer) -> None:
    async with dns_server() as other:
        other.zone[REVERSE, "PTR"] = Reply((ptr(NAME),), garbage=True)
        async with Asking(other.address, dns.address) as asking:
            assert await asking.name() == b"mail.example.com"
        assert (other.kinds()[0], dns.kinds()[0]) == ("PTR", "PTR")


async def test_a_truncated_answer_is_fetched_over_tcp(dns: DnsServer) -> None:
    dns.zone[NAME, "A"] = Reply((host(CLIENT),), truncated=True)
    dns.zone[REVERSE, "PTR"] = Reply((ptr(NAME),), truncated=True)
    async with Asking(dns.address) as asking:
        assert await asking.name() == b"mail.example.com"
    assert [kind for transport, _, kind in dns.asked if transport == "tcp"] == ["PTR", "A"]


async def test_a_known_name_is_told_at_once(dns: DnsServer) -> None:
    async with Asking(dns.address) as asking:
        await asking.name()
        told: list[bytes] = []
        asking.resolver.look_up(CLIENT, told.append)
        assert told == [b"mail.example.com"]
        assert asking.metrics.dns_cache[CacheResult.HIT].value == 2
        assert asking.metrics.dns_cache_entries.value == 2
    assert len(dns.asked) == 3
    assert asking.metrics.dns_cache_entries.value == 0


async def test_a_name_is_confirmed_once_for_all_who_bear_it(dns: DnsServer) -> None:
    dns.answers_ptr("2.2.0.192.in-addr.arpa", ptr(NAME))
    async with Asking(dns.address) as asking:
        assert [await asking.name(), await asking.name("192.0.2.2")] == [b"mail.example.com", UNAVAILABLE]
    assert sorted(dns.kinds()) == ["A", "AAAA", "PTR", "PTR"]


async def test_a_name_outlives_its_confirmation(dns: DnsServer, clock: list[float]) -> None:
    dns.zone[NAME, "A"] = found(host(CLIENT, ttl=0))
    async with Asking(dns.address, ipv6=False) as asking:
        for _ in range(3):
            assert await asking.name() == b"mail.example.com"
            clock[0] += 3
    assert dns.kinds() == ["PTR", "A", "A", "A"]


async def test_that_there_is_no_name_is_remembered_too(dns: DnsServer) -> None:
    async with Asking(dns.address) as asking:
        assert [await asking.name("192.0.2.9") for _ in range(3)] == [UNAVAILABLE] * 3
        assert asking.metrics.dns_cache[CacheResult.NEGATIVE_HIT].value == 2
    assert len(dns.asked) == 1


async def test_a_passing_failure_is_not_remembered(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = [Reply(code=SERVFAIL), found(ptr(NAME))]
    async with Asking(dns.address) as asking:
        assert [await asking.name(), await asking.name()] == [TEMPUNAVAIL, b"mail.example.com"]


async def test_valid_replaces_the_ttl(dns: DnsServer, clock: list[float]) -> None:
    dns.answers_ptr(REVERSE, ptr(NAME, ttl=3600))
    dns.zone[NAME, "A"] = found(host(CLIENT, ttl=0))
    async with Asking(dns.address, valid=Seconds(5.0), ipv6=False) as asking:
        for moment in (0, 4, 7, 9):
            clock[0] = 1000.0 + moment
            assert await asking.name() == b"mail.example.com"
    assert dns.kinds() == ["PTR", "A", "PTR", "A"]  # nothing below remembers longer than that


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The resolver's own monotonic time; the loop keeps the real one."""
    now = [1000.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr("mailproxy.dns.cache.time", Clock)
    monkeypatch.setattr("mailproxy.dns.dns_client.time", Clock)
    return now


async def test_those_who_ask_the_same_share_one_question(dns: DnsServer) -> None:
    async with Asking(dns.address) as asking:
        names = await asyncio.gather(*(asking.name() for _ in range(20)))
    assert names == [b"mail.example.com"] * 20
    assert len(dns.asked) == 3


async def test_who_has_left_is_told_nothing(dns: DnsServer) -> None:
    told: list[bytes] = []
    async with Asking(dns.address) as asking:
        leave = asking.resolver.look_up(CLIENT, told.append)
        stays = asyncio.create_task(asking.name())  # noqa: TID251 - owned by this test
        await dns.was_asked(1)
        leave()
        leave()
        assert await stays == b"mail.example.com"
    assert told == []


async def test_closing_tells_everybody_that_there_is_no_name_for_now(dns: DnsServer) -> None:
    dns.zone[REVERSE, "PTR"] = SILENT
    async with Asking(dns.address) as asking:
        told: list[bytes] = []
        asking.resolver.look_up(CLIENT, told.append)
        await dns.was_asked(1)
    await asyncio.sleep(0)
    assert told == [TEMPUNAVAIL]


def test_the_dns_library_is_not_loaded_without_need() -> None:
    program = "import sys, mailproxy.dns; sys.exit(bool({'aiodns', 'pycares'} & set(sys.modules)))"
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 0


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6))
async def test_no_name_breaks_us(labels: list[bytes]) -> None:
    allowed = set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
    async with dns_server() as dns:
        dns.answers_ptr(REVERSE, ptr(labels))
        async with Asking(dns.address) as asking:
            name = await asking.name()
    is_host_name = bool(labels) and all(set(label) <= allowed for label in labels)
    assert name == (UNAVAILABLE if is_host_name else TEMPUNAVAIL)

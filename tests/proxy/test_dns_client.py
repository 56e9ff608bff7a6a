# SPDX-License-Identifier: Apache-2.0
"""DNS queries: choice of server, repetition, limits, and the names in them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiodns
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.dns import dns_client
from mailproxy.dns.dns_client import DnsClient, DnsError, RetryPolicy, host_name, reverse_name, system_servers
from mailproxy.enums import DnsResult
from mailproxy_config.model import ResolverConfig
from support.dns_server import (
    NXDOMAIN,
    SERVFAIL,
    DnsReply,
    DnsServer,
    address_record,
    dns_server,
    free_port,
    ptr_record,
    reply_with,
)

QUICK = RetryPolicy(first_timeout=0.25, rounds=1, pause=0.01)
ANY = reply_with(address_record("192.0.2.1", ttl=3600))
SILENT = DnsReply(silent=True)


@pytest.fixture
async def three() -> AsyncIterator[list[DnsServer]]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(dns_server()) for _ in range(3)]
        for server in servers:
            server.default_reply = ANY
        yield servers


def servers_for(*servers: DnsServer | str, retry: RetryPolicy = QUICK) -> DnsClient:
    addresses = tuple(server if isinstance(server, str) else server.address for server in servers)
    return DnsClient(ResolverConfig(addresses=addresses), retry)


async def ask(servers: DnsClient, name: str) -> list[str]:
    records = await servers.query(name, "A", servers.next_server())
    return [getattr(record.data, "addr", "") for record in records]


def counts(servers: list[DnsServer]) -> list[int]:
    return [len(server.queries) for server in servers]


async def test_each_lookup_starts_with_next_server(three: list[DnsServer]) -> None:
    servers = servers_for(*three)
    seen = []
    for number in range(6):
        await ask(servers, f"n{number}.example")
        seen.append(counts(three))
    await servers.close()
    assert seen == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]


async def test_queries_of_one_lookup_go_to_one_server(three: list[DnsServer]) -> None:
    servers = servers_for(*three)
    turn = servers.next_server() + servers.next_server()
    await asyncio.gather(*(servers.query("a.example", kind, turn) for kind in ("A", "AAAA")))
    await servers.close()
    assert counts(three) == [0, 2, 0]


async def test_query_without_reply_is_repeated_at_next_server(three: list[DnsServer]) -> None:
    three[0].default_reply = SILENT
    servers = servers_for(*three)
    assert await ask(servers, "a.example") == ["192.0.2.1"]
    await servers.close()
    assert counts(three) == [1, 1, 0]


async def test_query_without_reply_is_repeated_without_end(three: list[DnsServer]) -> None:
    three[0].default_reply = SILENT
    servers = servers_for(three[0])
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask(servers, "a.example"))
        await three[0].wait_for_queries(3)
        three[0].default_reply = ANY
        assert await asking == ["192.0.2.1"]
    await servers.close()


async def test_unreachable_server_is_skipped(three: list[DnsServer]) -> None:
    servers = servers_for(f"127.0.0.1:{free_port()}", three[0])
    assert await ask(servers, "a.example") == ["192.0.2.1"]
    await servers.close()


async def test_attempts_continue_while_no_server_is_reachable() -> None:
    port = free_port()
    servers = servers_for(f"127.0.0.1:{port}")
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask(servers, "a.example"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        async with dns_server(port=port) as late:
            late.default_reply = ANY
            assert await asking == ["192.0.2.1"]
    await servers.close()


async def test_servfail_is_not_repeated_at_other_servers(three: list[DnsServer]) -> None:
    three[0].default_reply = DnsReply(code=SERVFAIL)
    servers = servers_for(*three)
    with pytest.raises(DnsError) as failed:
        await ask(servers, "a.example")
    await servers.close()
    assert failed.value.result is DnsResult.SERVFAIL
    assert counts(three) == [1, 0, 0]


async def test_unusable_replies_of_all_servers_are_invalid(three: list[DnsServer]) -> None:
    for server in three:
        server.default_reply = DnsReply(code=9)
    servers = servers_for(*three)
    with pytest.raises(DnsError) as failed:
        await ask(servers, "a.example")
    await servers.close()
    assert failed.value.result is DnsResult.INVALID
    assert counts(three) == [1, 1, 1]


async def test_server_host_name_means_all_its_addresses(
    three: list[DnsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(name: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert name == "ns.example"
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port)) for address in answers]

    answers = ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    servers = servers_for(f"ns.example:{three[0].port}")
    for number in range(3):
        await ask(servers, f"n{number}.example")
    answers.clear()  # resolved only once
    await ask(servers, "again.example")
    await servers.close()
    assert len(three[0].queries) == 4


async def test_unresolved_server_host_name_is_retried(
    three: list[DnsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def lookup(_name: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "later")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    servers = servers_for(f"ns.example:{three[0].port}")
    found_by = await asyncio.gather(*(ask(servers, f"n{number}.example") for number in range(5)))
    await servers.close()
    assert found_by == [["192.0.2.1"]] * 5
    assert tries == 3


async def test_resolver_system_uses_resolv_conf(
    three: list[DnsServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_client, "DNS_PORT", three[1].port)
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("search example\nnameserver 127.0.0.1\n")
    servers = DnsClient(ResolverConfig(system=True), QUICK, resolv_conf=resolv_conf)
    assert await ask(servers, "a") == ["192.0.2.1"]
    await servers.close()
    assert three[1].queries == [("udp", "a", "A")]  # the search list is not used


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", ("192.0.2.1:53", "[2001:db8::1]:53")),
        ("# nameserver 192.0.2.1\noptions rotate\n", ("127.0.0.1:53",)),
        ("nameserver\nnameserver ns.example\nnameserver\t192.0.2.1  \n", ("192.0.2.1:53",)),
        ("nameserver fe80::1%eth0\n", ("[fe80::1%eth0]:53",)),
        ("", ("127.0.0.1:53",)),
    ],
)
def test_system_servers_are_nameserver_lines(tmp_path: Path, text: str, servers: tuple[str, ...]) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(text)
    assert system_servers(resolv_conf) == servers
    assert system_servers(tmp_path / "absent") == ("127.0.0.1:53",)


@pytest.mark.parametrize("reply", [ANY, DnsReply(code=NXDOMAIN), DnsReply()])
async def test_dns_library_does_not_cache(three: list[DnsServer], reply: DnsReply) -> None:
    three[0].default_reply = reply
    servers = servers_for(three[0])
    for _ in range(3):
        with suppress(DnsError):
            await ask(servers, "again.example")
    await servers.close()
    assert len(three[0].queries) == 3


async def test_dns_library_cache_is_limited(three: list[DnsServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_client, "MAX_CACHED", 4)
    created: list[aiodns.DNSResolver] = []
    create = aiodns.DNSResolver

    def count(*arguments: Any, **options: Any) -> aiodns.DNSResolver:
        created.append(create(*arguments, **options))
        return created[-1]

    monkeypatch.setattr(aiodns, "DNSResolver", count)
    servers = servers_for(three[0])
    for number in range(9):
        await ask(servers, f"n{number}.example")
    await servers.close()
    assert len(created) == 3


async def test_abandoned_queries_count_towards_limit(
    three: list[DnsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_client, "MAX_QUERIES", 2)
    three[0].default_reply = SILENT
    servers = servers_for(three[0], retry=RetryPolicy(first_timeout=5.0))
    for number in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await ask(servers, f"n{number}.example")
    with pytest.raises(DnsError) as failed:
        await ask(servers, "one-too-many.example")
    await servers.close()
    assert failed.value.result is DnsResult.INVALID
    assert len(three[0].queries) == 2


async def test_closing_dns_client_ends_queries(three: list[DnsServer]) -> None:
    three[0].default_reply = SILENT
    servers = servers_for(three[0])
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(failure(servers, "a.example"))
        await three[0].wait_for_queries(1)
        await servers.close()
        assert await asking is DnsResult.INVALID


async def failure(servers: DnsClient, name: str) -> DnsResult:
    with pytest.raises(DnsError) as failed:
        await ask(servers, name)
    return failed.value.result


async def test_server_may_have_ipv6_address() -> None:
    async with dns_server("::1") as server:
        server.default_reply = reply_with(ptr_record("a.example"))
        servers = servers_for(server)
        records = await servers.query("x.ip6.arpa", "PTR", servers.next_server())
        await servers.close()
    assert len(records) == 1
    assert server.address.startswith("[::1]:")


async def test_default_port_is_53() -> None:
    assert await dns_client.servers_of("192.0.2.53") == ["192.0.2.53:53"]
    assert await dns_client.servers_of("[2001:db8::53]") == ["[2001:db8::53]:53"]


@given(st.ip_addresses())
def test_reverse_name_is_reverse_pointer(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert reverse_name(address.packed) == address.reverse_pointer


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("mail.example.com", b"mail.example.com"),
        ("MAIL.example.com.", b"mail.example.com"),
        (b"mail-1.example", b"mail-1.example"),
        ("1.2.3.4", b"1.2.3.4"),
        ("", None),
        (".", None),
        ("a b", None),
        ("a_b", None),
        ("a\\.b", None),
        ("a\\010b", None),
        ("a\n", None),
        ("mäil", None),
        (b"m\xe4il", None),
        ("[UNAVAILABLE]", None),
    ],
)
def test_host_name_accepts_only_plain_names(name: str | bytes, host: bytes | None) -> None:
    assert host_name(name) == host

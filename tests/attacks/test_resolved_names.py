# SPDX-License-Identifier: Apache-2.0
"""Host names from a client's DNS: invalid ones reach neither authentication service nor upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest

from mailproxy_config.model import Protocol, ResolverConfig, Seconds
from support.checked_worker import DENIED, LOGINS, checked_worker, read_until_closed, server_builder
from support.dns_server import (
    DnsReply,
    DnsServer,
    Record,
    address_record,
    cname_record,
    dns_server,
    ptr_record,
    reply_with,
)
from support.loopback_worker import GRANT, Builder, LoopbackWorker, Peer, http_response, run

REVERSE: Final = "1.0.0.127.in-addr.arpa"
MARK: Final = b"INJECTED"
HOSTILE: Final[dict[str, Sequence[bytes]]] = {
    "a line": [b"mx\r\nAuth-Status: " + MARK, b"example"],
    "a line feed": [b"mx\n" + MARK, b"example"],
    "NUL": [b"mx\0" + MARK, b"example"],
    "a space": [b"mx LOGIN=" + MARK, b"example"],
    "an attribute": [b"mx", b"example ADDR=10.0.0.1"],
    "a dot in a label": [b"mx." + MARK, b"example"],
    "a backslash": [b"mx\\013" + MARK, b"example"],
    "eight bits": [b"m\xff\xfe" + MARK, b"example"],
    "an underscore": [b"mx_" + MARK, b"example"],
    "a plus sign": [b"mx+0D+0A" + MARK, b"example"],
    "a per cent sign": [b"mx%0d%0a" + MARK, b"example"],
    "brackets": [b"[UNAVAILABLE]" + MARK],
    "a tab": [b"mx\t" + MARK, b"example"],
    "DEL": [b"mx\x7f" + MARK, b"example"],
    "nothing": [],
}


async def introduced(w: LoopbackWorker) -> tuple[bytes, Peer]:
    """Log in, and return the request and the upstream connection."""
    client = await w.client()
    await client.read_line()
    await client.send(LOGINS[Protocol.SMTP])
    upstream = await w.upstream.accept()
    return w.auth.requests[-1], upstream


def named(server: DnsServer, **more: Any) -> Builder:
    resolver = ResolverConfig(addresses=(server.address,), ipv6=False)
    return server_builder(Protocol.SMTP, None, resolver=resolver, xclient=True, **more)


@pytest.mark.parametrize("labels", HOSTILE.values(), ids=HOSTILE)
def test_invalid_host_name_is_not_passed_on(labels: Sequence[bytes]) -> None:
    async def play() -> None:
        async with dns_server() as names:
            names.set_ptr(REVERSE, ptr_record(labels))
            names.default_reply = reply_with(address_record("127.0.0.1"))
            async with checked_worker(named(names), http_response(GRANT)) as w:
                request, upstream = await introduced(w)
                assert request.count(b"\r\nClient-Host: [TEMPUNAVAIL]\r\n") == 1
                assert MARK not in request
                await upstream.exchange(b"220 x\r\n")
                assert (
                    await upstream.exchange(b"250 x\r\n")
                    == b"XCLIENT ADDR=127.0.0.1 LOGIN=alice NAME=[TEMPUNAVAIL]\r\n"
                )

    run(play)


UNCONFIRMED: Final = {
    "somebody else's name": (reply_with(address_record("192.0.2.1")), b"[UNAVAILABLE]"),
    "a thousand addresses": (
        reply_with(*(address_record(f"10.0.{n // 250}.{n % 250 + 1}") for n in range(400))),
        b"[",
    ),
    "a name that leads in circles": (reply_with(cname_record("mx.example")), b"["),
    "no name at all": (DnsReply(code=3), b"[UNAVAILABLE]"),
    "nothing": (DnsReply(), b"[UNAVAILABLE]"),
    "garbage": (DnsReply(garbage=True), b"["),
    "an answer to somebody else": (DnsReply(wrong_id=True), b"[TEMPUNAVAIL]"),
    "silence": (DnsReply(silent=True), b"[TEMPUNAVAIL]"),
    "an address of the wrong size": (reply_with(Record("A", b"abc")), b"["),
}


@pytest.mark.parametrize(("reply", "placeholder"), UNCONFIRMED.values(), ids=UNCONFIRMED)
def test_host_name_without_forward_confirmation_is_not_passed_on(reply: DnsReply, placeholder: bytes) -> None:
    async def play() -> None:
        async with dns_server() as names:
            names.set_ptr(REVERSE, ptr_record("mx.example"))
            names.default_reply = reply
            async with checked_worker(named(names, resolver_timeout=Seconds(0.5)), http_response(GRANT)) as w:
                request, _ = await introduced(w)
                assert b"mx.example" not in request
                assert b"\r\nClient-Host: " + placeholder in request

    run(play)


def test_chain_of_aliases_is_limited() -> None:
    async def play() -> None:
        async with dns_server() as names:
            names.set_ptr(REVERSE, ptr_record("n0.example"))
            for number in range(100):
                names.zone[f"n{number}.example", "A"] = reply_with(cname_record(f"n{number + 1}.example"))
            async with checked_worker(named(names), DENIED) as w:
                client = await w.client()
                await client.read_line()
                await client.send(LOGINS[Protocol.SMTP])
                await read_until_closed(client)
                assert b"\r\nClient-Host: [" in w.auth.requests[0]
                assert len(names.queries) < 60

    run(play)


def test_clients_that_leave_during_the_lookup_leave_nothing() -> None:
    async def play() -> None:
        async with dns_server() as names:
            names.default_reply = DnsReply(silent=True)
            async with checked_worker(named(names, resolver_timeout=Seconds(0.5))) as w:
                clients = [await w.client() for _ in range(10)]
                await names.wait_for_queries(1)
                for client in clients:
                    client.reset()
                await w.wait_for_sessions()
                await asyncio.sleep(0.6)

    run(play)


def test_concurrent_lookups_of_one_address_send_one_query() -> None:
    async def play() -> None:
        async with dns_server() as names:
            names.set_ptr(REVERSE, ptr_record("mx.example"))
            names.zone["mx.example", "A"] = reply_with(address_record("127.0.0.1"))
            async with checked_worker(named(names)) as w:
                clients = [await w.client() for _ in range(100)]
                for client in clients:
                    assert (await client.read_line()).startswith(b"220 ")
                assert len(names.queries) == 2

    run(play)

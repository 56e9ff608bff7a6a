# SPDX-License-Identifier: Apache-2.0
"""Upstreams are asked for their capabilities, and clients get what all of them have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mailproxy.net.listen_plan import plan_sockets
from mailproxy.protocols.types import Client
from mailproxy.session import upstream_capabilities
from mailproxy.session.upstream_capabilities import MAX_UPSTREAMS, UpstreamCapabilities
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.tls.upstream_context import Peer as UpstreamPeer
from mailproxy_config.capability_choice import CapabilitiesFrom
from mailproxy_config.model import LogLevel, Protocol, ProxySsl, SendProxyProtocol
from mailproxy_config.upstream_groups import GroupServer, UpstreamGroup, UpstreamSettings
from support.configs import server
from support.loopback_worker import (
    GRANT,
    Builder,
    LoopbackWorker,
    Peer,
    http_response,
    listening_socket,
    loopback_worker,
    run,
)
from support.tls_authority import Authority
from support.upstream_tls import Connection, accept_login, mail_server, server_context

LOCAL_V2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def proxy(protocol: Protocol = Protocol.IMAP, **directives: Any) -> Builder:
    """Build a server whose clients get the capabilities of upstreams."""
    source = {f"{protocol.value}_capabilities_from": CapabilitiesFrom.UPSTREAM, "error_log": LogLevel.INFO}
    return lambda auth, listen: server(protocol, auth_http=auth, listen=(listen,), **source, **directives)


async def offered(w: LoopbackWorker) -> str:
    """Return the capabilities that a new client gets."""
    client = await w.client()
    await client.read_line()
    if w.config.servers[0].protocol is Protocol.SMTP:
        await client.send(b"EHLO me.example\r\n")
        lines = [await client.read_line()]
        while lines[-1].startswith(b"250-"):
            lines.append(await client.read_line())
        client.close()
        return ",".join(line[4:].decode().strip() for line in lines[1:])
    line = await client.exchange(b"a CAPABILITY\r\n")
    client.close()
    return line.decode().removeprefix("* CAPABILITY ").strip()


async def log_in(w: LoopbackWorker) -> Peer:
    """Log in at an IMAP upstream, and return the client."""
    client = await w.client()
    await client.read_line()
    await client.send(b"a LOGIN u p\r\n")
    upstream = await w.upstream.accept()
    await upstream.send(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
    await upstream.read_lines(3)
    await upstream.send(b"a OK in\r\n")
    assert await client.read_line() == b"a OK in\r\n"
    return client


async def answer_probe(w: LoopbackWorker, words: bytes, preamble: bytes = b"") -> None:
    """Be an IMAP upstream that is asked for its capabilities."""
    probe = await w.upstream.accept()
    assert await probe.read_bytes(len(preamble)) == preamble
    assert await probe.exchange(b"* OK ready\r\n") == b"x2 CAPABILITY\r\n"
    assert await probe.exchange(b"* CAPABILITY " + words + b"\r\nx2 OK\r\n") == b"x0 LOGOUT\r\n"
    await probe.send(b"* BYE\r\nx0 OK\r\n")
    assert await probe.read_to_eof() == b""


async def until(w: LoopbackWorker, expected: str) -> None:
    """Wait until new clients get these capabilities."""
    while await offered(w) != expected:
        await asyncio.sleep(0.01)


def with_worker(
    test: Callable[[LoopbackWorker], Awaitable[None]], build: Builder, grant: str = GRANT
) -> None:
    """Run a test with a worker."""

    async def whole() -> None:
        async with loopback_worker(build, http_response(grant)) as w:
            await test(w)

    run(whole)


def test_clients_get_upstream_capabilities_after_first_login() -> None:
    async def test(w: LoopbackWorker) -> None:
        assert await offered(w) == "IMAP4rev1 IDLE LITERAL+ ENABLE AUTH=PLAIN"
        client = await log_in(w)
        await answer_probe(w, b"IMAP4rev1 IDLE STARTTLS AUTH=GSSAPI XAPPLE")
        await until(w, "IMAP4rev1 IDLE AUTH=PLAIN")
        assert 'capabilities_announced protocol=imap capabilities="IMAP4rev1, IDLE"' in w.read_log()
        client.close()

    with_worker(test, proxy(imap_capabilities=("IMAP4rev1", "IDLE", "LITERAL+", "ENABLE")))


@pytest.mark.parametrize(
    ("version", "header"),
    [(SendProxyProtocol.V1, b"PROXY UNKNOWN\r\n"), (SendProxyProtocol.V2, LOCAL_V2)],
)
def test_probe_sends_proxy_header_without_addresses(version: SendProxyProtocol, header: bytes) -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await w.client()
        await client.read_line()
        await client.send(b"a LOGIN u p\r\n")
        upstream = await w.upstream.accept()
        await upstream.send(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
        while not (await upstream.read_line()).startswith(b"p\r"):
            pass
        await upstream.send(b"a OK in\r\n")
        await answer_probe(w, b"IMAP4rev1", header)
        await until(w, "IMAP4rev1 AUTH=PLAIN")

    with_worker(test, proxy(proxy_protocol=version))


def test_upstream_of_a_group_is_asked_with_the_directives_of_the_group() -> None:
    settings = UpstreamSettings(proxy_protocol=SendProxyProtocol.V2)
    address = GroupServer(address="127.0.0.1", host="127.0.0.1")
    group = UpstreamGroup(name="new", servers=(address,), settings=settings)
    grant = "Auth-Status: OK\r\nAuth-Server-Group: new\r\nAuth-Port: {port}\r\n"

    async def test(w: LoopbackWorker) -> None:
        client = await w.client()
        await client.read_line()
        await client.send(b"a LOGIN u p\r\n")
        upstream = await w.upstream.accept()
        await upstream.read_bytes(28)  # a header of version 2 with two IPv4 addresses
        await upstream.send(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
        await upstream.read_lines(3)
        await upstream.send(b"a OK in\r\n")
        await answer_probe(w, b"IMAP4rev1 IDLE", LOCAL_V2)
        await until(w, "IMAP4rev1 IDLE AUTH=PLAIN")
        sock = listening_socket()
        w.port = sock.getsockname()[1]
        key = plan_sockets(w.config, {})[0].key
        await w.app.apply(w.config, {key: [sock]}, names={}, ticket_keys={})
        assert await offered(w) == "IMAP4rev1 IDLE AUTH=PLAIN"
        await answer_probe(w, b"IMAP4rev1", LOCAL_V2)
        await until(w, "IMAP4rev1 AUTH=PLAIN")

    capabilities = ("IMAP4rev1", "IDLE", "LITERAL+")
    with_worker(test, proxy(imap_capabilities=capabilities, upstream_groups=(group,)), grant)


def test_smtp_probe_reads_extensions() -> None:
    async def test(w: LoopbackWorker) -> None:
        assert await offered(w) == "AUTH PLAIN LOGIN"
        client = await w.client()
        await client.read_line()
        await client.send(b"AUTH PLAIN AHUAcA==\r\n")
        upstream = await w.upstream.accept()
        assert await upstream.exchange(b"220 mx\r\n") == b"HELO mail.example.com\r\n"
        await upstream.send(b"250 mx\r\n")
        assert await client.read_line() == b"235 2.0.0 OK\r\n"
        probe = await w.upstream.accept()
        assert await probe.exchange(b"220 mx\r\n") == b"EHLO mail.example.com\r\n"
        reply = b"250-mx\r\n250-SIZE 10240000\r\n250-XCLIENT ADDR\r\n250-AUTH PLAIN\r\n250 CHUNKING\r\n"
        assert await probe.exchange(reply) == b"QUIT\r\n"
        probe.close()
        await until(w, "SIZE 10240000,CHUNKING,AUTH PLAIN LOGIN")

    with_worker(test, proxy(Protocol.SMTP, xclient=False))


@pytest.mark.parametrize("mode", [ProxySsl.ENABLED, ProxySsl.STARTTLS])
def test_probe_uses_tls_of_the_server(mode: ProxySsl, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue(names=("mail.example.com",))

    def session(c: Connection) -> None:
        if mode is ProxySsl.STARTTLS:
            c.send(b"* OK [CAPABILITY IMAP4rev1 IDLE STARTTLS] ready\r\n")
            c.answer(b"x1 OK\r\n")
        c.start_tls()
        if mode is ProxySsl.ENABLED:
            c.send(b"* OK ready\r\n")
        if len(upstream.connections) == 1:
            accept_login(Protocol.IMAP)(c)
        else:
            c.answer(b"* CAPABILITY IMAP4rev1\r\nx2 OK\r\n")
            c.answer(b"* BYE\r\n")

    with mail_server(session, server_context(issued)) as upstream:

        async def test(w: LoopbackWorker) -> None:
            client = await w.client()
            await client.read_line()
            assert await client.exchange(b"a LOGIN u p\r\n") == b"a OK logged in\r\n"
            await until(w, "IMAP4rev1 AUTH=PLAIN")
            probe = upstream.connections[1]
            assert bytes(probe.secure) == b"x2 CAPABILITY\r\nx0 LOGOUT\r\n"
            assert bytes(probe.clear) == (b"x1 STARTTLS\r\n" if mode is ProxySsl.STARTTLS else b"")
            assert upstream.failures == []

        with_worker(
            test,
            proxy(
                proxy_ssl=mode,
                proxy_ssl_name="mail.example.com",
                proxy_ssl_trusted_certificate=authority.file,
            ),
            GRANT.format(port=upstream.port),
        )


@pytest.mark.parametrize(
    ("greeting", "response", "reason"),
    [
        (b"* BYE no\r\n", b"", "upstream refused at greeting"),
        (b"* OK\r\n", b"x2 BAD what\r\n", "neither IMAP4rev1 nor IMAP4rev2"),
        (b"* OK\r\n", b"* CAPABILITY " + b"A " * 5000, "too long"),
        (b"* OK\r\n", b"", "closed the connection"),
    ],
)
def test_failed_probe_leaves_what_is_configured(greeting: bytes, response: bytes, reason: str) -> None:
    async def test(w: LoopbackWorker) -> None:
        await log_in(w)
        probe = await w.upstream.accept()
        await probe.send(greeting)
        if response or greeting.startswith(b"* OK"):
            await probe.read_line()
            await probe.send(response)
        probe.close()
        log = ""
        while "capabilities_unknown" not in log:
            await asyncio.sleep(0.01)
            log += w.read_log()
        assert reason in log
        assert f"upstream=127.0.0.1:{w.upstream.port}" in log
        assert await offered(w) == "IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN"
        await log_in(w)  # no second probe yet
        await asyncio.sleep(0.05)
        assert w.upstream.accepted.empty()

    with_worker(test, proxy())


def test_upstream_that_is_silent_ends_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_capabilities, "PROBE_SECONDS", 0.1)

    async def test(w: LoopbackWorker) -> None:
        await log_in(w)
        probe = await w.upstream.accept()
        assert await probe.read_to_eof() == b""
        assert 'reason="upstream timed out"' in w.read_log()

    with_worker(test, proxy())


def test_old_response_is_used_until_the_next_one() -> None:
    async def test(w: LoopbackWorker) -> None:
        await log_in(w)
        await answer_probe(w, b"IMAP4rev1")
        await until(w, "IMAP4rev1 AUTH=PLAIN")
        source = capabilities_of(w)
        make_old(source)
        assert await offered(w) == "IMAP4rev1 AUTH=PLAIN"
        await answer_probe(w, b"IMAP4rev1 UIDPLUS")
        await until(w, "IMAP4rev1 UIDPLUS AUTH=PLAIN")

    with_worker(test, proxy())


def test_reload_keeps_what_is_known_and_asks_again() -> None:
    async def test(w: LoopbackWorker) -> None:
        await log_in(w)
        await answer_probe(w, b"IMAP4rev1 IDLE")
        await until(w, "IMAP4rev1 AUTH=PLAIN")
        only = w.config.servers[0]
        config = replace(w.config, servers=(replace(only, imap_capabilities=("IMAP4rev1", "IDLE", "MOVE")),))
        sock = listening_socket()
        w.port = sock.getsockname()[1]
        await w.app.apply(config, {plan_sockets(config, {})[0].key: [sock]}, names={}, ticket_keys={})
        assert await offered(w) == "IMAP4rev1 IDLE AUTH=PLAIN"
        await answer_probe(w, b"IMAP4rev1 MOVE")
        await until(w, "IMAP4rev1 MOVE AUTH=PLAIN")

    with_worker(test, proxy())


def test_ninth_upstream_takes_the_place_of_an_unused_one() -> None:
    async def test(w: LoopbackWorker) -> None:
        source = capabilities_of(w)
        peers = [UpstreamPeer(f"127.0.0.{number}", 1) for number in range(1, MAX_UPSTREAMS + 3)]
        for peer in peers[:-1]:
            source._learn(peer, "")
        assert list(source._known) == peers[:-2], "eight are in use: the ninth is not asked"
        source._known[peers[0]].used -= upstream_capabilities.REFRESH_SECONDS
        source._learn(peers[-1], "")
        assert list(source._known) == [*peers[1:-2], peers[-1]]

    with_worker(test, proxy())


def test_upstream_without_logins_that_fails_does_not_count() -> None:
    async def test(w: LoopbackWorker) -> None:
        await log_in(w)
        await answer_probe(w, b"IMAP4rev1 UIDPLUS")
        await until(w, "IMAP4rev1 UIDPLUS AUTH=PLAIN")
        source = capabilities_of(w)
        gone = UpstreamPeer("127.0.0.1", 1)
        source._known[gone] = upstream_capabilities._Known(offer=frozenset({"IMAP4REV1"}))
        source._announce()
        assert await offered(w) == "IMAP4rev1 AUTH=PLAIN"
        source._due = 0.0
        await until(w, "IMAP4rev1 UIDPLUS AUTH=PLAIN")

    with_worker(test, proxy())


def test_server_without_the_directive_makes_frontends_as_before() -> None:
    async def test(w: LoopbackWorker) -> None:
        virtual: VirtualServer = w.app._servers["imap"]
        assert virtual.capabilities is None
        assert isinstance(virtual.frontend(Client("")), object)
        assert type(virtual.frontend).__name__ == "partial"
        assert type(virtual.upstream_end).__name__ == "type"

    with_worker(test, lambda auth, listen: server(Protocol.IMAP, auth_http=auth, listen=(listen,)))


def capabilities_of(w: LoopbackWorker) -> UpstreamCapabilities:
    """Return what the worker's server knows about upstreams."""
    source: UpstreamCapabilities | None = w.app._servers[w.config.servers[0].name].capabilities
    assert source is not None
    return source


def make_old(source: UpstreamCapabilities) -> None:
    """Let the time pass after which upstreams are asked again."""
    for known in source._known.values():
        known.due = 0.0
    source._due = 0.0

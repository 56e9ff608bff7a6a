# SPDX-License-Identifier: Apache-2.0
"""Logins at an upstream that the authentication service gives a name of (``auth_http_server_names``)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from mailproxy.dns import upstream_names
from mailproxy.enums import UpstreamStage, UpstreamTlsFailure
from mailproxy.tls.upstream_context import Peer as TlsPeer
from mailproxy.tls.upstream_context import build
from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    NextUpstream,
    Protocol,
    ProxySsl,
    ResolverConfig,
    Seconds,
    ServerConfig,
)
from support.candidates import refused_addresses, tries
from support.configs import server
from support.dns_server import SERVFAIL, DnsReply, DnsServer, address_record, dns_server, reply_with
from support.loopback_worker import (
    Builder,
    LoopbackWorker,
    Peer,
    Response,
    http_response,
    loopback_worker,
    run,
)
from support.tls_authority import Authority
from support.upstream_tls import Connection, mail_server, server_context, session

PROTOCOLS: Final = tuple(Protocol)
NAME: Final = "dovecot-0.dovecot.mail.example"
LOGINS: Final = {
    Protocol.IMAP: (b"a LOGIN alice secret\r\n",),
    Protocol.POP3: (b"USER alice\r\n", b"PASS secret\r\n"),
    Protocol.SMTP: (b"HELO me.example\r\n", b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n"),
}
SUCCESS: Final = {
    Protocol.IMAP: b"a OK logged in\r\n",
    Protocol.POP3: b"+OK logged in\r\n",
    Protocol.SMTP: b"235 2.0.0 OK\r\n",
}
INTERNAL_ERROR: Final = {
    Protocol.IMAP: b"* BAD internal server error\r\n",
    Protocol.POP3: b"-ERR internal server error\r\n",
    Protocol.SMTP: b"451 4.3.2 Internal server error\r\n",
}
SILENT: Final = DnsReply(silent=True)
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def proxy(protocol: Protocol, dns: DnsServer, **directives: Any) -> Builder:
    """Return a builder of a server that looks names up at a name server, and may use loopback."""
    values: dict[str, Any] = {
        "auth_http_server_names": True,
        "auth_http_server_networks": ("127.0.0.0/8",),
        "resolver": ResolverConfig(addresses=(dns.address,), ipv6=False),
        "resolver_timeout": Seconds(10.0),
        "proxy_smtp_auth": True,
        "xclient": False,
        "proxy_smtp_guard": False,
        **directives,
    }

    def builder(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(protocol, auth_http=auth, listen=(listen,), **values)

    return builder


def grant(value: str) -> bytes:
    return http_response(f"Auth-Status: OK\r\nAuth-Server: {value}\r\nAuth-Port: {{port}}\r\n")


async def send_login(w: LoopbackWorker, protocol: Protocol) -> Peer:
    """Send the credentials, and return the client before the reply to the last command."""
    client = await w.client()
    await client.read_line()
    for command in LOGINS[protocol][:-1]:
        await client.exchange(command)
    await client.send(LOGINS[protocol][-1])
    return client


async def accept_login(upstream: Peer, protocol: Protocol) -> None:
    """Play an upstream that accepts any password."""
    if protocol is Protocol.IMAP:
        assert (await upstream.exchange(b"* OK hi\r\n")).startswith(b"a LOGIN")
        await upstream.exchange(b"+ go on\r\n")
        await upstream.exchange(b"+ go on\r\n")
        await upstream.send(b"a OK logged in\r\n")
    elif protocol is Protocol.POP3:
        await upstream.exchange(b"+OK hi\r\n")
        await upstream.exchange(b"+OK\r\n")
        await upstream.send(b"+OK logged in\r\n")
    else:
        await upstream.exchange(b"220 hi\r\n")
        await upstream.exchange(b"250 mail.example\r\n")
        await upstream.send(b"235 2.7.0 in\r\n")


def errors(w: LoopbackWorker, protocol: Protocol, stage: UpstreamStage = UpstreamStage.RESOLVE) -> int:
    found: int = w.value("mailproxy_upstream_errors_total", protocol, stage)
    return found


def play(
    step: Callable[[LoopbackWorker, DnsServer], Coroutine[Any, Any, None]],
    protocol: Protocol,
    response: Response,
    **directives: Any,
) -> None:
    """Run a worker with a name server."""

    @asynccontextmanager
    async def world() -> AsyncIterator[tuple[LoopbackWorker, DnsServer]]:
        async with dns_server() as dns:
            dns.zone[NAME, "A"] = reply_with(address_record("127.0.0.1"))
            async with loopback_worker(proxy(protocol, dns, **directives), response) as w:
                yield w, dns

    async def main() -> None:
        async with world() as (w, dns):
            await step(w, dns)

    run(main)


@every_protocol
@pytest.mark.parametrize(
    "value", [NAME, NAME.upper(), f"{NAME}:{{port}}", f"{NAME}, 192.0.2.1", "127.0.0.1:{port}"]
)
def test_login_at_a_named_upstream(protocol: Protocol, value: str) -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        for _ in range(2):  # the second from the cache
            client = await send_login(w, protocol)
            await accept_login(await w.upstream.accept(), protocol)
            assert await client.read_line() == SUCCESS[protocol]
            client.close()
        await w.wait_for_sessions()
        assert dns.query_types().count("A") == (0 if value[0] == "1" else 1)
        assert f"upstream=127.0.0.1:{w.upstream.port}" in w.read_log().replace('"', "")
        assert errors(w, protocol) == 0

    play(step, protocol, grant(value))


@every_protocol
def test_bytes_are_relayed_after_a_lookup(protocol: Protocol) -> None:
    async def step(w: LoopbackWorker, _: DnsServer) -> None:
        client = await send_login(w, protocol)
        upstream = await w.upstream.accept()
        await accept_login(upstream, protocol)
        assert await client.read_line() == SUCCESS[protocol]
        await client.send(b"x NOOP\r\n")
        assert await upstream.exchange(b"x OK\r\n") == b"x NOOP\r\n"
        assert await client.read_line() == b"x OK\r\n"

    play(step, protocol, grant(NAME))


@every_protocol
def test_name_that_does_not_resolve_is_an_upstream_error(protocol: Protocol) -> None:
    async def step(w: LoopbackWorker, _: DnsServer) -> None:
        client = await send_login(w, protocol)
        assert await client.read_line() == INTERNAL_ERROR[protocol]
        assert await client.read_to_eof() == b""
        await w.wait_for_sessions()
        assert errors(w, protocol) == 1
        log = w.read_log()
        assert "upstream_failed" in log
        assert "stage=resolve" in log
        assert "missing.example" in log
        assert "the name does not exist, or has no address" in log
        assert "name_lookup_failed" in log
        assert "secret" not in log

    play(step, protocol, grant("missing.example"))


@every_protocol
def test_name_server_failure_is_an_upstream_error(protocol: Protocol) -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        dns.default_reply = DnsReply(code=SERVFAIL)
        client = await send_login(w, protocol)
        assert await client.read_line() == INTERNAL_ERROR[protocol]
        await w.wait_for_sessions()
        assert errors(w, protocol) == 1
        assert w.value("mailproxy_dns_queries_total", "upstream", "servfail") == 1

    play(step, protocol, grant("fails.example"))


def test_lookup_that_hangs_ends_at_timeout() -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        dns.default_reply = SILENT
        client = await send_login(w, Protocol.IMAP)
        assert await client.read_line() == INTERNAL_ERROR[Protocol.IMAP]
        await w.wait_for_sessions()
        assert errors(w, Protocol.IMAP) == 1
        assert "no reply within timeout" in w.read_log()
        names = w.app._servers["imap"].upstream_names
        assert names is not None
        assert names.names._pending == {}

    play(step, Protocol.IMAP, grant("hangs.example"), timeout=Seconds(0.5), resolver_timeout=Seconds(0.0))


def test_lookup_that_hangs_ends_at_resolver_timeout() -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        dns.default_reply = SILENT
        client = await send_login(w, Protocol.IMAP)
        assert await client.read_line() == INTERNAL_ERROR[Protocol.IMAP]
        await w.wait_for_sessions()
        assert "no reply within resolverTimeout" in w.read_log()

    play(step, Protocol.IMAP, grant("hangs.example"), resolver_timeout=Seconds(0.3))


@every_protocol
def test_client_that_leaves_during_the_lookup_cancels_it(protocol: Protocol) -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        dns.default_reply = SILENT
        dns.set_ptr("1.0.0.127.in-addr.arpa")
        client = await send_login(w, protocol)
        await dns.wait_for_queries(2 if protocol is Protocol.SMTP else 1)
        client.reset()
        await w.wait_for_sessions()
        names = w.app._servers[protocol].upstream_names
        assert names is not None
        assert names.names._pending == {}
        assert w.app.context.timers.waiting() == []
        assert errors(w, protocol) == 0

    play(step, protocol, grant("hangs.example"))


def test_drain_waits_for_a_login_with_a_lookup() -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        dns.zone[NAME, "A"] = SILENT
        client = await send_login(w, Protocol.IMAP)
        await dns.wait_for_queries(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(w.app.drain(20.0))
            await asyncio.sleep(0.05)
            dns.zone[NAME, "A"] = reply_with(address_record("127.0.0.1"))
            await accept_login(await w.upstream.accept(), Protocol.IMAP)
            assert await client.read_line() == SUCCESS[Protocol.IMAP]
            client.close()

    play(step, Protocol.IMAP, grant(NAME))


def test_abort_ends_a_login_with_a_lookup() -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        dns.default_reply = SILENT
        client = await send_login(w, Protocol.IMAP)
        await dns.wait_for_queries(1)
        await w.app.drain(0.05)
        assert await client.read_to_eof() == b""
        assert w.app.sessions == 0

    play(step, Protocol.IMAP, grant("hangs.example"))


@every_protocol
def test_name_that_resolves_to_loopback_is_refused(protocol: Protocol) -> None:
    async def step(w: LoopbackWorker, _: DnsServer) -> None:
        client = await send_login(w, protocol)
        assert await client.read_line() == INTERNAL_ERROR[protocol]
        await w.wait_for_sessions()
        assert w.upstream.accepted.empty()
        log = w.read_log()
        assert "upstream_address_refused" in log
        assert "resolves to 127.0.0.1, which is refused (loopback)" in log
        assert "authHttpServerNetworks" in log

    play(step, protocol, grant(NAME), auth_http_server_networks=())


def test_name_that_resolves_to_our_own_listener_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_names, "refusal", lambda _: "")  # of loopback, which this test uses

    async def step(w: LoopbackWorker, _: DnsServer) -> None:
        w.auth.responses = [http_response(f"Auth-Status: OK\r\nAuth-Server: {NAME}:{w.port}\r\n")]
        client = await send_login(w, Protocol.IMAP)
        assert await client.read_line() == INTERNAL_ERROR[Protocol.IMAP]
        await w.wait_for_sessions()
        assert f"127.0.0.1:{w.port}, which is refused (a listener of this proxy)" in w.read_log()
        assert w.value("mailproxy_connections_accepted_total", "imap", "imap") == 1

    play(step, Protocol.IMAP, b"", auth_http_server_networks=())


def test_address_from_the_service_is_not_checked() -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        client = await send_login(w, Protocol.IMAP)
        await accept_login(await w.upstream.accept(), Protocol.IMAP)
        assert await client.read_line() == SUCCESS[Protocol.IMAP]
        assert dns.queries == []

    play(step, Protocol.IMAP, grant("127.0.0.1, 127.0.0.2"), auth_http_server_networks=())


def test_name_is_invalid_without_the_directive() -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        client = await send_login(w, Protocol.IMAP)
        assert await client.read_line() == INTERNAL_ERROR[Protocol.IMAP]
        await w.wait_for_sessions()
        assert "is not an IP address" in w.read_log()
        assert dns.queries == []
        assert w.app._servers["imap"].upstream_names is None

    play(step, Protocol.IMAP, grant(NAME), auth_http_server_names=False)


def test_invalid_item_is_logged_with_what_to_send() -> None:
    async def step(w: LoopbackWorker, _: DnsServer) -> None:
        client = await send_login(w, Protocol.IMAP)
        assert await client.read_line() == INTERNAL_ERROR[Protocol.IMAP]
        await w.wait_for_sessions()
        log = w.read_log()
        assert "-bad-" in log
        assert "is neither an IP address nor a host name" in log
        assert w.value("mailproxy_auth_errors_total", "bad_address") == 1

    play(step, Protocol.IMAP, grant(f"{NAME}, -bad-"))


def test_internal_error_after_a_lookup_ends_the_session_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        dns.zone[NAME, "A"] = [SILENT, reply_with(address_record("127.0.0.1"))]
        client = await send_login(w, Protocol.IMAP)
        await dns.wait_for_queries(1)

        def broken(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr("mailproxy.session.upstream_lookup._connect", broken)
        assert await client.read_line() == INTERNAL_ERROR[Protocol.IMAP]
        await w.wait_for_sessions()
        assert "internal_error" in w.read_log()

    play(step, Protocol.IMAP, grant(NAME))


def test_cache_survives_a_reload_until_names_are_turned_off() -> None:
    async def step(w: LoopbackWorker, dns: DnsServer) -> None:
        client = await send_login(w, Protocol.IMAP)
        await accept_login(await w.upstream.accept(), Protocol.IMAP)
        assert await client.read_line() == SUCCESS[Protocol.IMAP]
        names = w.app._servers["imap"].upstream_names
        await w.app.apply(w.config, {}, names={}, ticket_keys={})
        assert w.app._servers["imap"].upstream_names is names
        assert names is not None
        assert ("127.0.0.1", w.port) in names.listeners
        assert w.metrics.dns_cache_entries.value == 1
        without = replace(w.config.servers[0], auth_http_server_names=False)
        for _ in range(2):  # its sessions may use it until the next reload
            await w.app.apply(replace(w.config, servers=(without,)), {}, names={}, ticket_keys={})
        assert w.app._servers["imap"].upstream_names is None
        assert w.app._retired == []
        assert w.metrics.dns_cache_entries.value == 0

    play(step, Protocol.IMAP, grant(NAME))


# --- several addresses ------------------------------------------------------------------------------


@every_protocol
def test_items_of_a_list_are_tried_in_their_order(protocol: Protocol) -> None:
    with refused_addresses(2) as (first, second):
        listed = f"127.0.0.1:{first.port}, {NAME}:{second.port}, {NAME}"

        async def step(w: LoopbackWorker, dns: DnsServer) -> None:
            client = await send_login(w, protocol)
            await accept_login(await w.upstream.accept(), protocol)
            assert await client.read_line() == SUCCESS[protocol]
            log = w.read_log()
            assert log.index(f"upstream=127.0.0.1:{first.port}") < log.index(
                f"upstream=127.0.0.1:{second.port}"
            )
            assert tries(w, protocol) == {"next": 2, "success": 1}

        play(step, protocol, grant(listed), proxy_next_upstream=frozenset({NextUpstream.CONNECT}))


@every_protocol
def test_list_without_proxy_next_upstream_is_its_first_item(protocol: Protocol) -> None:
    with refused_addresses(1) as (first,):

        async def step(w: LoopbackWorker, dns: DnsServer) -> None:
            client = await send_login(w, protocol)
            assert await client.read_line() == INTERNAL_ERROR[protocol]
            assert w.upstream.accepted.empty()

        play(step, protocol, grant(f"127.0.0.1:{first.port}, 127.0.0.1"))


@every_protocol
def test_second_address_of_a_name_is_used_when_the_first_refuses(protocol: Protocol) -> None:
    """Without further directives: the addresses of a name are one upstream."""
    accepted: asyncio.Queue[Peer] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put(Peer(reader, writer))

    async def main() -> None:
        second = await asyncio.start_server(serve, "127.0.0.2", 0)
        port = second.sockets[0].getsockname()[1]
        async with dns_server() as dns:
            dns.zone[NAME, "A"] = reply_with(address_record("127.0.0.1"), address_record("127.0.0.2"))
            async with loopback_worker(proxy(protocol, dns), grant(f"{NAME}:{port}")) as w:
                client = await send_login(w, protocol)
                upstream = await accepted.get()
                await accept_login(upstream, protocol)
                assert await client.read_line() == SUCCESS[protocol]
                assert tries(w, protocol) == {"next": 1, "success": 1}
                upstream.close()
        second.close()

    run(main)


# --- TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@every_protocol
@pytest.mark.parametrize("mode", [ProxySsl.ENABLED, ProxySsl.STARTTLS])
@pytest.mark.parametrize("dot", ["", "."])
def test_certificate_is_verified_by_the_name(
    protocol: Protocol, mode: ProxySsl, dot: str, authority: Authority
) -> None:
    with mail_server(session(protocol, mode), server_context(authority.issue(names=(NAME,)))) as upstream:

        async def step(w: LoopbackWorker, _: DnsServer) -> None:
            client = await send_login(w, protocol)
            assert await client.read_line() == SUCCESS[protocol]

        play(
            step,
            protocol,
            http_response(f"Auth-Status: OK\r\nAuth-Server: {NAME}{dot}:{upstream.port}\r\n"),
            proxy_ssl=mode,
            proxy_ssl_trusted_certificate=authority.file,
        )
    assert upstream.names == [NAME]


@every_protocol
def test_certificate_of_another_name_is_refused(protocol: Protocol, authority: Authority) -> None:
    issued = authority.issue(names=("other.example",))
    with mail_server(session(protocol, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def step(w: LoopbackWorker, _: DnsServer) -> None:
            client = await send_login(w, protocol)
            assert await client.read_line() == INTERNAL_ERROR[protocol]
            await w.wait_for_sessions()
            name = "mailproxy_upstream_tls_failures_total"
            assert w.value(name, protocol, UpstreamTlsFailure.NAME) == 1
            assert NAME in w.read_log()

        play(
            step,
            protocol,
            http_response(f"Auth-Status: OK\r\nAuth-Server: {NAME}:{upstream.port}\r\n"),
            proxy_ssl=ProxySsl.ENABLED,
            proxy_ssl_trusted_certificate=authority.file,
        )
    assert b"alice" not in upstream.received()


@pytest.mark.parametrize(
    ("directives", "sni"),
    [
        ({"proxy_ssl_name": "fixed.example"}, "fixed.example"),
        ({"proxy_ssl_server_name": False}, None),
        ({"proxy_ssl_verify": False}, NAME),
        ({"proxy_ssl_verify": False, "proxy_ssl_server_name": False}, None),
    ],
)
def test_name_of_sni(directives: dict[str, Any], sni: str | None, authority: Authority) -> None:
    issued = authority.issue(names=(NAME, "fixed.example"))
    with mail_server(session(Protocol.IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def step(w: LoopbackWorker, _: DnsServer) -> None:
            client = await send_login(w, Protocol.IMAP)
            assert await client.read_line() == SUCCESS[Protocol.IMAP]

        play(
            step,
            Protocol.IMAP,
            http_response(f"Auth-Status: OK\r\nAuth-Server: {NAME}:{upstream.port}\r\n"),
            **{
                "proxy_ssl": ProxySsl.ENABLED,
                "proxy_ssl_trusted_certificate": authority.file,
                **directives,
            },
        )
    assert upstream.names == [sni]


def test_session_of_one_name_is_not_resumed_for_another(authority: Authority) -> None:
    """A resumed session is not verified, so it must not be used under another name."""
    seen: list[bool] = []

    def note(c: Connection) -> None:
        assert isinstance(c.sock, ssl.SSLSocket)
        seen.append(bool(c.sock.session_reused))

    issued = authority.issue(names=(NAME, "b.example"))
    with mail_server(session(Protocol.IMAP, ProxySsl.ENABLED, note), server_context(issued)) as upstream:

        async def step(w: LoopbackWorker, dns: DnsServer) -> None:
            dns.zone["b.example", "A"] = reply_with(address_record("127.0.0.1"))
            for name in (NAME, NAME, "b.example", "b.example"):
                head = f"Auth-Status: OK\r\nAuth-Server: {name}:{upstream.port}\r\n"
                w.auth.responses = [http_response(head)]
                client = await send_login(w, Protocol.IMAP)
                assert await client.read_line() == SUCCESS[Protocol.IMAP]
                client.close()
                await w.wait_for_sessions()

        play(
            step,
            Protocol.IMAP,
            b"",
            proxy_ssl=ProxySsl.ENABLED,
            proxy_ssl_trusted_certificate=authority.file,
        )
    assert seen == [False, True, False, True]


def test_name_to_verify_is_proxy_ssl_name_then_the_host_name_then_the_address(authority: Authority) -> None:
    def name_for(peer: TlsPeer, **directives: Any) -> str | None:
        values = {
            "proxy_ssl": ProxySsl.ENABLED,
            "proxy_ssl_trusted_certificate": authority.file,
            **directives,
        }
        return build(server(Protocol.IMAP, **values)).name_for(peer)

    named, bare = TlsPeer("192.0.2.1", 993, NAME), TlsPeer("192.0.2.1", 993)
    assert name_for(named, proxy_ssl_name="fixed.example") == "fixed.example"
    assert name_for(named) == NAME
    assert name_for(bare) == "192.0.2.1"
    assert name_for(bare, proxy_ssl_verify=False) is None

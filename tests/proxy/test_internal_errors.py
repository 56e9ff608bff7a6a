# SPDX-License-Identifier: Apache-2.0
"""An internal error in any entry point ends its session and nothing else.

Each case makes one entry point raise once, for one client, beside another
client, which must not be affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.connection import AuthConnection
from mailproxy.auth_http.response_head import ResponseHeads
from mailproxy.dns.client_name import Confirmation
from mailproxy.dns.lookup import Waiter
from mailproxy.loop.epoll import Epoll
from mailproxy.protocols import proxy_protocol, real_ip
from mailproxy.protocols.pop3.upstream import Pop3Upstream
from mailproxy.session import accept, lingering_close, session
from mailproxy.session import upstream as upstream_module
from mailproxy.session.accept import Listener
from mailproxy.session.driver import ProtocolDriver
from mailproxy.session.handshakes import ProxyHeaderReader, TlsHandshake
from mailproxy.session.lingering_close import LingeringClose
from mailproxy.session.relay import Relay
from mailproxy.session.relay_end import RelayEnd
from mailproxy.session.session import Session
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.upstream_candidates import UpstreamAttempts
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy.tls.connection import TlsConnection
from mailproxy_config.model import NextUpstream, Protocol, ResolverConfig, Seconds, StartTls
from support import invariants
from support.checked_worker import (
    GREETINGS,
    INTERNAL_ERRORS,
    open_relay,
    read_until_closed,
    server_builder,
    start_tls,
)
from support.fault_injection import (
    SECRET_TEXT,
    Inject,
    close_peers,
    descriptors,
    inject_fault,
    polls_per_second,
)
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.streams import abort
from support.tls_identities import Identities

INTERNAL_ERROR = INTERNAL_ERRORS[Protocol.POP3]
GREETING = GREETINGS[Protocol.POP3]


Play = Callable[["Stage"], Awaitable[None]]


@dataclass
class Stage:
    """What a case runs with.

    Attributes:
        inject: Makes the entry point raise the next time it is called.
    """

    w: LoopbackWorker
    identities: Identities
    inject: Inject

    async def client(self) -> Peer:
        peer = await self.w.client()
        assert await peer.read_line() == GREETING
        return peer


@dataclass
class Case:
    """One entry point.

    Attributes:
        where: The class or module that is patched, and the name of the function.
        play: Leads a client to the entry point; what it asserts, the client saw.
        directives: Of the server.
        sessions: How many sessions the fault ends.
    """

    name: str
    where: tuple[Any, str]
    play: Play
    directives: dict[str, Any]
    sessions: int = 1


# -- clients


async def connects(stage: Stage) -> None:
    stage.inject()
    peer = await stage.w.client()
    assert await read_until_closed(peer) == b""


async def connects_and_gets_error_reply(stage: Stage) -> None:
    stage.inject()
    peer = await stage.w.client()
    assert await read_until_closed(peer) == INTERNAL_ERROR


async def is_accepted_later(stage: Stage) -> None:
    stage.inject()
    peer = await stage.w.client()
    assert await peer.read_line() == GREETING
    peer.writer.write(b"QUIT\r\n")
    await read_until_closed(peer)


def sends_header(expected: bytes) -> Play:
    async def play(stage: Stage) -> None:
        stage.inject()
        peer = await stage.w.client()
        await peer.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert await read_until_closed(peer) == expected

    return play


async def waits(stage: Stage) -> None:
    stage.inject()
    peer = await stage.w.client()
    assert (await read_until_closed(peer)).removeprefix(GREETING) in (b"", INTERNAL_ERROR)


async def handshakes(stage: Stage) -> None:
    stage.inject()
    peer = await stage.w.client()
    stage.w.writers.remove(peer.writer)  # asyncio waits for ever for one whose handshake failed
    with contextlib.suppress(OSError):
        await start_tls(peer, stage.identities)
        assert (await read_until_closed(peer)).removeprefix(GREETING) in (b"", INTERNAL_ERROR)
    abort(peer.writer)


async def handshakes_and_gets_error_reply(stage: Stage) -> None:
    stage.inject()
    peer = await stage.w.client()
    await start_tls(peer, stage.identities)
    assert await read_until_closed(peer) == INTERNAL_ERROR


async def starts_tls(stage: Stage) -> None:
    peer = await stage.client()
    await peer.exchange(b"STLS\r\n")
    stage.inject()
    await start_tls(peer, stage.identities)
    assert await read_until_closed(peer) == INTERNAL_ERROR


async def sends_a_command(stage: Stage) -> None:
    peer = await stage.client()
    stage.inject()
    await peer.send(b"NOOP\r\n")
    assert (await read_until_closed(peer)).endswith(INTERNAL_ERROR)


async def quits(stage: Stage) -> None:
    peer = await stage.client()
    stage.inject()
    await peer.send(b"QUIT\r\n")
    await read_until_closed(peer)


async def sends_endless_line(stage: Stage) -> None:
    peer = await stage.client()
    stage.inject()
    await peer.send(b"x" * 3000 + b"\r\n")
    await read_until_closed(peer)


async def does_not_read(stage: Stage) -> None:
    peer = await stage.client()
    for live in stage.w.app.context.live:
        assert isinstance(live, Session)
        live.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    stage.inject()
    transport = peer.writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()
    peer.writer.write(b"CAPA\r\n" * 60_000)
    await asyncio.sleep(0.3)
    transport.resume_reading()
    assert (await read_until_closed(peer)).endswith(INTERNAL_ERROR)


async def logs_in(stage: Stage) -> None:
    peer = await stage.client()
    stage.inject()
    await peer.send(b"USER u\r\nPASS p\r\n")
    assert await read_until_closed(peer) == b"+OK\r\n" + INTERNAL_ERROR


def logs_in_at_an_upstream(expected: bytes) -> Play:
    async def play(stage: Stage) -> None:
        peer = await stage.client()
        await peer.send(b"USER u\r\nPASS p\r\n")
        upstream = await stage.w.upstream.accept()
        stage.inject()
        with contextlib.suppress(ConnectionError):
            for reply in (b"+OK\r\n", b"+OK\r\n", b"+OK in\r\n"):
                await upstream.send(reply)
                await upstream.read_line()
        assert (await read_until_closed(peer)).endswith(expected)
        assert await read_until_closed(upstream) == b""

    return play


async def leaves_at_an_upstream(stage: Stage) -> None:
    peer = await stage.client()
    await peer.send(b"USER u\r\nPASS p\r\n")
    upstream = await stage.w.upstream.accept()
    stage.inject()
    peer.reset()
    assert await read_until_closed(upstream) == b""


def relays(data: int, *, tls: bool = False, from_client: bool = True) -> Play:
    async def play(stage: Stage) -> None:
        client, upstream = await open_relay(stage.w, stage.identities if tls else None)
        stage.inject()
        sender, other = (client, upstream) if from_client else (upstream, client)
        with contextlib.suppress(ConnectionError):
            await sender.send(b"x" * data)
        await asyncio.gather(read_until_closed(other), read_until_closed(sender))

    return play


async def relay_ends(stage: Stage) -> None:
    client, upstream = await open_relay(stage.w)
    stage.inject()
    client.close()
    assert await read_until_closed(upstream) == b""


async def client_awaits_the_response(stage: Stage) -> None:
    client, upstream = await open_relay(stage.w)
    await client.send(b"x")
    assert await upstream.read_bytes(1) == b"x"
    stage.inject()
    client.writer.write_eof()
    await asyncio.gather(read_until_closed(client), read_until_closed(upstream))


async def relay_is_idle(stage: Stage) -> None:
    client, upstream = await open_relay(stage.w)
    stage.inject()
    await asyncio.gather(read_until_closed(client), read_until_closed(upstream))


async def is_looked_up(stage: Stage) -> None:
    stage.inject()
    peer = await stage.w.client()
    await read_until_closed(peer)


def case(name: str, where: tuple[Any, str], play: Play, sessions: int = 1, **directives: Any) -> Any:
    return pytest.param(Case(name, where, play, directives, sessions), id=name)


HEADER = {"listen_proxy_protocol": True, "set_real_ip_from": ("127.0.0.0/8",)}
IMPLICIT = {"listen_ssl": True}
STLS = {"starttls": StartTls.ENABLED}
SOON = {"timeout": Seconds(0.3)}
TRIES = {"proxy_next_upstream": frozenset(NextUpstream)}

CASES = [
    case("listener: accept", (accept, "_client"), connects),
    case("listener: the session", (accept, "Session"), connects),
    case("listener: the record", (accept, "SessionRecord"), connects),
    case("listener: itself", (Listener, "_accept"), is_accepted_later, sessions=0),
    case("session: start", (Session, "start"), connects_and_gets_error_reply),
    case("PROXY header: parsing", (proxy_protocol, "read_header"), sends_header(INTERNAL_ERROR), **HEADER),
    case("PROXY header: reading", (ProxyHeaderReader, "_read"), sends_header(INTERNAL_ERROR), **HEADER),
    case("PROXY header: real IP", (real_ip, "apply_real_ip"), sends_header(INTERNAL_ERROR), **HEADER),
    case("PROXY header: done", (Session, "on_proxy_header"), sends_header(INTERNAL_ERROR), **HEADER),
    case("PROXY header: before TLS", (ProxyHeaderReader, "_read"), sends_header(b""), **HEADER, **IMPLICIT),
    case("PROXY header: time", (ProxyHeaderReader, "on_timeout"), waits, **HEADER, **SOON),
    case("handshake: begin", (TlsHandshake, "begin"), connects, **IMPLICIT),
    case("handshake: wrapping", (TlsConnection, "begin"), connects, **IMPLICIT),
    case("handshake: a step", (TlsConnection, "handshake"), handshakes, **IMPLICIT),
    case("handshake: its facts", (TlsConnection, "info"), handshakes_and_gets_error_reply, **IMPLICIT),
    case("handshake: done", (Session, "_on_implicit_tls"), handshakes_and_gets_error_reply, **IMPLICIT),
    case("handshake: deferred", (TlsHandshake, "_uncork"), handshakes, **IMPLICIT),
    case("handshake: time", (TlsHandshake, "on_timeout"), waits, **IMPLICIT, **SOON),
    case("STARTTLS: its facts", (TlsConnection, "info"), starts_tls, **STLS),
    case("STARTTLS: done", (Session, "_on_starttls"), starts_tls, **STLS),
    case("driver: readiness", (ProtocolDriver, "on_event"), sends_a_command),
    case("driver: interpreter", (ProtocolDriver, "_run"), sends_a_command),
    case("driver: deferred", (ProtocolDriver, "_send_then_read"), sends_a_command),
    case("driver: the rest of a reply", (ProtocolDriver, "_continue_sending"), does_not_read),
    case("driver: time", (Session, "on_timeout"), waits, **SOON),
    case("driver: pause", (ProtocolDriver, "on_wait_over"), logs_in, service="wait"),
    case("session: the end of the dialogue", (Session, "_on_result"), quits),
    case("session: an error", (Session, "_on_error"), waits, **SOON),
    case("session: the end", (Session, "_close"), quits),
    case("session: its metrics", (VirtualServer, "record_end"), quits),
    case("session: its line", (LogWriter, "session"), quits, sessions=0),
    case("session: helpers", (Session, "_cancel_pending"), quits),
    case("service: connecting", (AuthConnection, "connect"), logs_in),
    case("service: connected", (AuthConnection, "_on_connected"), logs_in),
    case("service: deferred", (AuthConnection, "send_request"), logs_in),
    case("service: reading", (AuthConnection, "_receive"), logs_in),
    case("service: parsing", (ResponseHeads, "find"), logs_in),
    case("service: the answer", (AuthHttpClient, "finish"), logs_in),
    case("service: a failure", (AuthHttpClient, "on_failure"), logs_in, service="nonsense"),
    case("service: the session", (Session, "on_auth_result"), logs_in),
    case("service: the session goes on", (Session, "_on_result"), logs_in),
    case(
        "service: time",
        (AuthHttpClient, "_time_out"),
        logs_in,
        service="none",
        auth_http_timeout=Seconds(0.3),
    ),
    case("upstream: connecting", (Pop3Upstream, "log_in"), logs_in),
    case("upstream: a socket", (upstream_module, "open_socket"), logs_in),
    case("upstream: deferred", (UpstreamConnection, "_connect"), logs_in),
    case(
        "upstream: connected", (UpstreamConnection, "_on_connected"), logs_in_at_an_upstream(INTERNAL_ERROR)
    ),
    case("upstream: readiness", (UpstreamConnection, "on_event"), logs_in_at_an_upstream(INTERNAL_ERROR)),
    case("upstream: time", (UpstreamConnection, "on_timeout"), logs_in, **SOON),
    case("upstream: failing", (UpstreamConnection, "_on_error"), logs_in, **SOON),
    case(
        "upstream: the end of the login",
        (UpstreamConnection, "_on_result"),
        logs_in_at_an_upstream(INTERNAL_ERROR),
    ),
    case("upstream: logged in", (Session, "on_upstream_login"), logs_in_at_an_upstream(INTERNAL_ERROR)),
    case("upstream: the relay", (Relay, "start"), logs_in_at_an_upstream(INTERNAL_ERROR)),
    case("upstream: an end of it", (session, "RelayEnd"), logs_in_at_an_upstream(INTERNAL_ERROR)),
    case("upstream: abandoned", (UpstreamConnection, "cancel"), leaves_at_an_upstream),
    case("tries: the first", (UpstreamAttempts, "_begin"), logs_in, **TRIES),
    case("tries: connecting", (Pop3Upstream, "log_in"), logs_in, **TRIES),
    case("tries: a socket", (upstream_module, "open_socket"), logs_in, **TRIES),
    case("tries: connected", (UpstreamAttempts, "on_connected"), logs_in, **TRIES),
    case("tries: failing", (UpstreamAttempts, "on_failed"), logs_in, **SOON, **TRIES),
    case("tries: the next", (UpstreamAttempts, "_begin_later"), logs_in, **SOON, **TRIES),
    case("tries: logged in", (UpstreamAttempts, "on_login"), logs_in_at_an_upstream(INTERNAL_ERROR), **TRIES),
    case("tries: abandoned", (UpstreamAttempts, "cancel"), leaves_at_an_upstream, **TRIES),
    case("relay: deferred", (Relay, "_open"), logs_in_at_an_upstream(b"+OK\r\n")),
    case("relay: readiness, plain", (RelayEnd, "on_event"), relays(10)),
    case("relay: plain", (RelayEnd, "copy"), relays(10, from_client=False)),
    case("relay: spliced", (RelayEnd, "_copy_through_pipe"), relays(3_000_000)),
    case("relay: from a pipe", (RelayEnd, "splice_from"), relays(3_000_000)),
    case("relay: into a pipe", (RelayEnd, "splice_into"), relays(3_000_000, from_client=False)),
    case("relay: TLS", (RelayEnd, "_copy_through_buffer"), relays(3_000_000, tls=True), **STLS),
    case("relay: to TLS", (RelayEnd, "write_from"), relays(3_000_000, tls=True, from_client=False), **STLS),
    case("relay: from TLS", (TlsConnection, "fill"), relays(3_000_000, tls=True), **STLS),
    case("relay: settling", (RelayEnd, "_update"), client_awaits_the_response),
    case("relay: the end of one side", (Relay, "on_eof"), relay_ends),
    case("relay: the end", (Relay, "close"), relay_ends),
    case("relay: its metrics", (VirtualServer, "record_end"), relay_ends),
    case("relay: time", (Relay, "on_timeout"), relay_is_idle, proxy_timeout=Seconds(0.3)),
    case("lingering: begin", (session, "lingering_close"), sends_endless_line),
    case("lingering: shutdown", (lingering_close, "end_writing"), sends_endless_line),
    case("lingering: readiness", (LingeringClose, "on_event"), sends_endless_line, sessions=0),
    case("lingering: the end", (LingeringClose, "abort"), sends_endless_line, sessions=0),
    case("closing: deferred", (Epoll, "close_socket"), quits),
    case("names: a callback", (Waiter, "deliver"), is_looked_up, service="names"),
    case("names: a step", (Confirmation, "on_name"), is_looked_up, service="names"),
    case("names: the session", (Session, "_on_host"), is_looked_up, service="names"),
]


SERVICES: dict[str, Any] = {
    "grants": http_response(GRANT),
    "wait": http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n"),
    "none": lambda _: asyncio.sleep(20, b""),
    "names": http_response("Auth-Status: no\r\n"),
    "nonsense": b"\r\n\r\n",
}


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def bystander(w: LoopbackWorker, case: Case, identities: Identities) -> AsyncIterator[None]:
    """Another client, which is served before and after; none where clients time out soon."""
    if "timeout" in case.directives or case.directives.get("service") == "names":
        yield
        return
    peer = await w.client()
    if case.directives.get("listen_proxy_protocol"):
        await peer.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
    if case.directives.get("listen_ssl"):
        await start_tls(peer, identities)
    assert await peer.read_line() == GREETING
    yield
    assert await peer.exchange(b"NOOP\r\n") == b"+OK\r\n"
    assert await peer.exchange(b"QUIT\r\n") == b"+OK\r\n"
    assert await read_until_closed(peer) == b""
    peer.close()


def build_for(case: Case, identities: Identities) -> tuple[Any, Any]:
    directives = dict(case.directives)
    service = directives.pop("service", "grants")
    protocol = Protocol.POP3
    if service == "names":
        protocol = Protocol.SMTP
        nobody = ResolverConfig(addresses=("127.0.0.1:1",))
        directives |= {"resolver": nobody, "resolver_timeout": Seconds(0.2)}
    return server_builder(protocol, identities, **directives), SERVICES[service]


async def greeted(w: LoopbackWorker) -> None:
    peer = await w.client()
    assert await peer.read_line() == GREETINGS[Protocol.SMTP]
    peer.close()
    await w.wait_for_sessions()


@pytest.mark.parametrize("case", CASES)
def test_internal_error_ends_its_session_and_leaves_nothing(
    case: Case, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        build, service = build_for(case, identities)
        async with loopback_worker(build, service, closes=True) as w:
            if case.directives.get("service") == "names":
                await greeted(w)  # the DNS library keeps its descriptors
            before = invariants.descriptors()
            async with bystander(w, case, identities):
                inject = inject_fault(monkeypatch, case.where)
                async with asyncio.timeout(20):
                    await case.play(Stage(w, identities, inject))
            close_peers(w)
            await invariants.wait_until_idle(w.app, w.metrics)
            assert await descriptors(w.app, before) <= before
            assert await polls_per_second(w.app) < 100
            check(w, case)

    run(play)


def check(w: LoopbackWorker, case: Case) -> None:
    log = w.read_log()
    assert log.count(" internal_error ") == 1, log
    assert SECRET_TEXT not in log
    assert "Fault" in log
    assert "library" not in log
    closed = invariants.series(w.metrics, "mailproxy_connections_closed_total")
    reasons = {"internal_error"}
    if case.name.startswith("service:"):
        reasons.add("auth_unavailable")  # where a connection to the service ends, so does the request in it
    assert sum(count for labels, count in closed.items() if labels[2] in reasons) == case.sessions
    accepted = sum(invariants.series(w.metrics, "mailproxy_connections_accepted_total").values())
    assert accepted == sum(closed.values())

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import pytest

from mailproxy.enums import Method
from mailproxy.protocols.types import AuthAllowed, UpstreamLogin
from mailproxy.session import refusal_times
from mailproxy.session.login_overrides import connect_for_login
from mailproxy_config.model import (
    AuthHttp,
    AuthMode,
    ListenConfig,
    NextUpstream,
    Protocol,
    ResolverConfig,
    ServerConfig,
)
from mailproxy_config.upstream_groups import GroupServer, Route, UpstreamGroup, UpstreamSettings
from mailproxy_config.upstream_values import ProxySsl
from support import configs
from support.dns_server import address_record, dns_server, reply_with
from support.loopback_worker import Builder, LoopbackWorker, abort, loopback_worker, run
from support.tls_authority import Authority, Issued
from support.upstream_tls import mail_server, server_context, session

IMAP: Final = Protocol.IMAP
ANY: Final = Route(domains=("*",), upstream="dovecot")
NAME: Final = "mail.example.com"
OUTAGE: Final = b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n"


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 0.01)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(names=(NAME,))


@dataclass
class ImapServer:
    """A mail server in clear that accepts every login."""

    port: int = 0
    lines: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            line = await reader.readuntil(b"\r\n")
            self.lines.append(line + await reader.readuntil(b"\r\n") + await reader.readuntil(b"\r\n"))
            writer.write(line.split()[0] + b" OK logged in\r\n")
            await reader.read()
        abort(writer)


@contextlib.asynccontextmanager
async def imap_server() -> AsyncIterator[ImapServer]:
    found = ImapServer()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


def at(port: int, *, backup: bool = False) -> GroupServer:
    return GroupServer(address=f"127.0.0.1:{port}", host="127.0.0.1", port=port, backup=backup)


def group(*servers: GroupServer, name: str = "dovecot", **settings: Any) -> UpstreamGroup:
    return UpstreamGroup(name=name, servers=servers, settings=UpstreamSettings(**settings))


def routed(*groups: UpstreamGroup, **directives: Any) -> Builder:
    """A server whose logins are routed to these groups."""
    values: dict[str, Any] = {"route": (ANY,), **directives}

    def builder(_: AuthHttp, listen: ListenConfig) -> ServerConfig:
        of_routes = {"auth_http": None, "auth_mode": AuthMode.UPSTREAM, "upstream_groups": groups}
        return configs.server(IMAP, listen=(listen,), **of_routes, **values)

    return builder


async def log_in(w: LoopbackWorker, user: bytes = b"alice") -> bytes:
    client = await w.client()
    await client.read_line()
    return await client.exchange(b"a LOGIN %b correct-horse\r\n" % user)


def test_login_is_sent_to_group_of_its_route_without_request() -> None:
    async def play() -> None:
        async with imap_server() as one, imap_server() as two:
            routes = (Route(users=("bob@example.org",), upstream="two"), ANY)
            groups = group(at(one.port)), group(at(two.port), name="two")
            async with loopback_worker(routed(*groups, route=routes)) as w:
                assert await log_in(w) == await log_in(w, b"bob@EXAMPLE.org") == b"a OK logged in\r\n"
                assert w.auth.requests == []
        assert one.lines == [b"a LOGIN {5+}\r\nalice {13+}\r\ncorrect-horse\r\n"]
        assert two.lines == [b"a LOGIN {15+}\r\nbob@EXAMPLE.org {13+}\r\ncorrect-horse\r\n"]

    run(play)


def test_login_without_route_is_refused_and_reaches_no_upstream() -> None:
    async def play() -> None:
        async with imap_server() as one:
            routes = (Route(domains=("example.org",), upstream="dovecot"),)
            async with loopback_worker(routed(group(at(one.port)), route=routes)) as w:
                assert (await log_in(w, b"bob@example.net")).startswith(b"a NO ")
                assert (await log_in(w, b"bob@x@example.org")).startswith(b"a NO ")
        assert one.lines == []

    run(play)


def test_dead_server_is_followed_by_backup() -> None:
    async def play() -> None:
        async with imap_server() as gone:
            dead = at(gone.port)
        async with imap_server() as one:
            servers = dead, at(one.port, backup=True)
            tries = frozenset({NextUpstream.CONNECT})
            async with loopback_worker(routed(group(*servers, proxy_next_upstream=tries))) as w:
                assert await log_in(w) == b"a OK logged in\r\n"
            async with loopback_worker(routed(group(*servers))) as w:
                assert await log_in(w) == OUTAGE
        assert len(one.lines) == 1

    run(play)


def test_host_name_of_server_is_looked_up() -> None:
    async def play() -> None:
        name = "dovecot-0.dovecot.example"
        async with dns_server() as dns, imap_server() as one:
            dns.zone[name, "A"] = reply_with(address_record("127.0.0.1"))
            server = GroupServer(address=f"{name}:{one.port}", host=name, port=one.port)
            resolver = ResolverConfig(addresses=(dns.address,), ipv6=False)
            build = routed(group(server), resolver=resolver, auth_http_server_networks=("127.0.0.0/8",))
            async with loopback_worker(build) as w:
                assert await log_in(w) == b"a OK logged in\r\n"
            async with loopback_worker(routed(group(server), resolver=resolver)) as w:
                assert await log_in(w) == OUTAGE.replace(b"UNAVAILABLE", b"SERVERBUG")
                assert "is refused (loopback)" in w.read_log()

    run(play)


def test_directives_of_group_apply_to_its_logins_only(authority: Authority, issued: Issued) -> None:
    with mail_server(session(IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def play() -> None:
            async with imap_server() as one:
                secure = group(
                    at(upstream.port),
                    name="secure",
                    proxy_ssl=ProxySsl.ENABLED,
                    proxy_ssl_trusted_certificate=authority.file,
                    proxy_ssl_name=NAME,
                )
                routes = (Route(users=("alice",), upstream="secure"), ANY)
                async with loopback_worker(routed(secure, group(at(one.port)), route=routes)) as w:
                    assert await log_in(w) == await log_in(w, b"bobby") == b"a OK logged in\r\n"
                    _check_next_login(w)
            assert len(one.lines) == 1

        run(play)
        assert b"LOGIN" in upstream.received()
        assert upstream.received_in_clear() == b""


def _check_next_login(w: LoopbackWorker) -> None:
    """A session whose first login was at a group with directives uses others for the next one."""
    [listener] = w.app.listeners
    server = listener.default.server
    secure = server.groups["secure"]
    one: Any = SimpleNamespace(record=SimpleNamespace(), server=secure, context=w.app.context)
    for name, expected in (("dovecot", server), ("secure", secure)):
        grant = AuthAllowed("127.0.0.1", 1, b"bob", upstream_group=name)
        connect_for_login(one.server, lambda *_: None, one, UpstreamLogin(grant, Method.PLAIN))
        assert one.server is expected

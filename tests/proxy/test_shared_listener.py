# SPDX-License-Identifier: Apache-2.0
"""Several servers behind one listener: greeting, log, metrics and limits are those of the chosen one."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from mailproxy.app import App
from mailproxy.net.listen_plan import ListenRef, plan_sockets, shared_lines
from mailproxy_config.model import (
    AuthHttp,
    AuthHttpHeader,
    AuthMethod,
    ListenConfig,
    Protocol,
    ProxyConfig,
    Seconds,
    ServerConfig,
    StartTls,
)
from support.configs import server
from support.invariants import wait_until_idle
from support.loopback_worker import Builder, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.tls_authority import Authority
from support.tls_peers import client_context

DENIED = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def block(authority: Authority, name: str, protocol: Protocol = Protocol.SMTP, **directives: Any) -> Builder:
    """A server with the listener of the first one and a certificate for its own name."""
    files = authority.issue(names=[f"{name}.example"]).files

    def build(service: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(
            protocol,
            **{
                "name": name,
                "server_name": f"{name}.example",
                "listen": (dataclasses.replace(listen, ssl=True),),
                "auth_http": service,
                "ssl_certificate": (files,),
                **directives,
            },
        )

    return build


async def connect(w: LoopbackWorker, name: str | None, *, alpn: list[str] | None = None) -> Peer:
    context = client_context()
    if alpn:
        context.set_alpn_protocols(alpn)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", w.port, ssl=context, server_hostname=name or ""
    )
    w.writers.append(writer)
    return Peer(reader, writer)


def test_name_chooses_server(authority: Authority) -> None:
    async def main() -> None:
        async with loopback_worker(
            block(authority, "a"),
            DENIED,
            others=[block(authority, "b", server_names=("b.example", "*.b.example"))],
        ) as w:
            greetings = {
                name: (await (await connect(w, name)).read_line()).split()[1]
                for name in ("a.example", "b.example", "imap.b.example", "nobody.example", None)
            }
            assert greetings == {
                "a.example": b"a.example",
                "b.example": b"b.example",
                "imap.b.example": b"b.example",
                "nobody.example": b"a.example",
                None: b"a.example",
            }

    run(main)


def test_metrics_and_log_are_those_of_the_chosen_server(authority: Authority) -> None:
    async def main() -> None:
        async with loopback_worker(block(authority, "a"), DENIED, others=[block(authority, "b")]) as w:
            peer = await connect(w, "b.example")
            await peer.read_line()
            accepted, active = "mailproxy_connections_accepted_total", "mailproxy_connections_active"
            assert [w.value(active, name, "smtp") for name in "ab"] == [0, 1]
            assert (await peer.exchange(b"QUIT\r\n")).startswith(b"221")
            await wait_until_idle(w.app, w.metrics)
            assert [w.value(accepted, name, "smtp") for name in "ab"] == [0, 1]
            closed = "mailproxy_connections_closed_total"
            assert [w.value(closed, name, "smtp", "client_quit") for name in "ab"] == [0, 1]
            log = w.read_log()
            assert "server=b" in log
            assert 'server_name="b.example"' in log

    run(main)


def test_connection_without_handshake_belongs_to_first_server(authority: Authority) -> None:
    async def main() -> None:
        async with loopback_worker(block(authority, "a"), DENIED, others=[block(authority, "b")]) as w:
            peer = await w.client()
            await peer.send(b"EHLO x\r\n")
            await peer.read_to_eof()
            await wait_until_idle(w.app, w.metrics)
            accepted = "mailproxy_connections_accepted_total"
            assert [w.value(accepted, name, "smtp") for name in "ab"] == [1, 0]
            assert (
                sum(
                    value
                    for labels, value in w.metrics.snapshot()["series"]["mailproxy_connections_closed_total"]
                    if labels[0] == "a"
                )
                == 1
            )

    run(main)


def test_limit_of_connections_counts_for_first_server(authority: Authority) -> None:
    async def main() -> None:
        async with loopback_worker(
            block(authority, "a"), DENIED, others=[block(authority, "b")], limit=1
        ) as w:
            first = await connect(w, "b.example")
            await first.read_line()
            with pytest.raises((ssl.SSLError, OSError)):
                await connect(w, "b.example")
            assert w.value("mailproxy_connections_accepted_total", "a", "smtp") == 1
            first.close()
            await wait_until_idle(w.app, w.metrics)

    run(main)


def test_chosen_server_has_its_own_timeout(authority: Authority) -> None:
    async def main() -> None:
        slow = block(authority, "a", timeout=Seconds(60.0))
        fast = block(authority, "b", timeout=Seconds(0.2))
        async with loopback_worker(slow, DENIED, others=[fast]) as w:
            peer = await connect(w, "b.example")
            assert (await peer.read_line()).startswith(b"220")
            assert await peer.read_to_eof() == b""
            await wait_until_idle(w.app, w.metrics)

    run(main)


def test_alpn_chooses_protocol(authority: Authority) -> None:
    async def main() -> None:
        words = (("imap", "imaps"), ("pop3", "pop3s"), ("smtp", "submissions"))
        own = {"listen": (ListenConfig(address="127.0.0.1", port=9, ssl=True),)}

        def imaps(service: AuthHttp, listen: ListenConfig) -> ServerConfig:
            config = block(authority, "imaps", Protocol.IMAP)(service, listen)
            listen = dataclasses.replace(config.listen[0], alpn_servers=words, alpn_default="pop3s")
            return dataclasses.replace(config, listen=(listen,))

        others = [
            block(authority, "pop3s", Protocol.POP3, **own),
            block(authority, "submissions", Protocol.SMTP, **own),
        ]
        async with loopback_worker(imaps, DENIED, others=others) as w:
            for offer, greeting in (
                (["imap"], b"* OK IMAP4 ready\r\n"),
                (["pop3"], b"+OK POP3 ready\r\n"),
                (["smtp"], b"220 submissions.example ESMTP ready\r\n"),
                (["h2", "smtp", "imap"], b"220 submissions.example ESMTP ready\r\n"),
                (None, b"+OK POP3 ready\r\n"),
            ):
                peer = await connect(w, None, alpn=offer)
                assert await peer.read_line() == greeting
                peer.close()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect(w, None, alpn=["h2", "http/1.1"])
            await wait_until_idle(w.app, w.metrics)
            active = "mailproxy_connections_active"
            assert not [value for _, value in w.metrics.snapshot()["series"].get(active, []) if value]

    run(main)


def test_login_uses_the_authentication_service_of_the_chosen_server(authority: Authority) -> None:
    async def main() -> None:
        with_header = block(
            authority, "b", Protocol.IMAP, auth_http_header=(AuthHttpHeader(name="X-Tenant", value="b"),)
        )
        async with loopback_worker(block(authority, "a", Protocol.IMAP), DENIED, others=[with_header]) as w:
            peer = await connect(w, "b.example")
            await peer.read_line()
            assert (await peer.exchange(b"a LOGIN u p\r\n")).startswith(b"a NO")
            assert b"X-Tenant: b" in w.auth.requests[0]

    run(main)


def test_starttls_chooses_only_the_certificate(authority: Authority) -> None:
    issued = authority.issue(names=["b.example"])

    def build(service: AuthHttp, listen: ListenConfig) -> ServerConfig:
        config = block(authority, "a", starttls=StartTls.ENABLED)(service, listen)
        pairs = (*config.ssl_certificate, dataclasses.replace(issued.files, server_names=("b.example",)))
        return dataclasses.replace(config, listen=(listen,), ssl_certificate=pairs)

    async def main() -> None:
        async with loopback_worker(build, DENIED) as w:
            peer = await w.client()
            assert await peer.read_line() == b"220 a.example ESMTP ready\r\n"
            assert (await peer.exchange(b"STARTTLS\r\n")).startswith(b"220")
            context = client_context(authority)
            context.check_hostname = True
            await peer.writer.start_tls(context, server_hostname="b.example")
            assert await peer.exchange(b"HELO x\r\n") == b"250 a.example\r\n"

    run(main)


# --- sockets --------------------------------------------------------------------------


def test_one_socket_is_planned_for_a_shared_line(authority: Authority) -> None:
    listen = ListenConfig(port=993)
    service = AuthHttp(host="127.0.0.1")
    config = ProxyConfig(servers=tuple(block(authority, name)(service, listen) for name in "abc"))
    (planned,) = plan_sockets(config, {})
    assert planned.default == ListenRef(0, 0)
    assert shared_lines(config) == {ListenRef(0, 0): (ListenRef(0, 0), ListenRef(1, 0), ListenRef(2, 0))}


def test_reload_to_shared_listener_keeps_sessions(authority: Authority) -> None:
    async def main() -> None:
        async with loopback_worker(block(authority, "a"), DENIED) as w:
            peer = await connect(w, "b.example")
            assert (await peer.read_line()).split()[1] == b"a.example"
            service, listen = w.config.servers[0].auth_http, w.config.servers[0].listen[0]
            config = dataclasses.replace(
                w.config, servers=(*w.config.servers, block(authority, "b")(service, listen))
            )
            app: App = w.app
            sock = app.listeners[0].sock.dup()
            sock.setblocking(False)
            await app.apply(config, {app.listeners[0].key: [sock]}, names={}, ticket_keys={})
            again = await connect(w, "b.example")
            assert (await again.read_line()).split()[1] == b"b.example"
            assert (await peer.exchange(b"HELO x\r\n")) == b"250 a.example\r\n"

    run(main)


def test_host_of_token_is_compared_with_server_name(authority: Authority) -> None:
    """``oauth_strict``, on a listener of one server, where nothing else needs the name."""
    methods = frozenset({AuthMethod.OAUTHBEARER})
    build = block(authority, "a", Protocol.IMAP, imap_auth=methods, oauth_strict=True)

    async def main() -> None:
        async with loopback_worker(build, DENIED) as w:
            peer = await connect(w, "a.example")
            await peer.read_line()
            for host, reply in ((b"b.example", b"x BAD invalid command"), (b"a.example", b"x NO no")):
                message = b"n,a=u,\x01host=" + host + b"\x01auth=Bearer t\x01\x01"
                await peer.send(b"x AUTHENTICATE OAUTHBEARER " + b64encode(message) + b"\r\n")
                assert (await peer.read_line()).strip() == reply

    run(main)

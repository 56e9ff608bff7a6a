# SPDX-License-Identifier: Apache-2.0
"""``Auth-Server-Group``: the authentication service names a group of upstreams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mailproxy.enums import AuthErrorReason
from mailproxy.routing.group_choice import rendezvous_score
from mailproxy_config.model import AuthHttp, ListenConfig, NextUpstream, Protocol, ServerConfig
from mailproxy_config.upstream_groups import GroupHash, GroupServer, UpstreamGroup, UpstreamSettings
from support import configs
from support.loopback_worker import LoopbackWorker, http_response, loopback_worker, run

IMAP = Protocol.IMAP


def at(port: int) -> GroupServer:
    return GroupServer(address=f"127.0.0.1:{port}", host="127.0.0.1", port=port)


async def log_in(w: LoopbackWorker) -> bytes:
    client = await w.client()
    await client.read_line()
    return await client.exchange(b"a LOGIN alice correct-horse\r\n")


def proxy(*groups: UpstreamGroup) -> Any:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return configs.server(IMAP, auth_http=auth, listen=(listen,), upstream_groups=groups)

    return build


def test_login_goes_to_servers_and_directives_of_the_group() -> None:
    async def play() -> None:
        greetings: asyncio.Queue[bytes] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
            await greetings.put(await reader.readuntil(b"\r\n"))
            await reader.readuntil(b"horse\r\n")
            writer.write(b"a OK logged in\r\n")
            await reader.read()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = UpstreamSettings(proxy_next_upstream=frozenset({NextUpstream.CONNECT}))
            group = UpstreamGroup(name="dovecot", servers=(at(1), at(port)), settings=settings)
            answer = http_response("Auth-Status: OK\r\nAuth-Server-Group: dovecot\r\nAuth-User: al\r\n")
            async with loopback_worker(proxy(group), answer) as w:
                assert await log_in(w) == b"a OK logged in\r\n"
                assert await greetings.get() == b"a LOGIN {2+}\r\n"

    run(play)


def test_group_of_one_address_needs_no_directive() -> None:
    async def play() -> None:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            group = UpstreamGroup(name="dovecot", servers=(at(port),))
            answer = http_response("Auth-Status: OK\r\nAuth-Server-Group: dovecot\r\n")
            async with loopback_worker(proxy(group), answer) as w:
                await log_in(w)
                assert f"upstream=127.0.0.1:{port} stage=greeting" in w.read_log()

    run(play)


def test_auth_server_wins_over_group() -> None:
    async def play() -> None:
        head = (
            "Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\nAuth-Server-Group: dovecot\r\n"
        )
        group = UpstreamGroup(name="dovecot", servers=(at(1),))
        async with loopback_worker(proxy(group), http_response(head)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            await w.upstream.accept()

    run(play)


def test_key_of_the_service_chooses_the_server_instead_of_the_login_name() -> None:
    """Two login names of one mailbox get the same server; without the header they do not."""

    async def reached(user: str, header: str) -> str:
        greeted: list[str] = []

        async def serve(name: str, writer: asyncio.StreamWriter) -> None:
            greeted.append(name)
            writer.write(b"* BYE not now\r\n")
            writer.close()

        async with (
            await asyncio.start_server(lambda _, writer: serve("a", writer), "127.0.0.1", 0) as a,
            await asyncio.start_server(lambda _, writer: serve("b", writer), "127.0.0.1", 0) as b,
        ):
            # Ports change, so the identifiers are two names of the same address.
            servers = tuple(
                GroupServer(address=name, host="127.0.0.1", port=one.sockets[0].getsockname()[1])
                for name, one in (("a", a), ("b", b))
            )
            group = UpstreamGroup(name="dovecot", servers=servers, hash=GroupHash.USER)
            head = f"Auth-Status: OK\r\nAuth-Server-Group: dovecot\r\nAuth-User: {user}\r\n{header}"
            async with loopback_worker(proxy(group), http_response(head)) as w:
                await log_in(w)
        return greeted[0]

    def found(key: str) -> str:
        scores = {name: rendezvous_score(b"dovecot", key.encode(), name.encode()) for name in "ab"}
        return max(scores, key=lambda name: scores[name])

    users = ["u0", *(f"u{n}" for n in range(1, 40) if found(f"u{n}") != found("u0"))][:2]

    async def play() -> None:
        assert [await reached(user, "") for user in users] == [found(user) for user in users]
        header = "Auth-Server-Hash: mailbox@EXAMPLE.org\r\n"
        assert {await reached(user, header) for user in users} == {found("mailbox@example.org")}

    run(play)


def test_auth_port_is_the_port_of_servers_without_one() -> None:
    async def play() -> None:
        head = "Auth-Status: OK\r\nAuth-Server-Group: dovecot\r\nAuth-Port: {port}\r\n"
        without = GroupServer(address="127.0.0.1", host="127.0.0.1")
        settings = UpstreamSettings(proxy_next_upstream=frozenset({NextUpstream.CONNECT}))
        group = UpstreamGroup(name="dovecot", servers=(at(1), without), settings=settings)
        async with loopback_worker(proxy(group), http_response(head)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            await w.upstream.accept()

    run(play)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("Auth-Server-Hash: " + "x" * 256, "Auth-Server-Hash of 256 bytes, at most 255 accepted"),
        ("Auth-Server-Hash: a\tb", "Auth-Server-Hash holds a control character"),
        ("Auth-Port: 0", 'Auth-Port \\"0\\" is not a port'),
    ],
)
def test_invalid_header_of_a_group_makes_the_response_invalid(header: str, text: str) -> None:
    async def play() -> None:
        group = UpstreamGroup(name="dovecot", servers=(at(1),))
        answer = http_response(f"Auth-Status: OK\r\nAuth-Server-Group: dovecot\r\n{header}\r\n")
        async with loopback_worker(proxy(group), answer) as w:
            assert await log_in(w) == b"* BAD internal server error\r\n"
            assert text in w.read_log()

    run(play)


@pytest.mark.parametrize(
    ("groups", "name", "text", "reason"),
    [
        ((), "dovecot", "Auth-Server-Group needs spec.upstreams", AuthErrorReason.NO_SERVER),
        (
            (UpstreamGroup(name="dovecot", servers=(at(1),)),),
            "old",
            'Auth-Server-Group \\"old\\" is not in spec.upstreams (dovecot)',
            AuthErrorReason.BAD_ADDRESS,
        ),
    ],
)
def test_group_that_does_not_exist_makes_the_response_invalid(
    groups: tuple[UpstreamGroup, ...], name: str, text: str, reason: AuthErrorReason
) -> None:
    async def play() -> None:
        answer = http_response(f"Auth-Status: OK\r\nAuth-Server-Group: {name}\r\n")
        async with loopback_worker(proxy(*groups), answer) as w:
            assert await log_in(w) == b"* BAD internal server error\r\n"
            assert text in w.read_log()
            assert w.value("mailproxy_auth_errors_total", reason) == 1

    run(play)

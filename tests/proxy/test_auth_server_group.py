# SPDX-License-Identifier: Apache-2.0
"""``Auth-Server-Group``: the authentication service names a group of upstreams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mailproxy.enums import AuthErrorReason
from mailproxy_config.model import AuthHttp, ListenConfig, NextUpstream, Protocol, ServerConfig
from mailproxy_config.upstream_groups import GroupServer, UpstreamGroup, UpstreamSettings
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

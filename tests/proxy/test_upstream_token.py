# SPDX-License-Identifier: Apache-2.0
"""Logins with access tokens of a token service, over sockets; and the secrets that a worker reads."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mailproxy.net.listen_plan import plan_sockets
from mailproxy.protocols.imap.upstream_auth import ImapAuthUpstream
from mailproxy.session import upstream_token
from mailproxy.session.login_secrets import read_login_secrets, read_secret
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import AuthHttp, ListenConfig, LogLevel, Protocol, Seconds, ServerConfig
from mailproxy_config.upstream_login import ProxyAuth, ProxyAuthToken, ProxyMasterUser, TokenGrant
from support import configs, invariants
from support.fault_injection import inject_fault
from support.loopback_worker import (
    GRANT,
    LoopbackWorker,
    Peer,
    http_response,
    listening_socket,
    loopback_worker,
    run,
)
from support.token_service import Answer, TokenService, answer, token, token_service

SECRET = "cl1ent-s3cret"
MAILBOX = "Auth-User: shared@tenant.example\r\n"
GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\r\n"
BAD = b"* BAD internal server error\r\n"


@dataclass
class Bridge:
    """A worker that logs in with tokens, and its token service."""

    w: LoopbackWorker
    service: TokenService

    async def client(self, password: bytes = b"pw") -> Peer:
        """A client that has sent its login."""
        client = await self.w.client()
        await client.read_line()
        await client.send(b"a LOGIN printer@tenant.example " + password + b"\r\n")
        return client

    async def upstream(self) -> tuple[Peer, bytes]:
        """The next connection to the upstream, and the message of its AUTHENTICATE."""
        upstream = await self.w.upstream.accept()
        line = await upstream.exchange(GREETING)
        assert line.startswith(b"a AUTHENTICATE XOAUTH2 ")
        return upstream, b64decode(line.split()[3])


@contextlib.asynccontextmanager
async def bridge(
    tmp_path: Path, *answers: Answer, grant: TokenGrant = TokenGrant.CLIENT_CREDENTIALS, **directives: Any
) -> AsyncIterator[Bridge]:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    async with token_service(*answers) as service:
        client = ProxyAuthToken(
            token_url=service.url,
            client_id="app",
            client_secret_file=str(secret),
            scope="all",
            grant=grant,
            refresh_token_file=str(secret) if grant is TokenGrant.REFRESH_TOKEN else None,
        )

        def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
            return configs.server(
                Protocol.IMAP,
                **{
                    "auth_http": auth,
                    "listen": (listen,),
                    "error_log": LogLevel.DEBUG,
                    "proxy_auth": (ProxyAuth.XOAUTH2,),
                    "proxy_auth_token": client,
                    **directives,
                },
            )

        async with loopback_worker(build, http_response(GRANT + MAILBOX)) as w:
            yield Bridge(w, service)


def message(value: str) -> bytes:
    return b"user=shared@tenant.example\x01auth=Bearer " + value.encode() + b"\x01\x01"


def test_client_with_a_password_is_logged_in_with_a_token(tmp_path: Path) -> None:
    """The mailbox is the one of ``Auth-User``; the client's password is not sent."""

    async def play() -> None:
        async with bridge(tmp_path, token("t1")) as b:
            for _ in range(3):
                client = await b.client()
                upstream, sent = await b.upstream()
                assert sent == message("t1")
                await upstream.send(b"a OK [CAPABILITY IMAP4rev1] in\r\n")
                assert await client.read_line() == b"a OK [CAPABILITY IMAP4rev1] in\r\n"
            assert b.service.forms == [
                {
                    "grant_type": "client_credentials",
                    "client_id": "app",
                    "client_secret": SECRET,
                    "scope": "all",
                }
            ]
            assert b.w.value("mailproxy_token_requests_total", "ok") == 1

    run(play)


def test_refused_token_is_replaced_and_the_login_repeated_on_a_new_connection(tmp_path: Path) -> None:
    async def play() -> None:
        async with bridge(tmp_path, token("t1"), token("t2")) as b:
            client = await b.client()
            upstream, sent = await b.upstream()
            assert sent == message("t1")
            assert await upstream.exchange(b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n") == b"\r\n"
            await upstream.send(b"a NO AUTHENTICATE failed\r\n")
            second, sent = await b.upstream()
            assert sent == message("t2")
            assert await upstream.read_to_eof() == b""
            await second.send(b"a OK in\r\n")
            assert await client.read_line() == b"a OK in\r\n"
            assert await second.exchange(b"* 1 EXISTS\r\n" if client.close() else b"") == b""
            assert "token_refused" in b.w.read_log()
            assert b.w.value("mailproxy_upstream_errors_total", "imap", "login") == 0

    run(play)


def test_second_refusal_is_an_outage(tmp_path: Path) -> None:
    """The client gets no refusal, so that it does not ask for another password."""

    async def play() -> None:
        async with bridge(tmp_path, token("t1"), token("t2"), proxy_pass_error_message=True) as b:
            client = await b.client()
            for _ in range(2):
                upstream, _ = await b.upstream()
                await upstream.send(b"a NO no\r\n")
            assert await client.read_line() == BAD
            assert await client.read_to_eof() == b""
            assert b.w.value("mailproxy_logins_total", "imap", "password", "upstream_failed") == 1
            assert len(b.service.forms) == 2
            # Within a minute, no token is requested for this reason again.
            client = await b.client()
            upstream, sent = await b.upstream()
            assert sent == message("t2")
            await upstream.send(b"a NO no\r\n")
            assert await client.read_line() == BAD
            assert len(b.service.forms) == 2

    run(play)


def test_upstream_that_is_gone_at_the_second_connection(tmp_path: Path) -> None:
    async def play() -> None:
        async with bridge(tmp_path, token("t1"), token("t2")) as b:
            client = await b.client()
            upstream, _ = await b.upstream()
            await upstream.send(b"a NO no\r\n")
            second = await b.w.upstream.accept()
            second.close()
            assert await client.read_line() == BAD

    run(play)


@pytest.mark.parametrize(
    "where", [(upstream_token, "open_socket"), (ImapAuthUpstream, "log_in")], ids=["a socket", "the login"]
)
def test_internal_error_of_the_second_connection_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    async def play() -> None:
        async with bridge(tmp_path, token("t1"), token("t2")) as b:
            inject = inject_fault(monkeypatch, where)
            client = await b.client()
            upstream, _ = await b.upstream()
            inject()
            await upstream.send(b"a NO no\r\n")
            assert await client.read_line() == BAD
            assert await client.read_to_eof() == b""
            assert await upstream.read_to_eof() == b""
            client.close()
            upstream.close()
            await invariants.wait_until_idle(b.w.app, b.w.metrics)
            assert b.w.read_log().count(" internal_error ") == 1

    run(play)


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (answer({"error": "invalid_client"}, status="401 Unauthorized"), "refused"),
        (answer(b"<html>", status="503 Unavailable"), "unavailable"),
        (answer(b"<html>hello</html>"), "invalid"),
        (b"", "unavailable"),
    ],
)
def test_login_without_a_token_is_an_outage(tmp_path: Path, reply: bytes, result: str) -> None:
    async def play() -> None:
        async with bridge(tmp_path, reply) as b:
            client = await b.client()
            assert await client.read_line() == BAD
            log = b.w.read_log()
            assert "token_request_failed" in log
            assert "no access token" in log
            assert b.w.value("mailproxy_token_requests_total", result) == 1
            assert b.w.value("mailproxy_upstream_errors_total", "imap", "token") == 1

    run(play)


async def _hang() -> bytes:
    await asyncio.sleep(60)
    return b""


def test_token_service_that_hangs_is_limited_by_the_timeout_of_the_login(tmp_path: Path) -> None:
    async def play() -> None:
        async with bridge(tmp_path, _hang, timeout=Seconds(0.3)) as b:
            client = await b.client()
            assert await client.read_line() == BAD
            assert "no access token within the timeout of the login" in b.w.read_log()

    run(play)


def test_client_that_leaves_while_a_token_is_requested(tmp_path: Path) -> None:
    async def play() -> None:
        started, go_on = asyncio.Event(), asyncio.Event()

        async def late() -> bytes:
            started.set()
            await go_on.wait()
            return token("t1")

        async with bridge(tmp_path, late) as b:
            client = await b.client()
            await started.wait()
            client.reset()
            await b.w.wait_for_sessions()
            go_on.set()
            client = await b.client()
            skipped = await b.w.upstream.accept()
            upstream, sent = await b.upstream()
            assert sent == message("t1")
            await upstream.send(b"a OK in\r\n")
            assert await client.read_line() == b"a OK in\r\n"
            assert await skipped.read_to_eof() == b""
            assert "internal_error" not in b.w.read_log()

    run(play)


def test_upstream_that_leaves_while_a_token_is_requested(tmp_path: Path) -> None:
    async def play() -> None:
        go_on = asyncio.Event()

        async def late() -> bytes:
            await go_on.wait()
            return token("t1")

        async with bridge(tmp_path, late) as b:
            client = await b.client()
            (await b.w.upstream.accept()).close()
            go_on.set()
            assert await client.read_line() == BAD
            assert "internal_error" not in b.w.read_log()

    run(play)


def test_no_secret_is_logged(tmp_path: Path) -> None:
    """Neither at the level ``debug``, nor where the upstream repeats what it got."""

    async def play() -> None:
        async with bridge(
            tmp_path, token("t0ken-1"), token("t0ken-2"), grant=TokenGrant.REFRESH_TOKEN, max_errors=99
        ) as b:
            for reply in (b"a NO bad ", b"a BAD ", b"* BYE "):
                client = await b.client(b"pw-of-client")
                for _ in range(2):
                    upstream = await b.w.upstream.accept()
                    line = await upstream.exchange(GREETING)
                    await upstream.send(reply + line.split()[3] + b" " + b64decode(line.split()[3]) + b"\r\n")
                    if reply != b"a NO bad ":
                        break
                assert await client.read_line() == BAD
            log = b.w.read_log()
            assert "***" in log
            for secret in (SECRET, "t0ken", "pw-of-client", "Bearer", "dXNlcj"):
                assert secret not in log

    run(play)


def test_token_is_kept_over_a_reload(tmp_path: Path) -> None:
    async def play() -> None:
        async with bridge(tmp_path, token("t1"), token("t2")) as b:

            async def login(expected: str) -> None:
                client = await b.client()
                upstream, sent = await b.upstream()
                assert sent == message(expected)
                await upstream.send(b"a OK in\r\n")
                assert await client.read_line() == b"a OK in\r\n"

            async def reload() -> None:
                sock = listening_socket()
                port = sock.getsockname()[1]
                server = dataclasses.replace(
                    b.w.config.servers[0], listen=(ListenConfig(address="127.0.0.1", port=port),)
                )
                config = dataclasses.replace(b.w.config, servers=(server,))
                sockets = {planned.key: [sock] for planned in plan_sockets(config, {})}
                await b.w.app.apply(config, sockets, names={}, ticket_keys={})
                b.w.port = port

            await login("t1")
            await reload()
            await login("t1")
            (tmp_path / "secret").write_text("another\n")
            await reload()
            await login("t2")
            assert [form["client_secret"] for form in b.service.forms] == [SECRET, "another"]

    run(play)


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_file_with_a_secret_must_be_readable_and_not_empty(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    master = ProxyMasterUser(user="proxy", password_file=str(path))
    with pytest.raises(ConfigError) as caught:
        read_login_secrets(configs.server(Protocol.IMAP, proxy_master_user=master))
    assert caught.value.problems[0].path == "servers[imap].proxy_master_user"
    assert str(path) in caught.value.problems[0].reason


def test_one_line_end_is_removed_from_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for content, secret in ((b"a\n", b"a"), (b"a\r\n", b"a"), (b" a \n\n", b" a \n"), (b"a", b"a")):
        path.write_bytes(content)
        assert read_secret("imap", "proxy_auth_token", str(path)).reveal() == secret


def test_master_user_logs_in_over_sockets(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("m4ster\r\n")
    master = ProxyMasterUser(user="proxy", password_file=str(path))

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return configs.server(Protocol.POP3, auth_http=auth, listen=(listen,), proxy_master_user=master)

    async def play() -> None:
        async with loopback_worker(build, http_response(GRANT)) as w:
            client = await w.client()
            await client.read_line()
            await client.exchange(b"USER bob\r\n")
            await client.send(b"PASS pw\r\n")
            upstream = await w.upstream.accept()
            assert await upstream.exchange(b"+OK\r\n") == b"USER bob*proxy\r\n"
            assert await upstream.exchange(b"+OK\r\n") == b"PASS m4ster\r\n"
            await upstream.send(b"-ERR m4ster is wrong\r\n")
            assert await client.read_line() == b"-ERR internal server error\r\n"
            assert "m4ster" not in w.read_log()

    run(play)

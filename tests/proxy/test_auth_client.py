# SPDX-License-Identifier: Apache-2.0
"""Requests to an authentication service on loopback: connections that are reused, lost, slow, hostile."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, Seconds, ServerConfig
from support.configs import server
from support.loopback_worker import (
    GRANT,
    Builder,
    LoopbackWorker,
    Response,
    http_response,
    loopback_worker,
    run,
)
from support.needs import Needs
from support.private_authority import openssl_authority, verify_strictly_by_default

DENIED = http_response("Auth-Status: no\r\n")


def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.POP3, auth_http=auth, listen=(listen,))


def impatient(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.POP3, auth_http=auth, listen=(listen,), auth_http_timeout=Seconds(0.2))


async def log_in_and_read_reply(w: LoopbackWorker) -> bytes:
    client = await w.client()
    await client.read_line()
    await client.send(b"USER u\r\nPASS p\r\n")
    replies = await client.read_to_eof()
    client.close()
    return replies.removeprefix(b"+OK\r\n")


def test_one_connection_carries_many_requests() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            for _ in range(5):
                assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            assert len(w.auth.requests) == 5
            assert w.auth.connections == 1
            assert w.value("mailproxy_auth_requests_in_flight") == 0

    run(play)


def test_concurrent_requests_use_a_connection_each() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            async with asyncio.TaskGroup() as group:
                attempts = [group.create_task(log_in_and_read_reply(w)) for _ in range(20)]
            assert {one.result() for one in attempts} == {b"-ERR no\r\n"}

    run(play)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.0 200 OK\r\nAuth-Status: no\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nAuth-Status: no\r\n\r\n<html>",
        b"HTTP/1.1 500 Oops\r\nAuth-Status: no\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nAuth-Status: no\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"Auth-Status: no\n\n",
    ],
)
@pytest.mark.parametrize("closes", [False, True])
def test_every_framing_of_a_response_is_accepted_repeatedly(reply: bytes, closes: bool) -> None:
    async def play() -> None:
        async with loopback_worker(build, reply, closes=closes) as w:
            for _ in range(3):
                assert await log_in_and_read_reply(w) == b"-ERR no\r\n"

    run(play)


def test_late_body_is_not_taken_for_the_next_response() -> None:
    head, body = DENIED.replace(b"Content-Length: 0", b"Content-Length: 6"), b"later!"

    async def play() -> None:
        async with loopback_worker(build, (head, body), DENIED) as w:
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            await asyncio.sleep(0.1)
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            assert w.auth.connections == 2

    run(play)


def test_connection_closed_while_idle_is_replaced() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED, closes=True) as w:
            w.auth.responses = [DENIED]  # keep-alive is announced, but the connection is closed
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            assert w.auth.connections == 2

    run(play)


def test_bytes_on_an_idle_connection_are_no_response() -> None:
    bored = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            client = await w.client()
            await client.read_line()
            client.writer.write(b"USER u\r\nPASS p\r\n")
            w.auth.writers[0].write(bored)  # in the same iteration: the request is not sent yet
            assert await client.read_to_eof() == b"+OK\r\n-ERR no\r\n"
            assert (w.auth.connections, len(w.auth.requests)) == (2, 2)
            client.close()

    run(play)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nBad_Name: x\r\n\r\n", "invalid_response"),
        (b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\n\r\n", "no_server"),
        (
            b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: localhost\r\nAuth-Port: 1\r\n\r\n",
            "bad_address",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20000, "invalid_response"),
    ],
)
def test_invalid_response_gets_internal_error_reply_and_is_counted(reply: bytes, reason: str) -> None:
    async def play() -> None:
        async with loopback_worker(build, reply) as w:
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert w.value("mailproxy_auth_errors_total", reason) == 1
            assert w.value("mailproxy_logins_total", "pop3", "password", "invalid_response") == 1

    run(play)


def test_truncated_response_fails_at_once() -> None:
    async def play() -> None:
        async with loopback_worker(build, b"HTTP/1.1 200 OK\r\nAuth-Sta", closes=True) as w:
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert w.value("mailproxy_logins_total", "pop3", "password", "unavailable") == 1

    run(play)


def test_request_times_out_after_auth_http_timeout() -> None:
    async def never(_request: bytes) -> bytes:
        await asyncio.sleep(1.0)
        return DENIED

    async def play(reply: Response = never) -> None:
        async with loopback_worker(impatient, reply) as w:
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert w.value("mailproxy_auth_errors_total", "timeout") == 1
            assert w.value("mailproxy_logins_total", "pop3", "password", "timeout") == 1

    run(play)


def test_service_that_refuses_connections_is_reported() -> None:
    def nowhere(_auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(Protocol.POP3, auth_http=AuthHttp(host="127.0.0.1", port=1), listen=(listen,))

    async def play() -> None:
        async with loopback_worker(nowhere, DENIED) as w:
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert w.value("mailproxy_auth_errors_total", "connect") == 1
            assert w.value("mailproxy_auth_requests_in_flight") == 0

    run(play)


def test_deferred_request_is_repeated_with_user_and_password_of_the_response() -> None:
    async def play() -> None:
        wait = http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\nAuth-User: other\r\n")
        async with loopback_worker(build, wait, DENIED) as w:
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            first, second = w.auth.requests
            assert b"Auth-User: u\r\n" in first
            assert b"Auth-User: other\r\n" in second
            assert b"Auth-Login-Attempt: 1\r\n" in second

    run(play)


def test_allowed_login_connects_to_the_upstream_of_the_response() -> None:
    async def play() -> None:
        async with loopback_worker(
            build, http_response(GRANT + "Auth-User: other\r\nAuth-Pass: word\r\n")
        ) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"USER u\r\nPASS p\r\n")
            upstream = await w.upstream.accept()
            assert await upstream.exchange(b"+OK\r\n") == b"USER other\r\n"
            assert await upstream.exchange(b"+OK\r\n") == b"PASS word\r\n"
            client.close()
            upstream.close()

    run(play)


@pytest.mark.parametrize("trusted", [True, False])
def test_https_service_needs_a_trusted_certificate(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    (authority if trusted else stranger).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def play() -> None:
        async with loopback_worker(build, DENIED, auth_tls=context) as w:
            if trusted:
                for _ in range(3):
                    assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
                assert w.auth.connections == 1
            else:
                assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
                assert w.auth.requests == []
                assert w.value("mailproxy_auth_errors_total", "tls") == 1

    run(play)


def test_https_service_with_a_private_ca_is_accepted(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.13 requires extensions that such certificates lack; nginx and OpenSSL do not."""
    authority = openssl_authority(needs("openssl"), tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    verify_strictly_by_default(monkeypatch)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)

    async def play() -> None:
        async with loopback_worker(build, DENIED, auth_tls=context) as w:
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"


def test_without_keepalive_each_request_is_http_1_0_on_its_own_connection() -> None:
    def off(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(Protocol.POP3, auth_http=auth, listen=(listen,), auth_http_keepalive=False)

    async def play() -> None:
        async with loopback_worker(off, DENIED) as w:  # its responses offer keep-alive
            for _ in range(3):
                assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            assert w.auth.connections == 3
            assert all(request.startswith(b"GET / HTTP/1.0\r\nHost: ") for request in w.auth.requests)
            assert not any(b"Connection:" in request for request in w.auth.requests)

    run(play)


# The log.


async def logged(build: Builder, *responses: Response) -> str:
    """Return the line of a login that failed at the service."""
    async with loopback_worker(build, *responses) as w:
        assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
        (line,) = [line for line in w.read_log().splitlines() if " authorization_failed " in line]
        return line


def test_refused_connection_is_logged() -> None:
    def nowhere(_auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(Protocol.POP3, auth_http=AuthHttp(host="127.0.0.1", port=1), listen=(listen,))

    line = run(lambda: logged(nowhere, DENIED))
    assert 'reason="connecting to 127.0.0.1:1 failed: Connection refused"' in line
    assert "service=127.0.0.1:1" in line


def test_unresolved_name_is_logged() -> None:
    def nowhere(_auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(Protocol.POP3, auth_http=AuthHttp(host="auth.invalid", port=80), listen=(listen,))

    line = run(lambda: logged(nowhere, DENIED))
    assert "does not resolve" in line
    assert "service=auth.invalid:80" in line


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("502 Bad Gateway", "HTTP status 502: the authentication service, or a gateway before it, failed"),
        (
            "404 Not Found",
            "HTTP status 404: the service does not have this path; check the path in auth_http",
        ),
        ("401 Unauthorized", "HTTP status 401: the service requires credentials of the proxy"),
        ("301 Moved Permanently", "HTTP status 301: redirects are not followed; set auth_http to the URL"),
    ],
)
def test_http_status_is_logged(status: str, words: str) -> None:
    page = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>".encode()
    assert words in run(lambda: logged(build, page))


def test_invalid_upstream_address_is_logged() -> None:
    named = http_response("Auth-Status: OK\r\nAuth-Server: dovecot.mail.svc\r\nAuth-Port: 143\r\n")
    line = run(lambda: logged(build, named))
    assert "dovecot.mail.svc" in line
    assert "the authentication service must resolve names" in line


def test_lost_connection_is_logged() -> None:
    async def play() -> None:
        async with loopback_worker(build, b"HTTP/1.1 200 OK\r\n", closes=True) as w:
            await log_in_and_read_reply(w)
            where = f"127.0.0.1:{w.auth.port}"
            assert (
                f'reason="the connection to {where} was lost: closed before the header ended"' in w.read_log()
            )

    run(play)


def test_internal_error_in_a_connection_ends_only_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError

    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            with monkeypatch.context() as patch:
                patch.setattr("mailproxy.auth_http.connection.AuthConnection._receive", crash)
                assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert await log_in_and_read_reply(w) == b"-ERR no\r\n"
            assert w.value("mailproxy_auth_requests_in_flight") == 0

    run(play)

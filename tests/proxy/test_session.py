# SPDX-License-Identifier: Apache-2.0
"""One client from accept to relay, over loopback, with real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mailproxy.session import lingering_close
from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    Protocol,
    ResolverConfig,
    Seconds,
    SendProxyProtocol,
    ServerConfig,
)
from support.configs import server
from support.loopback_worker import GRANT, Builder, LoopbackWorker, Peer, http_response, loopback_worker, run

DENIED = http_response("Auth-Status: Invalid login or password\r\n")
GRANTED = http_response(GRANT)


def imap(**directives: object) -> Builder:
    return _builder(Protocol.IMAP, directives)


def pop3(**directives: object) -> Builder:
    return _builder(Protocol.POP3, directives)


def smtp(**directives: object) -> Builder:
    return _builder(Protocol.SMTP, directives)


def _builder(protocol: Protocol, directives: dict[str, object]) -> Builder:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(protocol, **{"auth_http": auth, "listen": (listen,), **directives})

    return build


async def log_in_upstream(w: LoopbackWorker) -> Peer:
    upstream = await w.upstream.accept()
    await upstream.send(b"* OK upstream ready\r\n")
    assert await upstream.read_line() == b"a LOGIN {5}\r\n"
    assert await upstream.exchange(b"+ go on\r\n") == b"alice {6}\r\n"
    assert await upstream.exchange(b"+ go on\r\n") == b"secret\r\n"
    await upstream.send(b"a OK logged in\r\n")
    return upstream


def test_login_starts_relay_and_pipelined_bytes_arrive_once() -> None:
    async def play() -> None:
        async with loopback_worker(imap(), GRANTED) as w:
            client = await w.client()
            assert await client.read_line() == b"* OK IMAP4 ready\r\n"
            await client.send(b"a LOGIN alice secret\r\nb SELECT INBOX\r\nc NOOP\r\n")
            upstream = await log_in_upstream(w)
            assert await client.read_line() == b"a OK logged in\r\n"
            assert await upstream.read_lines(2) == [b"b SELECT INBOX\r\n", b"c NOOP\r\n"]
            await upstream.send(b"b OK\r\nc OK\r\n")
            assert await client.read_lines(2) == [b"b OK\r\n", b"c OK\r\n"]
            client.close()
            assert await upstream.read_to_eof() == b""
            upstream.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_logins_total", "imap", "password", "success") == 1
            assert w.value("mailproxy_connections_active", "imap", "imap") == 0
            assert w.value("mailproxy_relayed_bytes_total", "imap", "to_upstream") == 24
            assert w.value("mailproxy_relayed_bytes_total", "imap", "to_client") == 12
            assert 'user="alice"' in (log := w.read_log()) or "user=alice" in log
            assert "secret" not in log

    run(play)


def test_denied_login_without_auth_wait_closes_connection() -> None:
    async def play() -> None:
        async with loopback_worker(imap(), DENIED) as w:
            client = await w.client()
            await client.read_line()
            assert await client.exchange(b"a LOGIN alice wrong\r\n") == b"a NO Invalid login or password\r\n"
            assert await client.read_to_eof() == b""
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_logins_total", "imap", "password", "denied") == 1
            assert w.value("mailproxy_connections_closed_total", "imap", "imap", "auth_rejected") == 1

    run(play)


def test_denied_login_with_auth_wait_keeps_connection() -> None:
    async def play() -> None:
        wait = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n")
        async with loopback_worker(pop3(), wait, GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"USER alice\r\nPASS wrong\r\nUSER alice\r\nPASS secret\r\n")
            assert await client.read_lines(3) == [b"+OK\r\n", b"-ERR no\r\n", b"+OK\r\n"]
            upstream = await w.upstream.accept()
            assert await upstream.exchange(b"+OK\r\n") == b"USER alice\r\n"
            assert await upstream.exchange(b"+OK\r\n") == b"PASS secret\r\n"
            await upstream.send(b"+OK in\r\n")
            assert await client.read_line() == b"+OK in\r\n"
            assert b"Auth-Login-Attempt: 2\r\n" in w.auth.requests[1]
            client.close()
            upstream.close()

    run(play)


def test_upstream_error_is_passed_on_with_proxy_pass_error_message() -> None:
    async def play() -> None:
        async with loopback_worker(pop3(proxy_pass_error_message=True), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"USER alice\r\nPASS secret\r\n")
            upstream = await w.upstream.accept()
            await upstream.exchange(b"+OK\r\n")
            await upstream.exchange(b"+OK\r\n")
            await upstream.send(b"-ERR [AUTH] mailbox over quota\r\n")
            assert await client.read_to_eof() == b"+OK\r\n-ERR [AUTH] mailbox over quota\r\n"
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_logins_total", "pop3", "password", "upstream_denied") == 1
            assert w.value("mailproxy_upstream_errors_total", "pop3", "login") == 1

    run(play)


@pytest.mark.parametrize(
    ("build", "response", "error_reply"),
    [
        (imap(), b"a LOGIN u p\r\n", b"* BAD internal server error\r\n"),
        (pop3(), b"USER u\r\nPASS p\r\n", b"+OK\r\n-ERR internal server error\r\n"),
        (smtp(), b"AUTH PLAIN AHUAcA==\r\n", b"451 4.3.2 Internal server error\r\n"),
    ],
)
def test_internal_error_reply_of_each_protocol(build: Builder, response: bytes, error_reply: bytes) -> None:
    async def play() -> None:
        async with loopback_worker(build, b"nonsense\x00\r\n\r\n") as w:
            client = await w.client()
            await client.read_line()
            await client.send(response)
            assert await client.read_to_eof() == error_reply
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_auth_errors_total", "invalid_response") == 1

    run(play)


def test_upstream_that_refuses_connections_gets_internal_error_reply() -> None:
    async def play() -> None:
        gone = http_response("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 1\r\n")
        async with loopback_worker(imap(), gone) as w:
            client = await w.client()
            await client.read_line()
            assert await client.exchange(b"a LOGIN u p\r\n") == b"* BAD internal server error\r\n"
            assert await client.read_to_eof() == b""
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_upstream_errors_total", "imap", "connect") == 1
            assert w.value("mailproxy_logins_total", "imap", "password", "upstream_failed") == 1

    run(play)


def test_upstream_that_hangs_fails_after_timeout() -> None:
    async def play() -> None:
        async with loopback_worker(imap(timeout=Seconds(0.2)), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN u p\r\n")
            upstream = await w.upstream.accept()
            assert await client.read_to_eof() == b"* BAD internal server error\r\n"
            assert await upstream.read_to_eof() == b""
            upstream.close()
            client.close()

    run(play)


def test_idle_client_is_closed_without_a_reply_after_timeout() -> None:
    async def play() -> None:
        async with loopback_worker(imap(timeout=Seconds(0.1)), GRANTED) as w:
            client = await w.client()
            assert await client.read_to_eof() == b"* OK IMAP4 ready\r\n"
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_connections_closed_total", "imap", "imap", "preauth_timeout") == 1

    run(play)


def test_timeout_starts_at_greeting() -> None:
    async def play() -> None:
        async with loopback_worker(imap(timeout=Seconds(0.3)), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            answered = 0
            while await client.exchange(b"a NOOP\r\n"):
                answered += 1
                await asyncio.sleep(0.02)
            assert answered > 1
            client.close()

    run(play)


def test_client_above_worker_connections_gets_busy_reply() -> None:
    async def play() -> None:
        async with loopback_worker(smtp(), GRANTED, limit=1) as w:
            first = await w.client()
            assert (await first.read_line()).startswith(b"220 ")
            second = await w.client()
            assert (await second.read_to_eof()).startswith(b"421 ")
            second.close()
            assert w.value("mailproxy_limit_rejections_total", "smtp", "conn_total", "enforce") == 1
            assert await first.exchange(b"QUIT\r\n") == b"221 2.0.0 Bye\r\n"
            first.close()
            await w.wait_for_sessions()
            third = await w.client()
            assert (await third.read_line()).startswith(b"220 ")
            third.close()

    run(play)


def test_logged_in_client_counts_once_towards_worker_connections() -> None:
    async def play() -> None:
        async with loopback_worker(imap(), GRANTED, limit=2) as w:
            first = await w.client()
            await first.read_line()
            await first.send(b"a LOGIN alice secret\r\n")
            upstream = await log_in_upstream(w)
            assert await first.read_line() == b"a OK logged in\r\n"
            second, refused = await w.client(), await w.client()
            assert await second.read_line() == b"* OK IMAP4 ready\r\n"
            assert (await refused.read_to_eof()).startswith(b"* BYE ")
            first.close()
            assert await upstream.read_to_eof() == b""
            await w.wait_for_sessions(1)
            third = await w.client()
            assert await third.read_line() == b"* OK IMAP4 ready\r\n"
            for each in (upstream, second, refused, third):
                each.close()

    run(play)


def test_client_reset_during_auth_request_aborts_the_login() -> None:
    async def play() -> None:
        request_received = asyncio.Event()

        async def slowly(_request: bytes) -> bytes:
            request_received.set()
            await asyncio.sleep(0.3)
            return GRANTED

        async with loopback_worker(imap(), slowly) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN u p\r\n")
            await request_received.wait()
            client.reset()
            await w.wait_for_sessions()
            assert w.value("mailproxy_logins_total", "imap", "password", "aborted") == 1
            assert w.upstream.accepted.empty()

    run(play)


def test_drain_ends_sessions_before_login_and_keeps_relays() -> None:
    async def play() -> None:
        async with loopback_worker(imap(), GRANTED) as w:
            early, late = await w.client(), await w.client()
            await early.read_line()
            await late.read_line()
            await late.send(b"a LOGIN alice secret\r\n")
            upstream = await log_in_upstream(w)
            await late.read_line()
            async with asyncio.TaskGroup() as group:
                draining = group.create_task(w.app.drain(5.0))
                assert (await early.read_to_eof()).startswith(b"* BYE ")
                early.close()
                await upstream.send(b"* 1 EXISTS\r\n")
                assert await late.read_line() == b"* 1 EXISTS\r\n"
                assert not draining.done()
                upstream.close()
                assert await late.read_to_eof() == b""
            late.close()
            with pytest.raises(ConnectionRefusedError):
                await w.client()

    run(play)


def test_drain_timeout_aborts_relays() -> None:
    async def play() -> None:
        async with loopback_worker(imap(), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice secret\r\n")
            upstream = await log_in_upstream(w)
            await client.read_line()
            await w.app.drain(0.1)
            assert await client.read_to_eof() == b""
            assert w.value("mailproxy_connections_closed_total", "imap", "imap", "drain") == 1
            upstream.close()
            client.close()

    run(play)


HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 143\r\n"


@pytest.mark.parametrize("cut", [1, 5, 20, len(HEADER) - 1, len(HEADER), len(HEADER) + 3])
def test_proxy_header_in_pieces_and_with_commands(cut: int) -> None:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        listen = ListenConfig(address=listen.address, port=listen.port, proxy_protocol=True)
        return server(Protocol.IMAP, auth_http=auth, listen=(listen,), set_real_ip_from=("127.0.0.0/8",))

    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            client = await w.client()
            data = HEADER + b"a LOGIN u p\r\n"
            await client.send(data[:cut])
            await asyncio.sleep(0.02)
            await client.send(data[cut:])
            assert await client.read_lines(2) == [
                b"* OK IMAP4 ready\r\n",
                b"a NO Invalid login or password\r\n",
            ]
            request = w.auth.requests[0]
            assert b"Client-IP: 192.0.2.7\r\n" in request
            assert b"Proxy-Protocol-Addr: 192.0.2.7\r\nProxy-Protocol-Port: 5000\r\n" in request
            assert w.value("mailproxy_proxy_protocol_headers_total", "imap", "v1") == 1
            client.close()

    run(play)


def test_missing_proxy_header_closes_without_a_reply() -> None:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        listen = ListenConfig(address=listen.address, port=listen.port, proxy_protocol=True)
        return server(Protocol.IMAP, auth_http=auth, listen=(listen,))

    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            client = await w.client()
            await client.send(b"a LOGIN u p\r\n")
            assert await client.read_to_eof() == b""
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_connections_closed_total", "imap", "imap", "proxy_protocol_failed") == 1

    run(play)


def test_proxy_header_is_sent_to_upstream_first() -> None:
    async def play() -> None:
        async with loopback_worker(imap(proxy_protocol=SendProxyProtocol.V1), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice secret\r\n")
            upstream = await w.upstream.accept()
            own, port = client.writer.get_extra_info("sockname")
            assert await upstream.read_line() == f"PROXY TCP4 {own} 127.0.0.1 {port} {w.port}\r\n".encode()
            client.close()
            upstream.close()

    run(play)


def test_early_talker_is_rejected_during_greeting_delay() -> None:
    async def play() -> None:
        async with loopback_worker(smtp(smtp_greeting_delay=Seconds(5.0)), DENIED) as w:
            client = await w.client()
            await client.send(b"HELO x\r\n")
            assert await client.read_to_eof() == b"503 5.5.0 Improper use of SMTP command pipelining\r\n"
            client.close()

    run(play)


def test_greeting_is_sent_after_greeting_delay() -> None:
    async def play() -> None:
        async with loopback_worker(smtp(smtp_greeting_delay=Seconds(0.05)), DENIED) as w:
            client = await w.client()
            assert await client.read_line() == b"220 mail.example.com ESMTP ready\r\n"
            client.close()

    run(play)


def test_client_that_does_not_read_is_closed_after_timeout() -> None:
    async def play() -> None:
        many = tuple(f"X{'Y' * 200}{n}" for n in range(32))
        async with loopback_worker(imap(imap_capabilities=many, timeout=Seconds(0.5)), DENIED) as w:
            client = await w.client()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(400):
                client.writer.write(b"a CAPABILITY\r\n" * 200)
            await w.wait_for_sessions()
            client.reset()

    run(play)


def test_drain_waits_for_lingering_close() -> None:
    """A drain waits for connections in their lingering close."""

    async def play() -> None:
        async with loopback_worker(imap(imap_client_buffer=128), DENIED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"x" * 2000)
            await w.wait_for_sessions()
            assert len(w.app.context.lingering) == 1
            async with asyncio.TaskGroup() as group:
                draining = group.create_task(w.app.drain(60.0))
                await asyncio.sleep(0.2)
                assert not draining.done()
                assert (await client.read_to_eof()).startswith(b"* BAD")
                client.close()
            assert not w.app.context.lingering

    run(play)


def test_drain_timeout_ends_lingering_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lingering_close, "LINGER_SECONDS", 3600.0)

    async def play() -> None:
        async with loopback_worker(imap(imap_client_buffer=128), DENIED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"x" * 2000)
            await w.wait_for_sessions()
            await w.app.drain(0.1)
            assert not w.app.context.lingering
            client.reset()

    run(play)


def test_drain_does_not_wait_for_name_lookup() -> None:
    async def play() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            resolver = ResolverConfig(addresses=(f"127.0.0.1:{silent.getsockname()[1]}",))
            async with loopback_worker(smtp(resolver=resolver), DENIED) as w:
                client = await w.client()
                await w.wait_for_sessions(1)
                await w.app.drain(60.0)
                assert (await client.read_to_eof()).startswith(b"421 ")
                client.close()

    run(play)


def test_drain_ends_auth_wait() -> None:
    async def play() -> None:
        async with loopback_worker(pop3(), http_response("Auth-Status: no\r\nAuth-Wait: 60\r\n")) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"USER alice\r\nPASS wrong\r\n")
            await client.read_line()
            while not w.value("mailproxy_logins_total", "pop3", "password", "denied"):
                await asyncio.sleep(0.005)
            await w.app.drain(60.0)
            assert (await client.read_to_eof()).startswith(b"-ERR ")
            client.close()

    run(play)

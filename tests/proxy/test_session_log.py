# SPDX-License-Identifier: Apache-2.0
"""Log events of failed sessions: stage, reply and reason."""

from __future__ import annotations

import asyncio
import base64
import socket
from pathlib import Path

import pytest

from mailproxy.session.session import Session
from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    LogLevel,
    Protocol,
    ResolverConfig,
    Seconds,
    ServerConfig,
)
from support.configs import server
from support.loopback_worker import GRANT, Builder, LoopbackWorker, http_response, loopback_worker, run
from support.tls_identities import Identities

GRANTED = http_response(GRANT)
DENIED = http_response("Auth-Status: Invalid login or password\r\nAuth-Error-Code: 535 5.7.8\r\n")
PLAIN = base64.b64encode(b"\0alice\0s3cr3t-word")


def built(
    protocol: Protocol, *, proxy_header: bool = False, ssl: bool = False, **directives: object
) -> Builder:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        listen = ListenConfig(address=listen.address, port=listen.port, proxy_protocol=proxy_header, ssl=ssl)
        known = {"error_log": LogLevel.INFO, "auth_http": auth, "listen": (listen,)}
        return server(protocol, **(known | directives))

    return build


imap = built(Protocol.IMAP)
pop3 = built(Protocol.POP3)
smtp = built(Protocol.SMTP, xclient=False)
LOGINS = {
    imap: b"a LOGIN alice s3cr3t-word\r\n",
    pop3: b"USER alice\r\nPASS s3cr3t-word\r\n",
    smtp: b"AUTH PLAIN " + PLAIN + b"\r\n",
}


async def refused_by_upstream(w: LoopbackWorker, login: bytes, *replies: bytes) -> str:
    """Log in at an upstream that sends this reply, and return the log."""
    client = await w.client()
    await client.read_line()
    await client.send(login)
    upstream = await w.upstream.accept()
    for number, reply in enumerate(replies):
        if number:
            await upstream.read_line()
        await upstream.send(reply)
    await client.read_to_eof()
    client.close()
    upstream.close()
    await w.wait_for_sessions()
    return w.read_log()


def line(log: str, event: str) -> str:
    """Return the only line of an event."""
    (found,) = [line for line in log.splitlines() if f" {event} " in line]
    return found


@pytest.mark.parametrize(
    ("build", "replies", "stage", "result"),
    [
        (imap, [b"* BYE full, come back later\r\n"], "greeting", "upstream_refused"),
        (imap, [b"* NO not now\r\n"], "greeting", "upstream_refused"),
        (pop3, [b"-ERR [SYS/TEMP] try later\r\n"], "greeting", "upstream_refused"),
        (smtp, [b"421 4.3.2 too busy\r\n"], "greeting", "upstream_refused"),
        (smtp, [b"220 up\r\n", b"502 5.5.2 no HELO here\r\n"], "hello", "upstream_refused"),
        (imap, [b"* OK up\r\n", b"* BYE shutting down\r\n"], "login", "upstream_refused"),
        (imap, [b"* OK up\r\n", b"a NO [ALERT] pay your bill\r\n"], "login", "upstream_denied"),
        (pop3, [b"+OK\r\n", b"+OK\r\n", b"-ERR [AUTH] no\r\n"], "login", "upstream_denied"),
    ],
)
def test_upstream_error_is_logged_with_reply_and_stage(
    build: Builder, replies: list[bytes], stage: str, result: str
) -> None:
    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            log = await refused_by_upstream(w, LOGINS[build], *replies)
            reply = f'reply="{replies[-1].decode().strip()}"'
            for event in ("upstream_failed", "session"):
                assert f"stage={stage} " in line(log, event)
                assert reply in line(log, event)
            assert f"result={result} " in line(log, "session")
            assert f"upstream=127.0.0.1:{w.upstream.port} " in line(log, "upstream_failed")
            assert " error upstream_failed " in log

    run(play)


def test_refused_xclient_is_logged_and_counted_as_refused() -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.SMTP), GRANTED) as w:
            replies = [b"220 up\r\n", b"250 up\r\n", b"550 5.7.0 you may not\r\n"]
            log = await refused_by_upstream(w, LOGINS[smtp], *replies)
            assert 'stage=xclient reply="550 5.7.0 you may not"' in line(log, "session")
            assert w.value("mailproxy_logins_total", "smtp", "plain", "upstream_refused") == 1
            assert w.value("mailproxy_upstream_errors_total", "smtp", "xclient") == 1

    run(play)


def test_denial_that_is_passed_on_is_logged_at_info() -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.POP3, proxy_pass_error_message=True), GRANTED) as w:
            log = await refused_by_upstream(w, LOGINS[pop3], b"+OK\r\n", b"+OK\r\n", b"-ERR no\r\n")
            assert " info upstream_failed " in log

    run(play)


@pytest.mark.parametrize(
    "reply",
    [
        b"a BAD unknown command s3cr3t-word\r\n",
        b"a BAD UNKNOWN COMMAND S3CR3T-WORD\r\n",
        b'a NO bad password "s3cr3t-w\r\n',
        b"s3cr3t-word BAD unknown command\r\n",
        b"a NO " + PLAIN + b"\r\n",
    ],
)
@pytest.mark.parametrize("is_shown", [True, False])
def test_reply_that_contains_the_password_is_not_logged(reply: bytes, is_shown: bool) -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.IMAP, proxy_pass_error_message=is_shown), GRANTED) as w:
            steps = [b"* OK up\r\n", b"+\r\n", b"+\r\n", reply]
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[imap])
            upstream = await w.upstream.accept()
            for step in steps[:-1]:
                await upstream.exchange(step)
            await upstream.send(reply)
            await client.read_to_eof()
            client.close()
            upstream.close()
            await w.wait_for_sessions()
            log = w.read_log()
            assert 'reply="***"' in line(log, "session")
            for secret in ("s3cr3t", "S3CR3T", PLAIN.decode()):
                assert secret not in log

    run(play)


def test_logged_reply_is_escaped_and_cut() -> None:
    async def play() -> None:
        async with loopback_worker(pop3, GRANTED) as w:
            log = await refused_by_upstream(w, LOGINS[pop3], b"-ERR \x1b[31m\xff" + b"x" * 300 + b"\r\n")
            assert r'reply="-ERR \u001b[31m\\xffxxx' in line(log, "session")
            assert 'xxx..."' in line(log, "session")
            assert "x" * 200 not in log

    run(play)


def test_failed_connect_is_logged_with_address_and_port() -> None:
    async def play() -> None:
        gone = http_response("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 1\r\n")
        async with loopback_worker(imap, gone) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[imap])
            await client.read_to_eof()
            client.close()
            await w.wait_for_sessions()
            failed = line(w.read_log(), "upstream_failed")
            assert "upstream=127.0.0.1:1 stage=connect " in failed
            assert "Connection refused" in failed

    run(play)


def test_denial_is_logged_with_auth_status() -> None:
    async def play() -> None:
        async with loopback_worker(smtp, DENIED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[smtp])
            await client.read_to_eof()
            client.close()
            await w.wait_for_sessions()
            log = w.read_log()
            assert 'stage=auth reply="Invalid login or password"' in line(log, "session")
            denied = line(log, "login_denied")
            assert 'user="alice" reply="Invalid login or password" code="535 5.7.8"' in denied

    run(play)


def test_successful_login_after_a_denial_logs_no_stage() -> None:
    async def play() -> None:
        wait = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n")
        async with loopback_worker(pop3, wait, GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[pop3] + LOGINS[pop3])
            upstream = await w.upstream.accept()
            await upstream.exchange(b"+OK\r\n")
            await upstream.exchange(b"+OK\r\n")
            await upstream.send(b"+OK in\r\n")
            await client.read_lines(4)
            client.close()
            await upstream.read_to_eof()
            upstream.close()
            await w.wait_for_sessions()
            session = line(w.read_log(), "session")
            assert "result=success" in session
            assert "reply=" not in session
            assert "stage=" not in session

    run(play)


def test_denial_that_contains_the_password_is_not_logged() -> None:
    async def play() -> None:
        async with loopback_worker(pop3, http_response("Auth-Status: no account with s3cr3t-word\r\n")) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[pop3])
            await client.read_to_eof()
            client.close()
            await w.wait_for_sessions()
            log = w.read_log()
            assert "s3cr3t" not in log
            assert 'reply="***"' in line(log, "login_denied")

    run(play)


def test_protocol_error_is_logged_with_its_kind() -> None:
    async def play() -> None:
        async with loopback_worker(imap, GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a" * 5000)
            await client.read_to_eof()
            client.close()
            await w.wait_for_sessions()
            session = line(w.read_log(), "session")
            assert "errors=1 error=line_too_long " in session
            assert "reason=protocol_error" in session

    run(play)


# -- PROXY headers


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        (b"a LOGIN alice s3cr3t-word\r\n", 'result=missing received="a"'),
        (b"PROXY TCP4 nonsense\r\na LOGIN alice s3cr3t-word\r\n", 'received="PROXY TCP4 nonsense"'),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 s3cr3t-word", r'received="\u0016\u0003'),
    ],
)
def test_failed_proxy_header_is_logged_with_received_bytes(sent: bytes, fields: str) -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.IMAP, proxy_header=True), GRANTED) as w:
            client = await w.client()
            await client.send(sent)
            await client.read_to_eof()
            client.close()
            await w.wait_for_sessions()
            log = w.read_log()
            assert " error proxy_protocol_failed " in log
            assert fields in line(log, "proxy_protocol_failed")
            assert "s3cr3t" not in log

    run(play)


V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12)


@pytest.mark.parametrize("build", [imap, pop3, smtp])
@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 143\r\n", b"PROXY UNKNOWN\r\n", V2])
def test_unexpected_proxy_header_is_logged(build: Builder, header: bytes) -> None:
    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(header)
            client.writer.write_eof()
            await client.read_to_eof()
            client.close()
            await w.wait_for_sessions()
            log = w.read_log()
            assert " error client sent a PROXY header to a listener without proxy_protocol " in log
            assert w.value("mailproxy_protocol_errors_total", str(_protocol(build)), "proxy_header") == 1

    run(play)


def _protocol(build: Builder) -> Protocol:
    return build(AuthHttp(host="a"), ListenConfig(port=1)).protocol


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 993\r\n", V2])
def test_unexpected_proxy_header_before_tls_is_logged_from_the_second_on(
    tmp_path: Path, header: bytes
) -> None:
    async def play() -> None:
        async with loopback_worker(tls(tmp_path), GRANTED) as w:
            for _ in range(2):
                client = await w.client()
                await client.send(header + bytes(200))
                await client.read_to_eof()
                client.close()
                await w.wait_for_sessions()
            log = w.read_log()
            assert log.count(" tls_handshake_failed ") == 2
            assert log.count("client sent a PROXY header to a listener without proxy_protocol") == 1
            assert log.count("error=proxy_header ") == 1

    run(play)


def tls(folder: Path, **directives: object) -> Builder:
    return built(Protocol.IMAP, ssl=True, ssl_certificate=(Identities(folder).server,), **directives)


# -- connections in which nothing is sent


@pytest.mark.parametrize("level", [LogLevel.ERROR, LogLevel.INFO, LogLevel.DEBUG])
@pytest.mark.parametrize("kind", ["plain", "tls", "header expected", "header alone", "reset", "smtp"])
def test_connection_without_bytes_is_logged_at_debug_only(tmp_path: Path, level: LogLevel, kind: str) -> None:
    async def play() -> None:
        build = {
            "tls": lambda: tls(tmp_path, error_log=level),
            "header expected": lambda: built(Protocol.IMAP, proxy_header=True, error_log=level),
            "header alone": lambda: built(Protocol.IMAP, proxy_header=True, error_log=level),
            "smtp": lambda: built(Protocol.SMTP, smtp_greeting_delay=Seconds(5), error_log=level),
        }.get(kind, lambda: built(Protocol.IMAP, error_log=level))()
        async with loopback_worker(build, GRANTED) as w:
            client = await w.client()
            if kind in {"plain", "reset"}:
                await client.read_line()
            if kind == "header alone":
                await client.send(b"PROXY UNKNOWN\r\n")
                await client.read_line()
            if kind == "reset":
                client.reset()
            else:
                client.close()
            await closed(w)
            log = w.read_log()
            assert (" debug session " in log) == (level is LogLevel.DEBUG)
            assert " info session " not in log
            assert " error " not in log

    run(play)


async def closed(w: LoopbackWorker) -> None:
    """Wait until one connection was counted as closed."""
    while not any(
        count
        for labels, count in w.metrics.snapshot()["series"].get("mailproxy_connections_closed_total", [])
    ):
        await asyncio.sleep(0.005)


def test_connection_with_one_command_is_logged() -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.IMAP, error_log=LogLevel.ERROR), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.exchange(b"a NOOP\r\n")
            client.close()
            await closed(w)
            assert " info session " in w.read_log()

    run(play)


def test_connection_with_half_a_command_is_logged() -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.IMAP, error_log=LogLevel.ERROR), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a NO")
            client.close()
            await closed(w)
            assert " info session " in w.read_log()

    run(play)


# -- names


def test_failed_name_lookup_is_logged() -> None:
    async def play() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            resolver = ResolverConfig(addresses=(f"127.0.0.1:{silent.getsockname()[1]}",))
            build = built(Protocol.SMTP, resolver=resolver, resolver_timeout=Seconds(0.1))
            async with loopback_worker(build, GRANTED) as w:
                client = await w.client()
                await client.read_line()
                client.close()
                await closed(w)
                log = w.read_log()
                assert "error name_lookup_failed purpose=ptr name=127.0.0.1 result=timeout" in log

    run(play)


def test_unknown_name_of_authentication_service_is_logged() -> None:
    async def play() -> None:
        def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
            del auth
            return server(Protocol.IMAP, auth_http=AuthHttp(host="no.such.invalid"), listen=(listen,))

        async with loopback_worker(build, GRANTED) as w:
            log = w.read_log()
            assert "name_lookup_failed purpose=auth name=no.such.invalid" in log

    run(play)


def test_duration_without_the_delay_of_its_reply_is_not_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float | None] = []
    on_upstream_error = Session.on_upstream_error

    def delayed(self: Session, error: Exception, delay: float = 0.0) -> None:
        # A delay may end, by its timer, later than by the time of the latest poll.
        on_upstream_error(self, error, delay + 5.0)
        seconds.append(self.record.upstream_seconds)

    monkeypatch.setattr(Session, "on_upstream_error", delayed)

    async def play() -> None:
        async with loopback_worker(imap, GRANTED) as w:
            await refused_by_upstream(w, LOGINS[imap], b"* NO not now\r\n")

    run(play)
    assert seconds == [0.0]

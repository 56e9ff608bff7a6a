# SPDX-License-Identifier: Apache-2.0
"""Bytes in plain text around STARTTLS: dropped, or fatal to the handshake; never executed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest

from mailproxy_config.model import AuthMethod, Protocol, Seconds, StartTls
from support.checked_worker import (
    DENIED,
    GREETINGS,
    LOGINS,
    checked_worker,
    read_until_closed,
    run_iterations,
    server_builder,
    start_tls,
)
from support.loopback_worker import Builder, LoopbackWorker, Peer, run
from support.tls_identities import Identities

STARTS = {
    Protocol.IMAP: (b"s STARTTLS\r\n", b"s OK completed\r\n"),
    Protocol.POP3: (b"STLS\r\n", b"+OK\r\n"),
    Protocol.SMTP: (b"STARTTLS\r\n", b"220 2.0.0 Start TLS\r\n"),
}
PROBES = {
    Protocol.IMAP: (b"p NOOP\r\n", b"p OK completed\r\n"),
    Protocol.POP3: (b"NOOP\r\n", b"+OK\r\n"),
    Protocol.SMTP: (b"NOOP\r\n", b"250 2.0.0 OK\r\n"),
}
PASSED_ON = {
    Protocol.IMAP: b"i LOGIN injected {9}\r\n",
    Protocol.POP3: b"USER injected\r\nPASS injected\r\n",
    Protocol.SMTP: b"MAIL FROM:<injected@x>\r\nRCPT TO:<injected@x>\r\n",
}
each = pytest.mark.parametrize("protocol", Protocol, ids=str)
when = pytest.mark.parametrize("starttls", [StartTls.ENABLED, StartTls.ONLY], ids=str)


def injections(protocol: Protocol) -> list[bytes]:
    """Return bytes that an attacker between client and proxy could inject."""
    whole = [LOGINS[protocol], PASSED_ON[protocol], PROBES[protocol][0], STARTS[protocol][0]]
    cut = [LOGINS[protocol][:-2], LOGINS[protocol][:7], b"\r\n", b"\0", b" "]
    return [*whole, *cut, b"".join(whole)[:100]]  # at most POP3's buffer of 128 bytes


def started(protocol: Protocol, identities: Identities, starttls: StartTls, **more: Any) -> Builder:
    methods = (
        {"smtp_auth": frozenset({AuthMethod.PLAIN, AuthMethod.NONE})} if protocol is Protocol.SMTP else {}
    )
    return server_builder(protocol, identities, starttls=starttls, **methods, **more)


async def nothing_was_executed(w: LoopbackWorker, client: Peer, protocol: Protocol) -> None:
    """Check that the session inside TLS is in its initial state, and that no request was sent."""
    command, reply = PROBES[protocol]
    assert await client.exchange(command) == reply
    await run_iterations(8)
    assert w.auth.requests == []
    assert w.upstream.accepted.empty()
    client.writer.write(b"q LOGOUT\r\nQUIT\r\n")
    assert b"injected" not in await read_until_closed(client)


@each
@when
def test_commands_in_the_starttls_segment_are_not_executed(
    protocol: Protocol, starttls: StartTls, identities: Identities
) -> None:
    command, go_ahead = STARTS[protocol]

    async def play() -> None:
        build = started(protocol, identities, starttls)
        for injected in injections(protocol):
            async with checked_worker(build) as w:
                client = await w.client()
                await client.read_line()
                assert await client.exchange(command + injected) == go_ahead
                await start_tls(client, identities)
                await nothing_was_executed(w, client, protocol)
                kind = ("mailproxy_protocol_errors_total", protocol.value, "plaintext_before_tls")
                assert w.value(*kind) == 1

    run(play)


@each
def test_more_than_the_buffer_in_the_starttls_segment_fails_the_handshake(
    protocol: Protocol, identities: Identities
) -> None:
    """Bytes beyond the buffer are not read as commands; the handshake reads them and fails, as in nginx."""
    command, go_ahead = STARTS[protocol]

    async def play() -> None:
        async with checked_worker(started(protocol, identities, StartTls.ENABLED)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(command + LOGINS[protocol] * 400)
            assert await read_until_closed(client) == go_ahead
            assert w.auth.requests == []
            closed = w.value(
                "mailproxy_connections_closed_total", protocol.value, protocol.value, "tls_failed"
            )
            assert closed == 1

    run(play)


@each
def test_plain_bytes_between_starttls_reply_and_handshake_fail_it(
    protocol: Protocol, identities: Identities
) -> None:
    command, go_ahead = STARTS[protocol]

    async def play() -> None:
        for injected in injections(protocol):
            async with checked_worker(started(protocol, identities, StartTls.ENABLED)) as w:
                client = await w.client()
                await client.read_line()
                assert await client.exchange(command) == go_ahead
                await client.send(injected)
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    await start_tls(client, identities)
                    pytest.fail("there was a handshake")
                await w.wait_for_sessions()
                assert w.auth.requests == []
                failures = [
                    w.value("mailproxy_tls_handshake_failures_total", "starttls", kind) for kind in KINDS
                ]
                assert sum(failures) == 1

    run(play)


KINDS = ("not_tls", "other", "eof", "timeout", "unsupported_version")


@each
def test_plain_bytes_after_the_client_hello_are_not_executed(
    protocol: Protocol, identities: Identities
) -> None:
    """Plain text between the records of a handshake breaks it."""
    command, go_ahead = STARTS[protocol]

    async def play() -> None:
        async with checked_worker(started(protocol, identities, StartTls.ENABLED)) as w:
            client = await w.client()
            await client.read_line()
            assert await client.exchange(command) == go_ahead
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = identities.client().wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await client.send(outgoing.read() + LOGINS[protocol])
            await read_until_closed(client)
            assert w.auth.requests == []

    run(play)


@each
@pytest.mark.parametrize("implicit", [False, True])
def test_commands_with_the_last_handshake_bytes_are_executed(
    protocol: Protocol, implicit: bool, identities: Identities
) -> None:
    command, go_ahead = STARTS[protocol]
    probe, reply = PROBES[protocol]

    async def play() -> None:
        build = server_builder(protocol, identities, listen_ssl=implicit, starttls=StartTls.ENABLED)
        async with checked_worker(build) as w:
            client = await w.client()
            if not implicit:
                await client.read_line()
                assert await client.exchange(command) == go_ahead
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = identities.client().wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await client.send(outgoing.read())
            while True:
                incoming.write(await client.reader.read(1 << 16))
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
            tls.write(probe)
            await client.send(outgoing.read())  # the last bytes of the handshake, and the command
            received = b""
            while not received.endswith(reply):
                incoming.write(await client.reader.read(1 << 16))
                with contextlib.suppress(ssl.SSLWantReadError):
                    while data := tls.read(1 << 16):
                        received += data
            assert received == (GREETINGS[protocol] if implicit else b"") + reply

    run(play)


@each
def test_second_starttls_is_refused(protocol: Protocol, identities: Identities) -> None:
    command, go_ahead = STARTS[protocol]

    async def play() -> None:
        async with checked_worker(started(protocol, identities, StartTls.ENABLED)) as w:
            client = await w.client()
            await client.read_line()
            assert await client.exchange(command) == go_ahead
            await start_tls(client, identities)
            assert await client.exchange(command) != go_ahead
            await nothing_was_executed(w, client, protocol)

    run(play)


@each
def test_starttls_only_refuses_login_before_tls(protocol: Protocol, identities: Identities) -> None:
    async def play() -> None:
        build = started(protocol, identities, StartTls.ONLY, max_errors=99)
        async with checked_worker(build) as w:
            client = await w.client()
            await client.read_line()
            client.writer.write(LOGINS[protocol] + PASSED_ON[protocol].replace(b" {9}", b" pw"))
            client.writer.write(b"AUTH LOGIN\r\na AUTHENTICATE LOGIN\r\nAPOP a b\r\nq LOGOUT\r\nQUIT\r\n")
            await read_until_closed(client)
            assert w.auth.requests == []

    run(play)


# Handshakes that fail.

GARBAGE = {
    "words": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "nothing": bytes(500),
    "noise": bytes(range(256)) * 20,
    "half a record": b"\x16\x03\x01\x40\x00" + b"x" * 100,
    "a record too long": b"\x16\x03\x01\xff\xff" + b"x" * 70000,
    "empty records": b"\x16\x03\x01\x00\x00" * 2000,
    "alerts": b"\x15\x03\x01\x00\x02\x01\x00" * 200,
    "application data": b"\x17\x03\x03\x00\x05xxxxx" * 50,
    "a hello that never ends": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"x" * 16380,
}


@each
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_a_tls_port_closes_the_connection(
    protocol: Protocol, garbage: bytes, identities: Identities
) -> None:
    async def play() -> None:
        build = server_builder(protocol, identities, listen_ssl=True, timeout=Seconds(0.3))
        async with checked_worker(build) as w:
            client = await w.client()
            client.writer.write(garbage)
            received = await read_until_closed(client)
            assert GREETINGS[protocol] not in received
            assert w.auth.requests == []
            client.close()
            await w.wait_for_sessions()

    run(play)


@each
@pytest.mark.parametrize("data", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
@pytest.mark.parametrize("implicit", [False, True])
def test_handshake_without_end_times_out(
    protocol: Protocol, data: bytes, implicit: bool, identities: Identities
) -> None:
    command, go_ahead = STARTS[protocol]

    async def play() -> None:
        build = server_builder(
            protocol, identities, listen_ssl=implicit, starttls=StartTls.ENABLED, timeout=Seconds(0.3)
        )
        async with checked_worker(build) as w:
            client = await w.client()
            if not implicit:
                await client.read_line()
                assert await client.exchange(command) == go_ahead
            await client.send(data)
            assert await read_until_closed(client) == b""
            reason = w.value(
                "mailproxy_connections_closed_total", protocol.value, protocol.value, "preauth_timeout"
            )
            assert reason == 1

    run(play)


@each
def test_slow_handshake_times_out(protocol: Protocol, identities: Identities) -> None:
    async def play() -> None:
        build = server_builder(protocol, identities, listen_ssl=True, timeout=Seconds(0.3))
        async with checked_worker(build) as w:
            client = await w.client()
            with contextlib.suppress(ConnectionError):
                for byte in b"\x16\x03\x01\x10\x00\x01\x00\x0f\xfc" + bytes(4092):
                    await client.send(bytes([byte]))
                    await asyncio.sleep(0.01)
                    if not w.app.sessions:
                        break
            assert w.app.sessions == 0

    run(play)


@each
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("cut", [0, 1, 5, 50, 10_000])
def test_client_that_leaves_during_the_handshake_leaves_nothing(
    protocol: Protocol, how: str, cut: int, identities: Identities
) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, identities, listen_ssl=True), DENIED) as w:
            client = await w.client()
            outgoing = ssl.MemoryBIO()
            tls = identities.client().wrap_bio(ssl.MemoryBIO(), outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            await client.send(outgoing.read()[:cut])
            await run_iterations()
            getattr(client, how)()
            await w.wait_for_sessions()

    run(play)

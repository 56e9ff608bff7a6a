# SPDX-License-Identifier: Apache-2.0
"""With any mechanism, control characters in credentials are sent to no authentication service or upstream."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Final

import pytest

from mailproxy_config.model import AuthMethod, Protocol
from support.checked_worker import checked_worker, run_iterations, server_builder
from support.loopback_worker import GRANT, Builder, LoopbackWorker, Peer, http_response, run

MECHANISMS: Final = {
    Protocol.IMAP: frozenset({AuthMethod.PLAIN, AuthMethod.LOGIN, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL}),
    Protocol.POP3: frozenset({AuthMethod.PLAIN, AuthMethod.APOP, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL}),
    Protocol.SMTP: frozenset(AuthMethod) - {AuthMethod.APOP},
}
QUITS: Final = {Protocol.IMAP: b"z LOGOUT\r\n", Protocol.POP3: b"QUIT\r\n", Protocol.SMTP: b"QUIT\r\n"}
CONTROL_CHARACTERS: Final = (b"\r\n", b"\n", b"\r", b"\0")
MARK: Final = b"INJECTED"
DIGEST: Final = b"0123456789abcdef0123456789abcdef"
PLACES: Final = ("front", "middle", "end")
each = pytest.mark.parametrize("protocol", Protocol, ids=str)
evil = pytest.mark.parametrize("data", CONTROL_CHARACTERS, ids=repr)
place = pytest.mark.parametrize("place", PLACES)


def with_control_character(word: bytes, data: bytes, place: str) -> bytes:
    """Return a value that contains the given bytes, then a command that must not be executed."""
    parts = {"front": (b"", word), "middle": (word, word), "end": (word, b"")}[place]
    return (data + MARK).join(parts) if place != "end" else word + MARK + data


def server_for(protocol: Protocol) -> Builder:
    return server_builder(
        protocol,
        None,
        **{f"{protocol.value}_auth": MECHANISMS[protocol]},
        proxy_smtp_auth=True,
        max_errors=99,
    )


async def send_lines(w: LoopbackWorker, protocol: Protocol, lines: list[bytes]) -> bytes:
    """Send line after line, each after the reply to the previous one; return all replies."""
    client = await w.client()
    reply = await client.read_line()
    for line in lines:
        reply += await client.exchange(line)
    await client.send(QUITS[protocol])
    return reply + await client.read_to_eof()


async def no_request_was_sent(w: LoopbackWorker) -> None:
    """Check that nothing was sent to the authentication service or an upstream."""
    await run_iterations(8)
    assert w.auth.connections == 0
    assert w.auth.requests == []
    assert w.upstream.accepted.empty()


def sasl(protocol: Protocol, mechanism: bytes, *responses: bytes, initial: bool) -> list[bytes]:
    """Return the lines of a SASL exchange; ``initial`` sends the first response with the command."""
    verb = b"a AUTHENTICATE " if protocol is Protocol.IMAP else b"AUTH "
    encoded = [b64encode(response) for response in responses]
    if initial:
        return [verb + mechanism + b" " + encoded[0] + b"\r\n", *(one + b"\r\n" for one in encoded[1:])]
    return [verb + mechanism + b"\r\n", *(one + b"\r\n" for one in encoded)]


@each
@evil
@place
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("which", ["user", "password"])
def test_control_characters_in_base64_of_plain(
    protocol: Protocol, data: bytes, place: str, initial: bool, which: str
) -> None:
    bad = with_control_character(b"alice", data, place)
    user, password = (bad, b"pw") if which == "user" else (b"alice", bad)
    if which == "user" and b"\0" in data:
        bad = user = b""  # NUL ends the name there; the bytes after it are the first part of the password
        password = b"\0" + MARK

    async def play() -> None:
        async with checked_worker(server_for(protocol), http_response(GRANT)) as w:
            lines = sasl(protocol, b"PLAIN", b"\0" + user + b"\0" + password, initial=initial)
            await send_lines(w, protocol, lines)
            await no_request_was_sent(w)
            assert _counted(w, protocol, "plain") == 1

    run(play)


@each
@evil
@place
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("which", ["user", "password"])
def test_control_characters_in_base64_of_login(
    protocol: Protocol, data: bytes, place: str, initial: bool, which: str
) -> None:
    bad = with_control_character(b"alice", data, place)
    user, password = (bad, b"pw") if which == "user" else (b"alice", bad)

    async def play() -> None:
        async with checked_worker(server_for(protocol), http_response(GRANT)) as w:
            await send_lines(w, protocol, sasl(protocol, b"LOGIN", user, password, initial=initial))
            await no_request_was_sent(w)
            assert _counted(w, protocol, "login") == 1

    run(play)


@each
@evil
@place
@pytest.mark.parametrize("which", ["user", "digest"])
def test_control_characters_in_base64_of_cram_md5(
    protocol: Protocol, data: bytes, place: str, which: str
) -> None:
    digest = DIGEST if which == "user" else with_control_character(b"", data, "front").ljust(32, b"x")[:32]
    user = with_control_character(b"alice", data, place) if which == "user" else b"alice"

    async def play() -> None:
        async with checked_worker(server_for(protocol), http_response(GRANT)) as w:
            lines = sasl(protocol, b"CRAM-MD5", user + b" " + digest, initial=False)
            await send_lines(w, protocol, lines)
            await no_request_was_sent(w)
            assert _counted(w, protocol, "cram_md5") == 1

    run(play)


@each
@evil
@place
@pytest.mark.parametrize("initial", [False, True])
def test_control_characters_in_base64_of_external(
    protocol: Protocol, data: bytes, place: str, initial: bool
) -> None:
    async def play() -> None:
        async with checked_worker(server_for(protocol), http_response(GRANT)) as w:
            user = with_control_character(b"alice", data, place)
            await send_lines(w, protocol, sasl(protocol, b"EXTERNAL", user, initial=initial))
            await no_request_was_sent(w)
            assert _counted(w, protocol, "external") == 1

    run(play)


def _counted(w: LoopbackWorker, protocol: Protocol, method: str) -> int:
    count: int = w.value("mailproxy_logins_total", protocol.value, method, "bad_credentials_syntax")
    return count


@evil
@place
@pytest.mark.parametrize("which", ["user", "password"])
@pytest.mark.parametrize("plus", [b"", b"+"])
def test_control_characters_in_an_imap_literal(data: bytes, place: str, which: str, plus: bytes) -> None:
    bad = with_control_character(b"alice", data, place)
    words = [bad, b"pw"] if which == "user" else [b"alice", bad]

    async def play() -> None:
        async with checked_worker(server_for(Protocol.IMAP), http_response(GRANT)) as w:
            client = await w.client()
            await client.read_line()
            line = b"a LOGIN"
            for word in words:
                await client.send(b"%b {%d%b}\r\n" % (line, len(word), plus))
                if not plus:
                    assert await client.read_line() == b"+ OK\r\n"
                line = word
            assert await client.exchange(line + b"\r\n") == b"a BAD invalid command\r\n"
            await no_request_was_sent(w)
            assert _counted(w, Protocol.IMAP, "password") == 1

    run(play)


IN_THE_OPEN: Final = {
    "IMAP quoted": (Protocol.IMAP, [b'a LOGIN "al%bice" pw\r\n']),
    "IMAP quoted password": (Protocol.IMAP, [b'a LOGIN alice "p%bw"\r\n']),
    "IMAP escaped": (Protocol.IMAP, [b'a LOGIN "al\\%bice" pw\r\n']),
    "IMAP atoms": (Protocol.IMAP, [b"a LOGIN al%bice pw\r\n"]),
    "IMAP atom password": (Protocol.IMAP, [b"a LOGIN alice p%bw\r\n"]),
    "POP3 USER": (Protocol.POP3, [b"USER al%bice\r\n", b"PASS pw\r\n"]),
    "POP3 PASS": (Protocol.POP3, [b"USER alice\r\n", b"PASS p%bw\r\n"]),
    "POP3 APOP": (Protocol.POP3, [b"APOP al%bice " + DIGEST + b"\r\n"]),
    "POP3 APOP digest": (Protocol.POP3, [b"APOP alice 0%b123\r\n"]),
    "SMTP HELO": (Protocol.SMTP, [b"HELO cli%bent\r\n", b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b@x\0>\r\n"]),
    "SMTP MAIL": (Protocol.SMTP, [b"MAIL FROM:<a%b@x>\r\n", b"RCPT TO:<b@x>\r\n"]),
    "SMTP RCPT": (Protocol.SMTP, [b"MAIL FROM:<a@x>\r\n", b"RCPT TO:<b%b@x>\r\n"]),
}


@pytest.mark.parametrize("data", [b"\0", b"\r"], ids=repr)
@pytest.mark.parametrize(("protocol", "lines"), IN_THE_OPEN.values(), ids=IN_THE_OPEN)
def test_control_characters_in_a_command(protocol: Protocol, lines: list[bytes], data: bytes) -> None:
    async def play() -> None:
        async with checked_worker(server_for(protocol), http_response(GRANT)) as w:
            filled = [line % data if b"%b" in line else line for line in lines]
            await send_lines(w, protocol, filled)
            await no_request_was_sent(w)

    run(play)


@pytest.mark.parametrize(
    "data", [bytes([byte]) for byte in (*range(1, 10), 11, 12, *range(14, 32), 127)], ids=repr
)
def test_control_characters_in_an_smtp_transaction_are_refused(data: bytes) -> None:
    """The proxy sends these values to the authentication service and the upstream without escaping."""

    async def play() -> None:
        async with checked_worker(server_for(Protocol.SMTP), http_response(GRANT)) as w:
            lines = [b"MAIL FROM:<a" + data + b"@x>\r\n", b"RCPT TO:<b@x>\r\n"]
            assert b"501 5.5.4" in await send_lines(w, Protocol.SMTP, lines)
            await no_request_was_sent(w)

    run(play)


# Valid credentials are sent on unchanged.

UNUSUAL_BYTES: Final = b'\x01\x7f\t "\\%{5}\xff\xfe+='


@each
def test_unusual_bytes_of_credentials_arrive_unchanged(protocol: Protocol) -> None:
    async def play() -> None:
        async with checked_worker(server_for(protocol), http_response(GRANT)) as w:
            client = await w.client()
            await client.read_line()
            for line in sasl(protocol, b"PLAIN", b"\0" + UNUSUAL_BYTES + b"\0" + UNUSUAL_BYTES, initial=True):
                await client.send(line)
            upstream = await w.upstream.accept()
            commands = await _read_login_commands(protocol, upstream)
            (request,) = w.auth.requests
            assert b'Auth-User: %01\x7f%09%20"\\%25{5}\xff\xfe+=\r\n' in request
            assert request.count(b"\r\n\r\n") == 1
            assert commands == _expected_login_commands(protocol)

    run(play)


def _expected_login_commands(protocol: Protocol) -> bytes:
    if protocol is Protocol.IMAP:
        return b"a LOGIN {%d}\r\n%b {%d}\r\n%b\r\n" % (
            len(UNUSUAL_BYTES),
            UNUSUAL_BYTES,
            len(UNUSUAL_BYTES),
            UNUSUAL_BYTES,
        )
    if protocol is Protocol.POP3:
        return b"USER %b\r\nPASS %b\r\n" % (UNUSUAL_BYTES, UNUSUAL_BYTES)
    return (
        b"HELO mail.example.com\r\nAUTH PLAIN "
        + b64encode(b"\0" + UNUSUAL_BYTES + b"\0" + UNUSUAL_BYTES)
        + b"\r\n"
    )


async def _read_login_commands(protocol: Protocol, upstream: Peer) -> bytes:
    upstream_replies = {
        Protocol.IMAP: [b"* OK\r\n", b"+\r\n", b"+\r\n"],
        Protocol.POP3: [b"+OK\r\n", b"+OK\r\n"],
        Protocol.SMTP: [b"220 x\r\n", b"250 x\r\n"],
    }[protocol]
    commands = b""
    for reply in upstream_replies:
        commands += await upstream.exchange(reply)
    return commands


@each
def test_password_of_an_earlier_login_is_not_used(protocol: Protocol) -> None:
    """Neither EXTERNAL nor a CRAM-MD5 response without a digest uses the password of PLAIN (Q-12)."""
    wait = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n")

    async def play() -> None:
        async with checked_worker(server_for(protocol), wait, http_response("Auth-Status: no\r\n")) as w:
            client = await w.client()
            await client.read_line()
            (plain,) = sasl(protocol, b"PLAIN", b"\0alice\0" + DIGEST, initial=True)
            cram = sasl(protocol, b"CRAM-MD5", b"alice", initial=False)
            (external,) = sasl(protocol, b"EXTERNAL", b"alice", initial=True)
            for line in (plain, *cram, external):
                await client.exchange(line)
            await asyncio.sleep(0)
            first, second = w.auth.requests
            assert DIGEST in first
            assert DIGEST not in second
            assert b"Auth-Pass: \r\n" in second

    run(play)

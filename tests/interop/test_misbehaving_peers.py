# SPDX-License-Identifier: Apache-2.0
"""Badly behaved clients and upstreams: early close, slow reads, resets, and all commands at once."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from base64 import encodebytes
from contextlib import ExitStack
from typing import Final

import pytest

from support.servers.auth_service import AuthRule, AuthService
from support.servers.certificates import Certificates
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import eventually
from support.servers.shared_proxy import SharedProxy

pytestmark = pytest.mark.interop

LOGIN: Final = b'a LOGIN bob {9+}\r\nbuil"der\\\r\n'
SESSIONS: Final = {
    "imap": (b"a LOGIN carol christmas\r\nb SELECT INBOX\r\nc LOGOUT\r\n", b"c OK "),
    "pop3": (b"USER carol\r\nPASS christmas\r\nSTAT\r\nQUIT\r\n", b"+OK Logging out."),
    "smtp": (b"EHLO x\r\nAUTH PLAIN AGNhcm9sAGNocmlzdG1hcw==\r\nNOOP\r\nQUIT\r\n", b"221 2.0.0 Bye"),
}


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_client_that_closes_after_sending_gets_all_replies(
    postfix: Postfix, shared_proxy: SharedProxy, protocol: str
) -> None:
    """As ``printf ... | nc`` does: the client's side is closed before the first reply arrives."""
    commands, last_reply = SESSIONS[protocol]
    with RawClient(shared_proxy.ports[protocol]) as raw:
        raw.send(commands)
        raw.send_eof()
        assert last_reply in raw.read_to_eof().splitlines()[-1]


@pytest.mark.parametrize("pieces", [1, 7])
def test_replies_do_not_depend_on_segments(dovecot: Dovecot, shared_proxy: SharedProxy, pieces: int) -> None:
    """The result does not depend on how the bytes are divided into segments."""
    commands, last_reply = SESSIONS["imap"]
    with RawClient(shared_proxy.ports["imap"]) as raw:
        body, end = commands[:-2], commands[-2:]
        for start in range(0, len(body), pieces):
            raw.send(body[start : start + pieces])
            time.sleep(0.001)
        raw.send(
            end
        )  # in one piece: Dovecot logs out at CR, and LF alone would arrive at a closed connection
        assert last_reply in raw.read_to_eof().splitlines()[-1]


def large_message(size: int) -> bytes:
    """Return a message of about this size in which no two lines are equal."""
    return b"Subject: large\r\n\r\n" + encodebytes(os.urandom(size * 3 // 4)).replace(b"\n", b"\r\n")


@pytest.mark.parametrize("tls_mode", ["plain", "implicit"])
def test_megabyte_pipelined_with_the_login_is_relayed(
    dovecot: Dovecot, shared_proxy: SharedProxy, tls: Certificates, tls_mode: str
) -> None:
    """An APPEND that begins in the segment of the login and is far larger than any buffer."""
    sent = large_message(1_000_000)
    mailbox = f"Ahead-{tls_mode}".encode()
    listener, context = ("imap", None) if tls_mode == "plain" else ("imaps", tls.client())
    with RawClient(shared_proxy.ports[listener], context) as raw:
        commands = [
            b"b CREATE " + mailbox,
            b"c APPEND %b {%d+}\r\n%b" % (mailbox, len(sent), sent),
            b"d SELECT " + mailbox,
        ]
        raw.send(LOGIN + b"\r\n".join(commands) + b"\r\ne FETCH * (BODY.PEEK[])\r\n")
        fetch_line = raw.read_until(b"* 1 FETCH (BODY[] {")[-1]
        read = raw.read_bytes(int(fetch_line.split(b"{")[1].rstrip(b"}")))
    assert hashlib.sha256(read).digest() == hashlib.sha256(sent).digest()


@pytest.mark.parametrize("tls_mode", ["plain", "implicit"])
def test_memory_is_limited_for_a_client_that_does_not_read(
    dovecot: Dovecot, shared_proxy: SharedProxy, tls: Certificates, tls_mode: str
) -> None:
    """Twenty megabytes stay in Dovecot, and not in the proxy, until the client reads them."""
    sent = large_message(4_000_000)
    mailbox = f"Late-{tls_mode}".encode()
    listener, context = ("imap", None) if tls_mode == "plain" else ("imaps", tls.client())
    with RawClient(shared_proxy.ports[listener], context) as raw:
        raw.send(LOGIN + b"b CREATE %b\r\nc APPEND %b {%d+}\r\n%b\r\n" % (mailbox, mailbox, len(sent), sent))
        raw.read_until(b"c OK")
        before = shared_proxy.proxy.value("process_resident_memory_bytes")
        raw.send(b"d SELECT %b\r\n" % mailbox + b"e FETCH * (BODY.PEEK[])\r\n" * 5 + b"f NOOP\r\n")
        time.sleep(0.5)
        assert shared_proxy.proxy.value("process_resident_memory_bytes") - before < 4_000_000
        for _ in range(5):
            raw.read_until(b"* 1 FETCH (BODY[] {")
            assert hashlib.sha256(raw.read_bytes(len(sent))).digest() == hashlib.sha256(sent).digest()
        raw.read_until(b"f OK")


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
@pytest.mark.parametrize("stage", ["greeted", "relaying"])
def test_reset_clients_leave_no_session(
    postfix: Postfix, shared_proxy: SharedProxy, protocol: str, stage: str
) -> None:
    """The client resets the connection instead of logging out; no session remains."""
    active = "mailproxy_sessions_active"
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(shared_proxy.ports[protocol])) for _ in range(20)]
        for client in clients:
            client.read_line()
            if stage == "relaying":
                client.send(without_last_line(SESSIONS[protocol][0]))
        if stage == "relaying":
            eventually(
                lambda: shared_proxy.proxy.value(active, protocol=protocol, state="relay") == 20,
                "twenty relays",
            )
        for client in clients:
            client.reset()
    eventually(lambda: shared_proxy.proxy.value(active, protocol=protocol) == 0, "no more sessions")


def without_last_line(commands: bytes) -> bytes:
    """Return all lines but the last."""
    return b"".join(commands.splitlines(keepends=True)[:-1])


def test_silent_upstream_delays_only_its_own_client(shared_proxy: SharedProxy, service: AuthService) -> None:
    """The upstream sends no greeting: only its own client waits, for up to ``timeout``."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:
        service.rules["/imap-dead"] = AuthRule(silent.getsockname()[1])
        waiting = stack.enter_context(RawClient(shared_proxy.ports["imap-dead"]))
        waiting.read_line()
        waiting.send(LOGIN)
        upstream, _ = silent.accept()
        with upstream:
            other = stack.enter_context(RawClient(shared_proxy.ports["imap"]))
            other.read_line()
            assert other.exchange(b"a NOOP") == b"a OK completed"
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert waiting.read_to_eof() == b"* BAD internal server error\r\n"


def test_concurrent_tls_logins_get_their_own_responses(
    dovecot: Dovecot, shared_proxy: SharedProxy, tls: Certificates
) -> None:
    """A hundred TLS handshakes and logins at the same time; each client sends a different command."""
    context = tls.client()
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(shared_proxy.ports["imaps"], context)) for _ in range(100)]
        for number, client in enumerate(clients):
            client.send(LOGIN + b"n%d NOOP\r\n" % number)
        for number, client in enumerate(clients):
            assert client.read_until(b"n%d " % number)[-1].startswith(b"n%d OK" % number)


@pytest.mark.parametrize(
    ("protocol", "lines", "expected_reply"),
    [
        ("imap", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"BAD"),
        ("pop3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), b"-ERR"),
        ("smtp", b"\xff\xf4\xff\xfd\x06" * 2000, b"5"),
        ("imap", b"a LOGIN {99999999999+}\r\n" + bytes(50_000), b"BAD"),
        ("smtp", b"EHLO " + b"x" * 50_000, b"5"),
    ],
)
def test_input_of_other_protocols_gets_an_error_reply(
    shared_proxy: SharedProxy, protocol: str, lines: bytes, expected_reply: bytes
) -> None:
    """HTTP, TLS on a plain port, telnet options, endless lines and literals: a reply, then close."""
    with RawClient(shared_proxy.ports[protocol]) as raw:
        raw.read_line()
        raw.send(lines)
        raw.send_eof()
        assert expected_reply in raw.read_to_eof()

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

from support.servers.auth_service import AuthService, Backend
from support.servers.certificates import Certificates
from support.servers.clients import Raw
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import eventually
from support.servers.shared_proxy import Front

pytestmark = pytest.mark.interop

LOGIN: Final = b'a LOGIN bob {9+}\r\nbuil"der\\\r\n'
SCRIPTS: Final = {
    "imap": (b"a LOGIN carol christmas\r\nb SELECT INBOX\r\nc LOGOUT\r\n", b"c OK "),
    "pop3": (b"USER carol\r\nPASS christmas\r\nSTAT\r\nQUIT\r\n", b"+OK Logging out."),
    "smtp": (b"EHLO x\r\nAUTH PLAIN AGNhcm9sAGNocmlzdG1hcw==\r\nNOOP\r\nQUIT\r\n", b"221 2.0.0 Bye"),
}


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_everything_at_once_and_nothing_more(postfix: Postfix, front: Front, protocol: str) -> None:
    """As ``printf ... | nc`` does: the client's side is closed before the first reply arrives."""
    script, goodbye = SCRIPTS[protocol]
    with Raw(front.ports[protocol]) as raw:
        raw.say(script)
        raw.finish()
        assert goodbye in raw.rest().splitlines()[-1]


@pytest.mark.parametrize("pieces", [1, 7])
def test_byte_by_byte(dovecot: Dovecot, front: Front, pieces: int) -> None:
    """The result does not depend on how the bytes are divided into segments."""
    script, goodbye = SCRIPTS["imap"]
    with Raw(front.ports["imap"]) as raw:
        body, end = script[:-2], script[-2:]
        for start in range(0, len(body), pieces):
            raw.say(body[start : start + pieces])
            time.sleep(0.001)
        raw.say(end)  # in one piece: Dovecot logs out at CR, and LF alone would arrive at a closed connection
        assert goodbye in raw.rest().splitlines()[-1]


def text(size: int) -> bytes:
    """Return a message of about this size in which no two lines are equal."""
    return b"Subject: rough\r\n\r\n" + encodebytes(os.urandom(size * 3 // 4)).replace(b"\n", b"\r\n")


@pytest.mark.parametrize("way", ["plain", "implicit"])
def test_a_megabyte_behind_the_login(dovecot: Dovecot, front: Front, tls: Certificates, way: str) -> None:
    """An APPEND that begins in the segment of the login and is far larger than any buffer."""
    sent = text(1_000_000)
    box = f"Ahead-{way}".encode()
    where, context = ("imap", None) if way == "plain" else ("imaps", tls.client())
    with Raw(front.ports[where], context) as raw:
        commands = [
            b"b CREATE " + box,
            b"c APPEND %b {%d+}\r\n%b" % (box, len(sent), sent),
            b"d SELECT " + box,
        ]
        raw.say(LOGIN + b"\r\n".join(commands) + b"\r\ne FETCH * (BODY.PEEK[])\r\n")
        announced = raw.until(b"* 1 FETCH (BODY[] {")[-1]
        read = raw.data(int(announced.split(b"{")[1].rstrip(b"}")))
    assert hashlib.sha256(read).digest() == hashlib.sha256(sent).digest()


@pytest.mark.parametrize("way", ["plain", "implicit"])
def test_a_client_that_reads_late(dovecot: Dovecot, front: Front, tls: Certificates, way: str) -> None:
    """Twenty megabytes wait in Dovecot, and not in the proxy, until the client reads them."""
    sent = text(4_000_000)
    box = f"Late-{way}".encode()
    where, context = ("imap", None) if way == "plain" else ("imaps", tls.client())
    with Raw(front.ports[where], context) as raw:
        raw.say(LOGIN + b"b CREATE %b\r\nc APPEND %b {%d+}\r\n%b\r\n" % (box, box, len(sent), sent))
        raw.until(b"c OK")
        before = front.proxy.value("process_resident_memory_bytes")
        raw.say(b"d SELECT %b\r\n" % box + b"e FETCH * (BODY.PEEK[])\r\n" * 5 + b"f NOOP\r\n")
        time.sleep(0.5)
        assert front.proxy.value("process_resident_memory_bytes") - before < 4_000_000
        for _ in range(5):
            raw.until(b"* 1 FETCH (BODY[] {")
            assert hashlib.sha256(raw.data(len(sent))).digest() == hashlib.sha256(sent).digest()
        raw.until(b"f OK")


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
@pytest.mark.parametrize("stage", ["greeted", "relaying"])
def test_a_client_that_breaks_off(postfix: Postfix, front: Front, protocol: str, stage: str) -> None:
    """The client resets the connection instead of logging out; no session remains."""
    active = "mailproxy_sessions_active"
    with ExitStack() as stack:
        clients = [stack.enter_context(Raw(front.ports[protocol])) for _ in range(20)]
        for client in clients:
            client.line()
            if stage == "relaying":
                client.say(without_goodbye(SCRIPTS[protocol][0]))
        if stage == "relaying":
            eventually(lambda: front.proxy.value(active, protocol=protocol, state="relay") == 20, "twenty")
        for client in clients:
            client.reset()
    eventually(lambda: front.proxy.value(active, protocol=protocol) == 0, "no more sessions")


def without_goodbye(script: bytes) -> bytes:
    """Return all lines but the last."""
    return b"".join(script.splitlines(keepends=True)[:-1])


def test_an_upstream_that_says_nothing(front: Front, service: AuthService) -> None:
    """It accepts and sends nothing: this client waits for up to ``timeout``; others are not delayed."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:
        service.backends["/imap-dead"] = Backend(silent.getsockname()[1])
        waiting = stack.enter_context(Raw(front.ports["imap-dead"]))
        waiting.line()
        waiting.say(LOGIN)
        upstream, _ = silent.accept()
        with upstream:
            other = stack.enter_context(Raw(front.ports["imap"]))
            other.line()
            assert other.ask(b"a NOOP") == b"a OK completed"
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert waiting.rest() == b"* BAD internal server error\r\n"


def test_many_at_once_under_tls(dovecot: Dovecot, front: Front, tls: Certificates) -> None:
    """A hundred TLS handshakes and logins at the same time; each client sends a different command."""
    context = tls.client()
    with ExitStack() as stack:
        clients = [stack.enter_context(Raw(front.ports["imaps"], context)) for _ in range(100)]
        for number, client in enumerate(clients):
            client.say(LOGIN + b"n%d NOOP\r\n" % number)
        for number, client in enumerate(clients):
            assert client.until(b"n%d " % number)[-1].startswith(b"n%d OK" % number)


@pytest.mark.parametrize(
    ("protocol", "says", "answer"),
    [
        ("imap", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"BAD"),
        ("pop3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), b"-ERR"),
        ("smtp", b"\xff\xf4\xff\xfd\x06" * 2000, b"5"),
        ("imap", b"a LOGIN {99999999999+}\r\n" + bytes(50_000), b"BAD"),
        ("smtp", b"EHLO " + b"x" * 50_000, b"5"),
    ],
)
def test_what_is_not_mail_at_all(front: Front, protocol: str, says: bytes, answer: bytes) -> None:
    """HTTP, TLS on a plain port, telnet options, endless lines and literals: a reply, then close."""
    with Raw(front.ports[protocol]) as raw:
        raw.line()
        raw.say(says)
        raw.finish()
        assert answer in raw.rest()

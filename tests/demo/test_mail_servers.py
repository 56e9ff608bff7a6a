# SPDX-License-Identifier: Apache-2.0
"""The demo's mail servers, with the mail clients of the standard library."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email.message import EmailMessage
from typing import Final
from urllib.request import Request, urlopen

import pytest

from support.demo_servers import ACCOUNT, DemoServers, demo_servers

LONG_BODY: Final = "".join(f".line {number} {'x' * 60}\n" for number in range(600))
TOO_LARGE: Final = ("x" * 70 + "\n") * 15_000


@pytest.fixture(scope="module")
def shared_servers() -> Iterator[DemoServers]:
    with demo_servers() as running:
        yield running


@pytest.fixture
def servers(shared_servers: DemoServers) -> DemoServers:
    """The same servers, with an empty mailbox."""
    with imap_client(shared_servers) as imap:
        imap.store("1:*", "+FLAGS.SILENT", "\\Deleted")
        imap.expunge()
    return shared_servers


def message(subject: str, body: str = "Hello\n.leading dot\n") -> EmailMessage:
    made = EmailMessage()
    made["From"] = '"Alice \\"A\\" Example" <alice@example.test>'
    made["To"] = "bob@example.test"
    made["Subject"] = subject
    made.set_content(body)
    return made


def send(servers: DemoServers, *messages: EmailMessage) -> None:
    with smtplib.SMTP("127.0.0.1", servers.ports["smtp"], timeout=5) as client:
        client.login(ACCOUNT.user, ACCOUNT.password)
        for one in messages:
            client.send_message(one)


@contextmanager
def imap_client(servers: DemoServers) -> Iterator[imaplib.IMAP4]:
    with imaplib.IMAP4("127.0.0.1", servers.ports["imap"], timeout=5) as client:
        client.login(ACCOUNT.user, ACCOUNT.password)
        client.select()
        yield client


@contextmanager
def pop3_client(servers: DemoServers, password: str = ACCOUNT.password) -> Iterator[poplib.POP3]:
    with closing(poplib.POP3("127.0.0.1", servers.ports["pop3"], timeout=5)) as client:
        client.user(ACCOUNT.user)
        client.pass_(password)
        yield client


def literal(response: tuple[str, list[object]]) -> bytes:
    """The literal of a FETCH response."""
    assert response[0] == "OK"
    assert isinstance(response[1][0], tuple), response
    found = response[1][0][1]
    assert isinstance(found, bytes)
    return found


def test_message_sent_by_smtp_is_read_by_imap_and_pop3(servers: DemoServers) -> None:
    send(servers, message("first"))
    with imap_client(servers) as imap:
        assert imap.search(None, "SUBJECT", "first") == ("OK", [b"1"])
        text = literal(imap.fetch("1", "(BODY.PEEK[])"))
        [envelope] = imap.fetch("1", "(FLAGS ENVELOPE RFC822.SIZE)")[1]
    assert text.startswith(b"Return-Path: <alice@example.test>\r\nDelivered-To: bob@example.test\r\n")
    assert b"\r\n.leading dot\r\n" in text
    assert isinstance(envelope, bytes)
    assert b'"first"' in envelope
    assert b'("Alice \\"A\\" Example" NIL "alice" "example.test")' in envelope
    assert b"FLAGS ()" in envelope
    assert b"RFC822.SIZE %d" % len(text) in envelope
    with pop3_client(servers) as pop3:
        assert pop3.stat() == (1, len(text))
        assert b"\r\n".join(pop3.retr(1)[1]) + b"\r\n" == text
        assert pop3.uidl(1).startswith(b"+OK demo-")
        assert [line.partition(b"-")[0] for line in pop3.uidl()[1]] == [b"1 demo"]
        assert pop3.top(1, 1)[1][-1] == b"Hello"
        pop3.dele(1)
        pop3.quit()
    with imap_client(servers) as imap:
        assert imap.status("INBOX", "(MESSAGES)")[1] == [b"INBOX (MESSAGES 0)"]


def test_long_message_with_leading_dots_arrives_unchanged(shared_servers: DemoServers) -> None:
    send(shared_servers, message("long", LONG_BODY))
    with imap_client(shared_servers) as imap:
        number = imap.search(None, "SUBJECT", "long")[1][0].split()[-1].decode()
        text = literal(imap.fetch(number, "(BODY.PEEK[])"))
    assert text.endswith(LONG_BODY.replace("\n", "\r\n").encode())
    with pop3_client(shared_servers) as pop3:
        assert b"\r\n".join(pop3.retr(int(number))[1]) + b"\r\n" == text
        assert pop3.top(int(number), 2)[1][-1] == LONG_BODY.splitlines()[1].encode()


def test_imap_sets_flags_searches_and_fetches_parts_of_messages(servers: DemoServers) -> None:
    attached = message("three")
    attached.add_attachment(b"abc", maintype="application", subtype="octet-stream")
    send(servers, message("one"), message("two"), attached, *(message("more") for _ in range(4)))
    with imap_client(servers) as imap:
        assert imap.store("2", "+FLAGS", "(\\Flagged)")[1] == [b"2 (FLAGS (\\Flagged))"]
        assert imap.store("2", "FLAGS", "(\\Answered)")[1] == [b"2 (FLAGS (\\Answered))"]
        assert imap.store("2", "-FLAGS", "(\\Draft)")[1] == [b"2 (FLAGS (\\Answered))"]
        assert imap.search(None, "UNSEEN", "NOT", "ANSWERED")[1] == [b"1 3 4 5 6 7"]
        [uid] = imap.uid("SEARCH", "HEADER", "Subject", "three")[1]
        assert imap.uid("FETCH", uid.decode(), "(FLAGS)")[1] == [b"3 (FLAGS () UID %b)" % uid]
        assert imap.search(None, "FROM", "alice", "OR", "SUBJECT", "one", "BODY", "none")[1] == [b"1"]
        assert imap.fetch("7:*", "(BODY.PEEK[]<0.6>)")[1][0] == (b"7 (BODY[]<0> {6}", b"Return")
        assert literal(imap.fetch("1", "(BODY[TEXT]<2.3>)")) == b"llo"
        assert imap.search(None, "SEEN")[1] == [b"1"]
        assert literal(imap.fetch("3", "(BODY.PEEK[2])")) == b"YWJj\r\n"
        assert imap.fetch("3", "(BODY.PEEK[3])")[1] == [b"3 (BODY[3] NIL)"]
        assert imap.fetch("1", "(BODY.PEEK[2])")[1] == [b"1 (BODY[2] NIL)"]
        assert literal(imap.fetch("1", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")) == b"Subject: one\r\n"
        [structure] = imap.fetch("3", "(BODYSTRUCTURE)")[1]
        assert isinstance(structure, bytes)
        assert b'("application" "octet-stream"' in structure
        assert imap.status("INBOX", "(MESSAGES UNSEEN)")[1] == [b"INBOX (MESSAGES 7 UNSEEN 6)"]


def test_imap_appends_and_copies(servers: DemoServers) -> None:
    with imap_client(servers) as imap:
        assert imap.append("INBOX", "(\\Seen)", "", b"Subject: one\r\n\r\n")[0] == "OK"
        assert imap.append("INBOX", "", "", b"Subject: f\xc3\xbcnf\r\n\r\nx")[0] == "OK"
        assert imap.append("OTHER", "", "", b"Subject: x\r\n\r\n")[0] == "NO"
        assert imap.copy("1", "INBOX")[0] == "OK"
        assert imap.copy("1", "OTHER")[0] == "NO"
        flags = [b"1 (FLAGS (\\Seen))", b"2 (FLAGS ())", b"3 (FLAGS (\\Seen))"]
        assert imap.fetch("1:*", "(FLAGS)")[1] == flags
        assert literal(imap.fetch("2", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")) == b"Subject: f??nf\r\n"
        assert imap.list()[1] == [b'() "/" "INBOX"']
        assert imap.create("OTHER")[0] == "NO"
        assert imap.close()[0] == "OK"


def test_imap_session_keeps_messages_that_another_session_removes(servers: DemoServers) -> None:
    send(servers, *(message(subject) for subject in ("one", "two", "three")))
    with imap_client(servers) as imap, imap_client(servers) as other:
        other.store("1:2", "+FLAGS.SILENT", "\\Deleted")
        assert other.expunge()[1] == [b"2", b"1"]
        assert imap.search(None, "ALL")[1] == [b"1 2 3"]
        assert imap.select() == ("OK", [b"1"])


def test_message_beyond_maximum_size_is_refused(servers: DemoServers) -> None:
    with imap_client(servers) as imap, pytest.raises(imaplib.IMAP4.error, match="too large"):
        imap.append("INBOX", "", "", b"x" * (1024 * 1024 + 1))
    with pytest.raises(smtplib.SMTPDataError) as refused:
        send(servers, message("large", TOO_LARGE))
    assert refused.value.smtp_code == 552


@contextmanager
def connection(port: int) -> Iterator[tuple[socket.socket, Iterator[bytes]]]:
    """A connection whose greeting was read, and the lines that follow."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock, sock.makefile("rb") as lines:
        lines.readline()
        yield sock, lines


def test_imap_accepts_literals_and_notifies_idle_client(servers: DemoServers) -> None:
    with connection(servers.ports["imap"]) as (sock, lines):
        sock.sendall(b"a LOGIN {5}\r\n")
        assert next(lines).startswith(b"+ ")
        sock.sendall(b"alice {10}\r\n")
        assert next(lines).startswith(b"+ ")
        sock.sendall(b"wonderland\r\n")
        assert next(lines).startswith(b"a OK")
        sock.sendall(b"b SELECT INBOX\r\n")
        for start in (b"* 0 EXISTS", b"* 0 RECENT", b"* FLAGS", b"* OK [UIDVALIDITY", b"b OK [READ-WRITE]"):
            assert next(lines).startswith(start)
        sock.sendall(b"c IDLE\r\n")
        assert next(lines).startswith(b"+")
        send(servers, message("new"))
        assert next(lines) == b"* 1 EXISTS\r\n"
        sock.sendall(b"DONE\r\n")
        assert next(lines).startswith(b"c OK")
        sock.sendall(b"f UNKNOWN\r\n")
        assert next(lines).startswith(b"f BAD")


def test_imap_authenticates_with_plain(shared_servers: DemoServers) -> None:
    with imaplib.IMAP4("127.0.0.1", shared_servers.ports["imap"], timeout=5) as client:
        client.authenticate("PLAIN", lambda _: b"\0alice\0wonderland")
        assert client.state == "AUTH"


def test_smtp_with_xclient_login_accepts_message_without_auth(shared_servers: DemoServers) -> None:
    with smtplib.SMTP("127.0.0.1", shared_servers.ports["smtp"], timeout=5) as client:
        client.ehlo()
        assert client.has_extn("xclient")
        assert client.docmd("XCLIENT", "ADDR=192.0.2.1 LOGIN=alice NAME=[UNAVAILABLE]")[0] == 220
        client.send_message(message("trusted"))


@pytest.mark.parametrize(
    ("protocol", "command", "reply"),
    [
        ("smtp", b"MAIL FROM:<a@example.test>\r\n", b"550"),
        ("smtp", b"XCLIENT ADDR=192.0.2.1 NAME=[UNAVAILABLE]\r\nMAIL FROM:<a@example.test>\r\n", b"220"),
        ("smtp", b"AUTH PLAIN AGFsaWNlAHdyb25n\r\n", b"535"),
        ("smtp", b"AUTH CRAM-MD5\r\n", b"504"),
        ("smtp", b"NONSENSE\r\n", b"500"),
        ("pop3", b"CAPA\r\n", b"+OK"),
        ("imap", b"a LOGIN alice wrong\r\n", b"a NO"),
        ("imap", b"a SELECT INBOX\r\n", b"a BAD"),
        ("imap", b"a AUTHENTICATE CRAM-MD5\r\n", b"a NO"),
    ],
)
def test_reply_before_login(shared_servers: DemoServers, protocol: str, command: bytes, reply: bytes) -> None:
    with connection(shared_servers.ports[protocol]) as (sock, lines):
        sock.sendall(command)
        assert next(lines).startswith(reply)


def test_smtp_with_xclient_without_login_still_requires_auth(shared_servers: DemoServers) -> None:
    with smtplib.SMTP("127.0.0.1", shared_servers.ports["smtp"], timeout=5) as client:
        client.ehlo()
        client.docmd("XCLIENT", "ADDR=192.0.2.1 LOGIN=[UNAVAILABLE]")
        assert client.docmd("MAIL", "FROM:<a@example.test>")[0] == 550


def test_pop3_refuses_wrong_password(shared_servers: DemoServers) -> None:
    with pytest.raises(poplib.error_proto, match="failed"), pop3_client(shared_servers, "wrong"):
        pass


@pytest.mark.parametrize(
    ("method", "user", "secret", "protocol", "status", "password"),
    [
        ("plain", "alice", "wonderland", "imap", "OK", None),
        ("plain", "%61lice", "wonder%6Cand", "smtp", "OK", None),
        ("plain", "alice", "wrong", "imap", "Invalid login or password", None),
        ("plain", "alice", "wonderland", "nntp", "Invalid login or password", None),
        ("external", "alice", "wonderland", "imap", "Invalid login or password", None),
        ("external", "alice", "", "imap", "Invalid login or password", None),
        # printf '<1.2@mail>' | openssl dgst -md5 -hmac wonderland
        ("cram-md5", "alice", "012fe1e87f331983ec373e2f64c4d408", "pop3", "OK", "wonderland"),
        ("cram-md5", "bob", "012fe1e87f331983ec373e2f64c4d408", "pop3", "Invalid login or password", None),
        # printf '<1.2@mail>wonderland' | md5sum
        ("apop", "alice", "44821dc4001fa016eb73e2b6b83e9d4e", "pop3", "OK", "wonderland"),
        ("apop", "alice", "", "pop3", "Invalid login or password", None),
    ],
)
def test_auth_http_service_response(
    shared_servers: DemoServers,
    method: str,
    user: str,
    secret: str,
    protocol: str,
    status: str,
    password: str | None,
) -> None:
    headers = {
        "Auth-Method": method,
        "Auth-User": user,
        "Auth-Pass": secret,
        "Auth-Salt": "<1.2@mail>",
        "Auth-Protocol": protocol,
    }
    with urlopen(Request(shared_servers.auth_url, headers=headers), timeout=5) as response:
        assert response.headers["Auth-Status"] == status
        assert response.headers.get("Auth-Pass") == password
        port = str(shared_servers.ports.get(protocol))
        assert response.headers.get("Auth-Port") == (port if status == "OK" else None)

# SPDX-License-Identifier: Apache-2.0
"""After login: commands sent ahead, IDLE, tens of megabytes in each direction, and many sessions at once."""

from __future__ import annotations

import hashlib
import imaplib
import os
import smtplib
from base64 import b64encode, encodebytes
from contextlib import ExitStack
from typing import Final

import pytest

from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.clients import RawClient, imap, pop3, smtp
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import eventually
from support.servers.shared_proxy import SharedProxy

pytestmark = pytest.mark.interop

MEGABYTE: Final = 1024 * 1024
SESSIONS: Final = 200


def test_pipelined_imap_commands_reach_dovecot_in_order(dovecot: Dovecot, shared_proxy: SharedProxy) -> None:
    """All commands in one segment: those after the login are answered by Dovecot, once and in order."""
    with RawClient(shared_proxy.ports["imap"]) as raw:
        raw.send(b"a CAPABILITY\r\nb LOGIN carol christmas\r\nc SELECT INBOX\r\nd NOOP\r\ne LOGOUT\r\n")
        lines = raw.read_to_eof().splitlines()
    tagged = [line.split()[:2] for line in lines if line[:1] in b"abcde" and line[1:2] == b" "]
    assert tagged == [[tag, b"OK"] for tag in (b"a", b"b", b"c", b"d", b"e")]


def test_imap_login_with_non_synchronizing_literals(dovecot: Dovecot, shared_proxy: SharedProxy) -> None:
    with RawClient(shared_proxy.ports["imap"]) as raw:
        raw.read_until(b"* OK")
        raw.send(b'a LOGIN {3+}\r\nbob {9+}\r\nbuil"der\\\r\nb NOOP\r\n')
        assert raw.read_until(b"b ")[-1].startswith(b"b OK")


def test_pipelined_pop3_commands_reach_dovecot(dovecot: Dovecot, shared_proxy: SharedProxy) -> None:
    with RawClient(shared_proxy.ports["pop3"]) as raw:
        raw.send(b"USER carol\r\nPASS christmas\r\nNOOP\r\nNOOP\r\nQUIT\r\n")
        lines = raw.read_to_eof().splitlines()
    assert [line[:3] for line in lines] == [b"+OK"] * 6


def test_pipelined_smtp_commands_reach_postfix(postfix: Postfix, shared_proxy: SharedProxy) -> None:
    plain = b64encode(b"\0carol\0christmas")
    with RawClient(shared_proxy.ports["smtp"]) as raw:
        assert raw.read_line().startswith(b"220 front.example.org ")
        raw.send(b"EHLO client.example.org\r\nAUTH PLAIN " + plain + b"\r\nMAIL FROM:<carol@example.org>\r\n")
        raw.send(b"RCPT TO:<carol@example.org>\r\nRSET\r\nQUIT\r\n")
        codes = [line[:4] for line in raw.read_to_eof().splitlines() if line[3:4] == b" "]
    assert codes == [b"250 ", b"235 ", b"250 ", b"250 ", b"250 ", b"221 "]


@pytest.mark.parametrize("tls_mode", ["plain", "implicit"])
def test_idle_client_receives_updates(
    dovecot: Dovecot, shared_proxy: SharedProxy, tls: Certificates, service: AuthService, tls_mode: str
) -> None:
    """A client in IDLE receives updates while it sends nothing."""
    with ExitStack() as stack:
        port, context = (
            (shared_proxy.ports["imap"], None)
            if tls_mode == "plain"
            else (shared_proxy.ports["imaps"], tls.client())
        )
        idle = stack.enter_context(RawClient(port, context))
        idle.send(b"a LOGIN dave davy\r\nb SELECT INBOX\r\nc IDLE\r\n")
        idle.read_until(b"+ idling")
        other = stack.enter_context(imap(shared_proxy, tls))
        other.login("dave", service.passwords["dave"])
        assert other.append("INBOX", "", "", b"Subject: news\r\n\r\n")[0] == "OK"
        assert b" EXISTS" in idle.read_until(b"* ")[-1]
        idle.send(b"DONE\r\n")
        assert idle.read_until(b"c ")[-1].startswith(b"c OK")


def large_message(size: int) -> bytes:
    """Return a message of about this size in which every line is different."""
    body = encodebytes(os.urandom(size * 3 // 4)).replace(b"\n", b"\r\n")
    return b"From: alice@example.org\r\nSubject: large\r\n\r\n" + body


@pytest.mark.parametrize("tls_mode", ["plain", "implicit"])
def test_thirty_megabytes_are_appended_and_fetched(
    dovecot: Dovecot, shared_proxy: SharedProxy, tls: Certificates, service: AuthService, tls_mode: str
) -> None:
    sent = large_message(30 * MEGABYTE)
    with imap(shared_proxy, tls, tls_mode) as client:
        client.login("alice", service.passwords["alice"])
        client.create("Large")
        assert client.append("Large", "", "", sent)[0] == "OK"
        client.select("Large")
        literal = client.fetch("*", "(BODY.PEEK[])")[1][0]
        assert isinstance(literal, tuple)
        port = client.socket().getsockname()[1]
        client.logout()
    assert hashlib.sha256(literal[1]).digest() == hashlib.sha256(sent).digest()
    session = shared_proxy.proxy.event("session", client_port=port)
    assert min(session["bytes_to_upstream"], session["bytes_to_client"]) > len(sent)


def test_ten_megabytes_are_sent_and_retrieved(
    postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates, service: AuthService
) -> None:
    """Send and receive it by SMTP and POP3, and compare all bytes after dot-stuffing is removed."""
    sent = large_message(10 * MEGABYTE).replace(b"\r\nA", b"\r\n.")
    with smtp(shared_proxy, tls, "starttls") as client:
        client.login("carol", service.passwords["carol"])
        client.sendmail("alice@example.org", ["carol@example.org"], sent)
        client.quit()
    eventually(lambda: has_large_message(shared_proxy, tls, service), "delivery")
    with pop3(shared_proxy, tls, "starttls") as reader:
        reader.user("carol")
        reader.pass_(service.passwords["carol"])
        read = b"\r\n".join(reader.retr(largest(reader.list()[1]))[1])
        reader.quit()
    assert (
        hashlib.sha256(read.partition(b"\r\n\r\n")[2].rstrip()).digest()
        == hashlib.sha256(sent.partition(b"\r\n\r\n")[2].rstrip()).digest()
    )


def sizes(listing: list[bytes]) -> list[tuple[int, int]]:
    """Return the message numbers and sizes of a ``LIST`` reply."""
    return [(int(size), int(number)) for number, size in (line.split() for line in listing)]


def largest(listing: list[bytes]) -> int:
    """Return the number of the largest message."""
    return max(sizes(listing))[1]


def has_large_message(shared_proxy: SharedProxy, tls: Certificates, service: AuthService) -> bool:
    """Return whether carol's mailbox contains a message of several megabytes."""
    with pop3(shared_proxy, tls) as client:
        client.user("carol")
        client.pass_(service.passwords["carol"])
        found = any(size > MEGABYTE for size, _ in sizes(client.list()[1]))
        client.quit()
    return found


def test_concurrent_sessions_get_their_own_responses(dovecot: Dovecot, shared_proxy: SharedProxy) -> None:
    """All sessions are logged in at the same time; each gets its own responses."""
    active = "mailproxy_sessions_active"
    before = shared_proxy.proxy.value("mailproxy_logins_total", protocol="imap", result="success")
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(shared_proxy.ports["imap"])) for _ in range(SESSIONS)]
        for number, client in enumerate(clients):
            client.send(b"l%d LOGIN alice {14}\r\n" % number)
        for client in clients:
            client.read_until(b"+ ")
            client.send(b"wonder land%21\r\n")
        for number, client in enumerate(clients):
            assert client.read_until(b"l%d " % number)[-1].startswith(b"l%d OK" % number)
        assert shared_proxy.proxy.value(active, protocol="imap", state="relay") == SESSIONS
        for number, client in enumerate(clients):
            client.send(b"n%d NOOP\r\ne%d LOGOUT\r\n" % (number, number))
        for number, client in enumerate(clients):
            assert client.read_to_eof().count(b"%d OK " % number) == 2
    eventually(lambda: shared_proxy.proxy.value(active, protocol="imap") == 0, "no more sessions")
    after = shared_proxy.proxy.value("mailproxy_logins_total", protocol="imap", result="success")
    assert after - before == SESSIONS


def test_concurrent_denied_logins_leave_no_session(dovecot: Dovecot, shared_proxy: SharedProxy) -> None:
    """Each of many logins with a wrong password is refused, and no session remains afterwards."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(shared_proxy.ports["pop3"])) for _ in range(SESSIONS)]
        for client in clients:
            client.send(b"USER alice\r\nPASS wrong\r\n")
        for client in clients:
            assert client.read_to_eof().splitlines()[1:] == [b"+OK", b"-ERR Invalid login or password"]
    eventually(
        lambda: shared_proxy.proxy.value("mailproxy_connections_active", protocol="pop3") == 0,
        "the end of all sessions",
    )


def test_session_continues_after_postfix_refuses_a_large_message(
    postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates, service: AuthService
) -> None:
    """Postfix refuses the declared size; the client gets Postfix's reply, and the session continues."""
    with smtp(shared_proxy, tls) as client:
        client.ehlo("client.example.org")
        client.login("carol", service.passwords["carol"])
        assert client.docmd("MAIL FROM:<carol@example.org> SIZE=99999999")[0] == 552
        assert client.rset()[0] == 250
        with pytest.raises(smtplib.SMTPRecipientsRefused, match="User unknown"):
            client.sendmail("carol@example.org", ["nobody@example.org"], "Subject: x\r\n\r\n")


def test_unreachable_upstream_gets_internal_error_reply(
    shared_proxy: SharedProxy, service: AuthService, tls: Certificates
) -> None:
    with imap(shared_proxy, tls, name="imap-dead") as client:
        with pytest.raises(imaplib.IMAP4.abort, match="EOF"):
            client.login("alice", service.passwords["alice"])
        assert client.untagged_responses["BAD"] == [b"internal server error"]
    shared_proxy.proxy.event("session", server="imap-dead", result="upstream_failed")
    assert shared_proxy.proxy.value("mailproxy_upstream_errors_total", protocol="imap", stage="connect") >= 1

# SPDX-License-Identifier: Apache-2.0
"""Real messages: sent by SMTP through the proxy, read by IMAP and POP3 through the proxy."""

from __future__ import annotations

import email
import smtplib
import uuid
from email.message import EmailMessage, Message

import pytest

from support.needs import Needs
from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.clients import Listeners, RawClient, imap, pop3, smtp
from support.servers.postfix import Postfix
from support.servers.programs import eventually, run_program
from support.servers.shared_proxy import SharedProxy

pytestmark = pytest.mark.interop


def message(recipient: str) -> EmailMessage:
    """Return a message with a unique subject."""
    message_to_send = EmailMessage()
    message_to_send["From"] = "sender@elsewhere.example"
    message_to_send["To"] = recipient
    message_to_send["Subject"] = uuid.uuid4().hex
    message_to_send.set_content("A line that begins with a dot:\n.\n..\nand one with 8 bits: grüße\n" * 20)
    return message_to_send


def fetch_by_imap(
    shared_proxy: Listeners, tls: Certificates, service: AuthService, user: str, subject: str
) -> Message:
    """Wait until a message is delivered, find it by IMAP, and fetch it."""

    def found() -> bytes:
        client.noop()
        numbers: bytes = client.search(None, "SUBJECT", subject)[1][0]
        return numbers

    with imap(shared_proxy, tls, "starttls") as client:
        client.login(user, service.passwords[user])
        client.select()
        number = eventually(found, f"the message {subject}").decode()
        literal = client.fetch(number, "(BODY.PEEK[])")[1][0]
        assert isinstance(literal, tuple)
        client.logout()
    return email.message_from_bytes(literal[1])


def retrieve_by_pop3(
    shared_proxy: Listeners, tls: Certificates, service: AuthService, user: str, subject: str
) -> Message:
    """Find a message by POP3, and retrieve it."""
    with pop3(shared_proxy, tls, "implicit") as client:
        client.apop(user, service.passwords[user])
        count = client.stat()[0]
        messages = [b"\r\n".join(client.retr(number + 1)[1]) for number in range(count)]
        client.quit()
    found = [parsed for parsed in map(email.message_from_bytes, messages) if parsed["Subject"] == subject]
    assert len(found) == 1
    return found[0]


def received_from(read: Message, by: str) -> str:
    """Return the ``Received`` header that a server added to a message it got by SMTP, as one line."""
    fields = [" ".join(field.split()) for field in read.get_all("Received", [])]
    found = [field for field in fields if f" by {by}" in field and " with ESMTP" in field]
    assert len(found) == 1, fields
    return found[0]


POSTFIX, DOVECOT = "mx.example.org", "dovecot.example.org"


@pytest.mark.parametrize(
    ("listener", "by", "expected"),
    [
        # With xclient: the client's address, name and login are those that the proxy sends.
        ("smtp", POSTFIX, ["from client.example.org (unknown [127.0.0.1]", "(Authenticated sender: carol)"]),
        # Without xclient: Postfix sees the proxy's address, and the name in the proxy's EHLO.
        ("smtp-bare", POSTFIX, ["from front.example.org (unknown [127.0.0.1]"]),
        # Dovecot gets the login by AUTH, and the client's EHLO name only by XCLIENT.
        ("submission", DOVECOT, ["from front.example.org ([127.0.0.1])"]),
        ("submission-x", DOVECOT, ["from client.example.org ([127.0.0.1])"]),
    ],
)
def test_sent_message_is_delivered_unchanged(
    postfix: Postfix,
    proxy_or_nginx: Listeners,
    tls: Certificates,
    service: AuthService,
    listener: str,
    by: str,
    expected: list[str],
) -> None:
    sent = message("carol@example.org")
    with smtp(proxy_or_nginx, tls, name=listener) as client:
        client.ehlo("client.example.org")
        client.login("carol", service.passwords["carol"])
        client.send_message(sent)
        client.quit()
    for read in (
        fetch_by_imap(proxy_or_nginx, tls, service, "carol", sent["Subject"]),
        retrieve_by_pop3(proxy_or_nginx, tls, service, "carol", sent["Subject"]),
    ):
        assert read.get_payload(decode=True).splitlines() == sent.get_content().encode().splitlines()  # type: ignore[union-attr]
        received = received_from(read, by)
        assert all(part in received for part in expected), received


def test_xclient_contains_the_address_of_the_proxy_header(
    postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates, service: AuthService
) -> None:
    """The client's address differs from the proxy's: it came by PROXY header."""
    sent = message("dave@example.org")
    with RawClient(shared_proxy.ports["smtp-behind"]) as raw:
        raw.send(b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 25\r\n")
        assert raw.read_line().startswith(b"220 ")
        raw.send(b"EHLO far.example.net\r\n")
        raw.read_until(b"250 ")
        assert raw.exchange(b"AUTH PLAIN AGRhdmUAZGF2eQ==") == b"235 2.0.0 OK"
        assert raw.exchange(b"MAIL FROM:<dave@example.org>").startswith(b"250 ")
        assert raw.exchange(b"RCPT TO:<dave@example.org>").startswith(b"250 ")
        assert raw.exchange(b"DATA").startswith(b"354 ")
        assert raw.exchange(
            sent.as_bytes().replace(b"\n", b"\r\n").replace(b"\r\n.", b"\r\n..") + b"."
        ).startswith(b"250 ")
    received = received_from(fetch_by_imap(shared_proxy, tls, service, "dave", sent["Subject"]), POSTFIX)
    assert "from far.example.net (unknown [203.0.113.9]" in received


def test_inbound_message_is_delivered_without_authentication(
    postfix: Postfix, proxy_or_nginx: Listeners, tls: Certificates, service: AuthService
) -> None:
    sent = message("dave@example.org")
    with smtp(proxy_or_nginx, tls, name="mx") as client:
        client.ehlo("other-mx.example.net")
        client.send_message(sent)
        client.quit()
    received = received_from(fetch_by_imap(proxy_or_nginx, tls, service, "dave", sent["Subject"]), POSTFIX)
    assert "from other-mx.example.net (unknown [127.0.0.1]" in received
    auth_request = service.latest_request("/mx")
    assert (auth_request["auth-method"], auth_request["auth-smtp-helo"]) == ("none", "other-mx.example.net")
    assert auth_request["auth-smtp-from"].lower().startswith("mail from:<sender@elsewhere.example>")
    assert auth_request["auth-smtp-to"].lower() == "rcpt to:<dave@example.org>"


@pytest.mark.parametrize(
    ("recipient", "code", "text"),
    [
        ("nobody@example.org", 550, b"User unknown"),
        ("later@example.org", 450, b"4.2.1"),
        ("someone@elsewhere.example", 554, b"Relay access denied"),
    ],
)
def test_refused_recipient_gets_the_reply_of_postfix(
    postfix: Postfix, proxy_or_nginx: Listeners, tls: Certificates, recipient: str, code: int, text: bytes
) -> None:
    """The reply is Postfix's own; the next recipient may be valid (RFC 5321 section 3.3)."""
    with smtp(proxy_or_nginx, tls, name="mx") as client:
        client.ehlo("other-mx.example.net")
        client.mail("sender@elsewhere.example")
        reply_code, reply = client.rcpt(recipient)
        assert reply_code == code
        assert text in reply
        assert client.rcpt("dave@example.org")[0] == 250
        client.quit()


def test_postfix_relays_mail_for_the_login_in_xclient(
    postfix: Postfix, proxy_or_nginx: Listeners, tls: Certificates, service: AuthService
) -> None:
    """Postfix relays mail to other domains only for clients whose login the proxy sends by XCLIENT."""
    outside = "someone@elsewhere.example"
    with smtp(proxy_or_nginx, tls, name="smtp") as client:
        client.login("alice", service.passwords["alice"])
        assert client.sendmail("alice@example.org", [outside], "Subject: out\r\n\r\n") == {}
    with smtp(proxy_or_nginx, tls, name="smtp-bare") as client:
        client.login("alice", service.passwords["alice"])
        with pytest.raises(smtplib.SMTPRecipientsRefused, match="Relay access denied"):
            client.sendmail("alice@example.org", [outside], "Subject: out\r\n\r\n")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_swaks_sends_a_message(
    needs: Needs,
    postfix: Postfix,
    shared_proxy: SharedProxy,
    tls: Certificates,
    service: AuthService,
    mechanism: str,
) -> None:
    subject = uuid.uuid4().hex
    output = run_program(
        [
            needs("swaks"), "--server", "127.0.0.1", "--port", str(shared_proxy.ports["smtp"]),
            "--auth", mechanism, "--auth-user", "bob", "--auth-password", service.passwords["bob"],
            "--helo", "swaks.example.org", "--from", "bob@example.org", "--to", "carol@example.org",
            "--header", f"Subject: {subject}", "--body", "from swaks",
        ]
    )  # fmt: skip
    assert " 235 2.0.0 OK" in output, output
    read = fetch_by_imap(shared_proxy, tls, service, "carol", subject)
    assert "(Authenticated sender: bob)" in received_from(read, POSTFIX)


def test_swaks_sends_a_message_without_authentication(
    needs: Needs, postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates, service: AuthService
) -> None:
    """Mail from another server, with pipelined commands and one unknown recipient."""
    subject = uuid.uuid4().hex
    output = run_program(
        [
            needs("swaks"), "--server", "127.0.0.1", "--port", str(shared_proxy.ports["mx"]), "--pipeline",
            "--helo", "swaks.example.org", "--from", "<>", "--to", "carol@example.org,nobody@example.org",
            "--header", f"Subject: {subject}",
        ]
    )  # fmt: skip
    assert "User unknown" in output, output
    assert fetch_by_imap(shared_proxy, tls, service, "carol", subject)["Subject"] == subject

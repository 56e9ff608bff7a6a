# SPDX-License-Identifier: Apache-2.0
"""The demo's mail world is real enough for the standard library's clients."""

from __future__ import annotations

import asyncio
import imaplib
import poplib
import smtplib
from collections.abc import AsyncIterator
from email.message import EmailMessage

import aiohttp
import pytest

from mailproxy_demo.mail_servers import MailWorld

USER, PASSWORD = "alice", "wonderland"


@pytest.fixture
async def world() -> AsyncIterator[MailWorld]:
    async with MailWorld() as running:
        yield running


def message(subject: str, body: str = "Hello\n.leading dot\n") -> EmailMessage:
    made = EmailMessage()
    made["From"] = '"Alice \\"A\\" Example" <alice@example.test>'
    made["To"] = "bob@example.test, carol@example.test"
    made["Subject"] = subject
    made.set_content(body)
    return made


def send(port: int, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
        client.ehlo()
        client.login(USER, PASSWORD)
        client.send_message(message(subject))


def with_imap(port: int) -> imaplib.IMAP4:
    client = imaplib.IMAP4("127.0.0.1", port, timeout=5)
    client.login(USER, PASSWORD)
    client.select()
    return client


async def test_what_smtp_takes_imap_and_pop3_show(world: MailWorld) -> None:
    def go() -> None:
        send(world.ports["smtp"], "first")
        imap = with_imap(world.ports["imap"])
        assert imap.search(None, "SUBJECT", "first") == ("OK", [b"1"])
        status, fetched = imap.fetch("1", "(FLAGS ENVELOPE RFC822.SIZE BODY.PEEK[])")
        assert status == "OK"
        assert isinstance(fetched[0], tuple)
        envelope, text = fetched[0]
        assert b"\r\n.leading dot\r\n" in text
        assert b'"first"' in envelope
        assert b'("Alice \\"A\\" Example" NIL "alice" "example.test")' in envelope
        assert imap.logout()[0] == "BYE"
        pop = poplib.POP3("127.0.0.1", world.ports["pop3"], timeout=5)
        pop.user(USER)
        pop.pass_(PASSWORD)
        assert pop.stat() == (1, len(text))
        assert b"\r\n".join(pop.retr(1)[1]) + b"\r\n" == text
        assert pop.uidl(1) == b"+OK 1 demo-1"
        assert pop.top(1, 1)[1][-1] == b"Hello"
        pop.dele(1)
        pop.quit()
        assert world.mailbox.messages == []

    await asyncio.to_thread(go)


async def test_imap_flags_searches_and_partial_bodies(world: MailWorld) -> None:
    for subject in ("one", "two", "three"):
        world.mailbox.deliver(message(subject).as_bytes())

    def go() -> None:
        imap = with_imap(world.ports["imap"])
        assert imap.store("2", "+FLAGS", "(\\Flagged)")[1] == [b"2 (FLAGS (\\Flagged))"]
        assert imap.search(None, "UNSEEN", "NOT", "FLAGGED")[1] == [b"1 3"]
        assert imap.uid("SEARCH", "HEADER", "Subject", "three")[1] == [b"3"]
        assert imap.uid("FETCH", "3:*", "(BODY[]<0.4>)")[1][0] == (b"3 (UID 3 BODY[]<0> {4}", b"From")
        [fields, _] = imap.fetch("1", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1]
        assert isinstance(fields, tuple)
        assert fields[1] == b"Subject: one\r\n\r\n"
        assert imap.search(None, "SEEN")[1] == [b"3"]
        assert imap.status("INBOX", "(MESSAGES UNSEEN)")[1] == [b"INBOX (MESSAGES 3 UNSEEN 2)"]
        imap.store("1:2", "+FLAGS.SILENT", "\\Deleted")
        assert imap.expunge()[1] == [b"2", b"1"]
        assert imap.append("INBOX", "(\\Seen)", None, b"Subject: four\r\n\r\n")[0] == "OK"
        assert imap.noop()[0] == "OK"
        assert imap.list()[1] == [b'() "/" INBOX']
        imap.logout()

    await asyncio.to_thread(go)
    assert [m.flags for m in world.mailbox.messages] == [{"\\Seen"}, {"\\Seen"}]


async def test_imap_literals_and_idle(world: MailWorld) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.ports["imap"])

    async def says(line: bytes) -> None:
        assert await asyncio.wait_for(reader.readline(), 5) == line + b"\r\n"

    async def says_something(start: bytes) -> None:
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(start)

    await says_something(b"* OK")
    writer.write(b"a LOGIN {5}\r\n")
    await says(b"+ OK")
    writer.write(b"alice {10+}\r\nwonderland\r\n")
    await says_something(b"a OK")
    writer.write(b"b SELECT INBOX\r\n")
    for start in (b"* 0 EXISTS", b"* 0 RECENT", b"* FLAGS", b"* OK", b"* OK", b"* OK", b"b OK"):
        await says_something(start)
    writer.write(b"c IDLE\r\n")
    await says(b"+ idling")
    world.mailbox.deliver(b"Subject: new\n\n")
    await says(b"* 1 EXISTS")
    writer.write(b"DONE\r\n")
    await says(b"c OK IDLE completed")
    writer.write(b"d FETCH 1 (BODY[9])\r\ne (\r\nf UNKNOWN\r\n")
    await says_something(b"d BAD")
    await says_something(b"* BAD")
    await says_something(b"f BAD")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("protocol", "said", "answered"),
    [
        ("smtp", b"MAIL FROM:<a@example.test>\r\n", b"530"),
        ("smtp", b"XCLIENT ADDR=192.0.2.1 LOGIN=alice NAME=[UNAVAILABLE]\r\n", b"220"),
        ("smtp", b"AUTH PLAIN AGFsaWNlAHdyb25n\r\n", b"535"),
        ("smtp", b"AUTH CRAM-MD5\r\n", b"504"),
        ("smtp", b"NONSENSE\r\n", b"502"),
        ("pop3", b"STAT\r\n", b"-ERR"),
        ("pop3", b"PASS wrong\r\n", b"-ERR"),
        ("imap", b"a LOGIN alice wrong\r\n", b"a NO"),
        ("imap", b"a SELECT INBOX\r\n", b"a BAD"),
    ],
)
async def test_refusals(world: MailWorld, protocol: str, said: bytes, answered: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.ports[protocol])
    await reader.readline()
    writer.write(said)
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(answered)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("method", "user", "secret", "protocol", "status", "password"),
    [
        ("plain", "alice", "wonderland", "imap", "OK", None),
        ("plain", "%61lice", "wonder%6Cand", "smtp", "OK", None),
        ("plain", "alice", "wrong", "imap", "Invalid login or password", None),
        ("plain", "alice", "wonderland", "nntp", "Invalid login or password", None),
        ("external", "alice", "wonderland", "imap", "Invalid login or password", None),
        # printf '<1.2@mail>' | openssl dgst -md5 -hmac wonderland
        ("cram-md5", "alice", "012fe1e87f331983ec373e2f64c4d408", "pop3", "OK", "wonderland"),
        ("cram-md5", "bob", "012fe1e87f331983ec373e2f64c4d408", "pop3", "Invalid login or password", None),
        # printf '<1.2@mail>wonderland' | md5sum
        ("apop", "alice", "44821dc4001fa016eb73e2b6b83e9d4e", "pop3", "OK", "wonderland"),
        ("apop", "alice", "", "pop3", "Invalid login or password", None),
    ],
)
async def test_the_authentication_service_answers(
    world: MailWorld, method: str, user: str, secret: str, protocol: str, status: str, password: str | None
) -> None:
    headers = {
        "Auth-Method": method,
        "Auth-User": user,
        "Auth-Pass": secret,
        "Auth-Salt": "<1.2@mail>",
        "Auth-Protocol": protocol,
    }
    async with aiohttp.ClientSession() as session, session.get(world.auth_url, headers=headers) as answer:
        assert answer.headers["Auth-Status"] == status
        assert answer.headers.get("Auth-Pass") == password
        assert answer.headers.get("Auth-Port") == (str(world.ports[protocol]) if status == "OK" else None)

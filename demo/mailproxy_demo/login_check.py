# SPDX-License-Identifier: Apache-2.0
"""Logs in once through the proxy with each protocol, as any mail program would."""

from __future__ import annotations

import imaplib
import poplib
import re
import smtplib
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from urllib.request import urlopen

from mailproxy_demo.memory_mailbox import Account

TIMEOUT = 10
_LOGINS = re.compile(r"^mailproxy_logins_total\{(?P<labels>[^}]*)\} (?P<value>\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried.

    Attributes:
        problem: Why it failed; empty when it did not.
    """

    name: str
    told: str
    milliseconds: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server of the resource listens.

    Attributes:
        offers_starttls: Whether the client shall upgrade.
    """

    host: str
    port: int
    offers_starttls: bool


class Visitor:
    """A user who sends a message and reads it back.

    Args:
        account: Who.
        places: Where each protocol is found.
        certificate: What to trust, PEM.
        admin: Base URL of the admin endpoint.
    """

    def __init__(self, account: Account, places: Mapping[str, Place], certificate: bytes, admin: str) -> None:
        self._account = account
        self._places = places
        self._admin = admin
        self._context = ssl.create_default_context(cadata=certificate.decode())
        self._subject = f"Hello through the proxy {time.time_ns():x}"

    def steps(self) -> list[Step]:
        """Try everything that the resource offers; blocks, so run it in a thread."""
        tries = {"smtp": self._send, "imap": self._fetch, "pop3": self._retrieve}
        done = [_tried(name.upper(), go) for name, go in tries.items() if name in self._places]
        return [*done, _tried("metrics", self._count)]

    def _send(self) -> str:
        message = EmailMessage()
        message["From"] = f"{self._account.user}@example.test"
        message["To"] = "bob@example.test"
        message["Subject"] = self._subject
        message["Date"] = formatdate()
        message.set_content("This came in by SMTP and goes out by IMAP and POP3.\n")
        place = self._places["smtp"]
        with smtplib.SMTP(place.host, place.port, timeout=TIMEOUT) as client:
            client.ehlo()
            if place.offers_starttls:
                client.starttls(context=self._context)
                client.ehlo()
            client.login(self._account.user, self._account.password)
            client.send_message(message)
        return "logged in and sent a message"

    def _fetch(self) -> str:
        place = self._places["imap"]
        client = imaplib.IMAP4(place.host, place.port, timeout=TIMEOUT)
        if place.offers_starttls:
            client.starttls(self._context)
        client.login(self._account.user, self._account.password)
        client.select()
        _, found = client.search(None, "SUBJECT", f'"{self._subject}"')
        if not found[0]:
            raise LookupError("the message that was sent is not in the mailbox")
        _, fetched = client.fetch(found[0].split()[-1].decode(), "(BODY.PEEK[])")
        content = fetched[0][1] if isinstance(fetched[0], tuple) else b""
        client.logout()
        if self._subject.encode() not in content:
            raise LookupError("the message that was fetched is another one")
        return f"logged in and fetched that message, {len(content)} bytes"

    def _retrieve(self) -> str:
        place = self._places["pop3"]
        client = poplib.POP3(place.host, place.port, timeout=TIMEOUT)
        if place.offers_starttls:
            client.stls(self._context)
        client.user(self._account.user)
        client.pass_(self._account.password)
        count, _ = client.stat()
        _, lines, size = client.retr(count)
        client.quit()
        if f"Subject: {self._subject}".encode() not in lines:
            raise LookupError("the message that was retrieved is another one")
        return f"logged in and retrieved it, {size} bytes"

    def _count(self) -> str:
        with urlopen(f"{self._admin}/metrics", timeout=TIMEOUT) as answer:  # noqa: S310  an URL of our own
            text = answer.read(4_000_000).decode()
        counted = successes(text)
        missing = [name for name in self._places if counted.get(name, 0) < 1]
        if missing:
            raise LookupError(f"no successful login counted for {', '.join(missing)}")
        return "logins counted: " + ", ".join(f"{name} {counted[name]:.0f}" for name in self._places)


def successes(metrics: str) -> dict[str, float]:
    """Sum up successful logins by protocol from Prometheus text."""
    counted: dict[str, float] = {}
    for found in _LOGINS.finditer(metrics):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found["labels"]))
        if labels.get("result") == "success":
            protocol = labels.get("protocol", "")
            counted[protocol] = counted.get(protocol, 0.0) + float(found["value"])
    return counted


def _tried(name: str, go: Callable[[], str]) -> Step:
    begun = time.perf_counter()
    try:
        told, problem = go(), ""
    except (OSError, LookupError, smtplib.SMTPException, imaplib.IMAP4.error, poplib.error_proto) as error:
        told, problem = "", f"{type(error).__name__}: {error}"
    return Step(name, told, (time.perf_counter() - begun) * 1000, problem)

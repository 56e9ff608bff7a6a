# SPDX-License-Identifier: Apache-2.0
"""Logs in once through the proxy with each protocol, with the mail clients of the standard library."""

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

from mailproxy_demo.auth_http_service import Account

TIMEOUT = 10
_LOGINS = re.compile(r"^mailproxy_logins_total\{(?P<labels>[^}]*)\} (?P<value>\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the check.

    Attributes:
        name: A protocol, or ``metrics``.
        result: What was done; empty when it failed.
        error: Why it failed; empty when it did not.
    """

    name: str
    result: str
    milliseconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listener of the proxy.

    Attributes:
        has_starttls: Whether it offers STARTTLS; the client then uses it.
    """

    host: str
    port: int
    has_starttls: bool


class LoginCheck:
    """Sends a message by SMTP, and reads it by IMAP and POP3.

    Args:
        account: The user who logs in.
        endpoints: A listener of each protocol.
        certificate: The certificate to trust, PEM.
        admin: Base URL of the proxy's admin endpoint.
    """

    def __init__(
        self, account: Account, endpoints: Mapping[str, Endpoint], certificate: bytes, admin: str
    ) -> None:
        self._account = account
        self._endpoints = endpoints
        self._admin = admin
        self._context = ssl.create_default_context(cadata=certificate.decode())
        self._subject = f"Hello through the proxy {time.time_ns():x}"

    def run(self) -> list[Step]:
        """Log in with each protocol, and read the metrics.  Blocks: run it in a thread."""
        checks = {"smtp": self._send, "imap": self._fetch, "pop3": self._retrieve}
        steps = [_run_step(name.upper(), check) for name, check in checks.items() if name in self._endpoints]
        return [*steps, _run_step("metrics", self._count_logins)]

    def _send(self) -> str:
        message = EmailMessage()
        message["From"] = f"{self._account.user}@example.test"
        message["To"] = "bob@example.test"
        message["Subject"] = self._subject
        message["Date"] = formatdate()
        message.set_content("Sent by SMTP, read by IMAP and POP3.\n")
        endpoint = self._endpoints["smtp"]
        with smtplib.SMTP(endpoint.host, endpoint.port, timeout=TIMEOUT) as client:
            client.ehlo()
            if endpoint.has_starttls:
                client.starttls(context=self._context)
                client.ehlo()
            client.login(self._account.user, self._account.password)
            client.send_message(message)
        return "logged in and sent a message"

    def _fetch(self) -> str:
        endpoint = self._endpoints["imap"]
        client = imaplib.IMAP4(endpoint.host, endpoint.port, timeout=TIMEOUT)
        if endpoint.has_starttls:
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
            raise LookupError("another message was fetched")
        return f"logged in and fetched that message, {len(content)} bytes"

    def _retrieve(self) -> str:
        endpoint = self._endpoints["pop3"]
        client = poplib.POP3(endpoint.host, endpoint.port, timeout=TIMEOUT)
        if endpoint.has_starttls:
            client.stls(self._context)
        client.user(self._account.user)
        client.pass_(self._account.password)
        count, _ = client.stat()
        _, lines, size = client.retr(count)
        client.quit()
        if f"Subject: {self._subject}".encode() not in lines:
            raise LookupError("another message was retrieved")
        return f"logged in and retrieved it, {size} bytes"

    def _count_logins(self) -> str:
        with urlopen(f"{self._admin}/metrics", timeout=TIMEOUT) as response:  # noqa: S310  an URL of our own
            text = response.read(4_000_000).decode()
        counted = successful_logins(text)
        missing = [name for name in self._endpoints if counted.get(name, 0) < 1]
        if missing:
            raise LookupError(f"no successful login counted for {', '.join(missing)}")
        return "logins counted: " + ", ".join(f"{name} {counted[name]:.0f}" for name in self._endpoints)


def successful_logins(metrics: str) -> dict[str, float]:
    """Return the number of successful logins by protocol, from metrics in Prometheus' text format."""
    counted: dict[str, float] = {}
    for found in _LOGINS.finditer(metrics):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', found["labels"]))
        if labels.get("result") == "success":
            protocol = labels.get("protocol", "")
            counted[protocol] = counted.get(protocol, 0.0) + float(found["value"])
    return counted


def _run_step(name: str, check: Callable[[], str]) -> Step:
    started = time.perf_counter()
    try:
        result, message = check(), ""
    except (OSError, LookupError, smtplib.SMTPException, imaplib.IMAP4.error, poplib.error_proto) as error:
        result, message = "", f"{type(error).__name__}: {error}"
    return Step(name, result, (time.perf_counter() - started) * 1000, message)

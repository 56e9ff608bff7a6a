# SPDX-License-Identifier: Apache-2.0
"""The traffic of clients: all login methods, all failures, some attacks."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from support.demo_servers import ACCOUNT
from support.prometheus_world.places import Places
from support.servers.clients import RawClient

HOST: Final = "127.0.0.1"
_SECONDS: Final = 10.0
_MESSAGE: Final = b"Subject: a message\r\n\r\n" + b"text " * 400 + b"\r\n"

Ports = dict[str, int]
Visit = Callable[[Places, Ports], None]


def _user(places: Places) -> tuple[str, str]:
    return ACCOUNT.user, ACCOUNT.password


def read_mail(places: Places, ports: Ports) -> None:
    """Use IMAP, with and without TLS."""
    for client in (
        imaplib.IMAP4(HOST, ports["imap"], timeout=_SECONDS),
        imaplib.IMAP4_SSL(HOST, ports["imaps"], ssl_context=places.tls.client(), timeout=_SECONDS),
    ):
        if not isinstance(client, imaplib.IMAP4_SSL):
            client.starttls(places.tls.client())
        client.login(*_user(places))
        client.select("INBOX")
        client.fetch("1:*", "(BODY.PEEK[])")
        client.logout()


def wait_for_mail(places: Places, ports: Ports) -> None:
    """Use IMAP over TLS for some time."""
    context = places.tls.client()
    with imaplib.IMAP4_SSL(HOST, ports["imaps"], ssl_context=context, timeout=_SECONDS) as client:
        client.login(*_user(places))
        client.select("INBOX")
        for _ in range(5):
            time.sleep(1.0)
            client.noop()


def prove_by_digest(places: Places, ports: Ports) -> None:
    """Log in with CRAM-MD5 and APOP."""
    with imaplib.IMAP4(HOST, ports["imap"], timeout=_SECONDS) as client:
        client.login_cram_md5(*_user(places))
    pop3 = poplib.POP3(HOST, ports["pop3"], timeout=_SECONDS)
    pop3.apop(*_user(places))
    pop3.quit()


def fetch_mail(places: Places, ports: Ports) -> None:
    """Use POP3 over TLS."""
    client = poplib.POP3_SSL(HOST, ports["pop3s"], context=places.tls.client(), timeout=_SECONDS)
    user, password = _user(places)
    client.user(user)
    client.pass_(password)
    if client.stat()[0]:
        client.retr(1)
    client.quit()


def send_mail(places: Places, ports: Ports) -> None:
    """Use SMTP with STARTTLS; the proxy looks up the client's name."""
    with smtplib.SMTP(HOST, ports["smtp"], timeout=_SECONDS) as client:
        client.starttls(context=places.tls.client())
        client.login(*_user(places))
        client.sendmail("alice@example.com", ["alice@example.com"], _MESSAGE)


def guess_passwords(places: Places, ports: Ports) -> None:
    """Send wrong passwords, with and without ``Auth-Wait`` in the auth response."""
    with RawClient(ports["imap"]) as raw:
        raw.read_line()
        raw.send(b"a LOGIN alice wrong\r\n")
        raw.read_line()
    with RawClient(ports["dead"]) as raw:
        raw.read_line()
        raw.send(b"a LOGIN alice wrong\r\n")
        raw.read_line()


def meet_broken_neighbours(places: Places, ports: Ports) -> None:
    """A slow and a missing authentication service, a missing upstream, and silent DNS servers."""
    password = ACCOUNT.password.encode()
    for name, words in (
        ("slow", b"a LOGIN alice " + password),
        ("dead", b"a LOGIN alice " + password),
        ("lost", b"USER alice\r\nPASS " + password),
    ):
        with RawClient(ports[name]) as raw:
            raw.read_line()
            raw.send(words + b"\r\n")
            with suppress(AssertionError, OSError):
                raw.read_line()
                raw.read_line()
    with RawClient(ports["nameless"]) as raw:
        raw.read_line()


def break_the_protocol(_: Places, ports: Ports) -> None:
    """Send invalid commands, long lines, HTTP requests, and invalid credentials."""
    for name, words in (
        ("imap", b"a EAT\r\n" * 7),
        ("pop3", b"USER " + b"x" * 600 + b"\r\n"),
        ("smtp", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("imap", b"a AUTHENTICATE PLAIN !!!!\r\n"),
        ("smtp", b"EHLO x\r\nAUTH PLAIN " + b64encode(b"alice") + b"\r\n"),
    ):
        with RawClient(ports[name]) as raw:
            raw.read_line()
            raw.send(words)
            with suppress(AssertionError, OSError):
                raw.read_line()


def fail_at_tls(_: Places, ports: Ports) -> None:
    """Send plain text to a TLS port, and a handshake with disabled TLS versions."""
    with socket.create_connection((HOST, ports["imaps"]), timeout=_SECONDS) as sock:
        sock.sendall(b"a LOGIN alice secret\r\n")
        with suppress(OSError):
            sock.recv(100)


def resume_tls(places: Places, ports: Ports) -> None:
    """Connect twice as the same client."""
    context = places.tls.client()
    session: ssl.SSLSession | None = None
    for _ in range(2):
        with (
            socket.create_connection((HOST, ports["imaps"]), timeout=_SECONDS) as sock,
            context.wrap_socket(sock, session=session) as client,
        ):
            client.recv(200)
            session = client.session


def use_tls_to_the_mail_server(places: Places, ports: Ports) -> None:
    """Log in at a mail server with TLS, with and without resumption of sessions."""
    del places
    for name in ("secured", "unresumed"):
        with RawClient(ports[name]) as raw:
            raw.read_line()
            raw.exchange(b"a LOGIN alice " + ACCOUNT.password.encode())


def log_in_at_a_member(places: Places, ports: Ports) -> None:
    """Log in at the mail server of a Service."""
    del places
    with RawClient(ports["members"]) as raw:
        raw.read_line()
        raw.exchange(b"a LOGIN alice " + ACCOUNT.password.encode())


def come_through_a_balancer(places: Places, ports: Ports) -> None:
    """Connect with a PROXY header, and without."""
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 143\r\n"
    with RawClient(ports["balanced"], preface=header) as raw:
        raw.read_line()
        raw.exchange(b"a LOGIN alice " + ACCOUNT.password.encode())
    with RawClient(ports["balanced"], preface=b"a NOOP\r\n") as raw, suppress(AssertionError, OSError):
        raw.read_line()


VISITS: Final[Sequence[Visit]] = (
    read_mail,
    wait_for_mail,
    wait_for_mail,
    wait_for_mail,
    prove_by_digest,
    fetch_mail,
    send_mail,
    guess_passwords,
    meet_broken_neighbours,
    break_the_protocol,
    fail_at_tls,
    resume_tls,
    use_tls_to_the_mail_server,
    log_in_at_a_member,
    come_through_a_balancer,
)


@contextmanager
def traffic(
    places: Places, rhythm: Callable[[Visit, float], float] = lambda *_: 0.2
) -> Iterator[list[BaseException]]:
    """Run clients until the context ends.

    Args:
        places: The servers.
        rhythm: Seconds until the next visit of a kind, by the kind and by the seconds so far.

    Yields:
        The errors of clients that are expected to succeed.
    """
    stop, faults, begun = threading.Event(), list[BaseException](), time.monotonic()

    def repeat(visit: Visit, ports: Ports) -> None:
        while not stop.wait(rhythm(visit, time.monotonic() - begun)):
            try:
                visit(places, ports)
            except Exception as fault:
                faults.append(fault)

    threads = [
        threading.Thread(target=repeat, args=(visit, ports)) for visit in VISITS for ports in places.ports
    ]
    for thread in threads:
        thread.start()
    try:
        yield faults
    finally:
        stop.set()
        for thread in threads:
            thread.join(4 * _SECONDS)

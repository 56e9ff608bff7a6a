"""The standard library's mail clients, and a raw one, connected to a proxy's listeners."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from support.servers.certificates import Certificates
from support.servers.front import Front
from support.servers.programs import PATIENCE

HOST = "127.0.0.1"


@contextmanager
def imap(front: Front, tls: Certificates, way: str = "plain", name: str = "imap") -> Iterator[imaplib.IMAP4]:
    """Connect to a listener: ``plain``, with ``starttls``, or its neighbour for ``implicit`` TLS."""
    if way == "implicit":
        client: imaplib.IMAP4 = imaplib.IMAP4_SSL(
            HOST, front.ports["imaps"], ssl_context=tls.client(), timeout=PATIENCE
        )
    else:
        client = imaplib.IMAP4(HOST, front.ports[name], timeout=PATIENCE)
    try:
        if way == "starttls":
            client.starttls(tls.client())
        yield client
    finally:
        with suppress(OSError):  # it has been closed already by a LOGOUT
            client.shutdown()


@contextmanager
def pop3(front: Front, tls: Certificates, way: str = "plain", name: str = "pop3") -> Iterator[poplib.POP3]:
    """Connect to a listener; see ``imap``."""
    if way == "implicit":
        client: poplib.POP3 = poplib.POP3_SSL(
            HOST, front.ports["pop3s"], context=tls.client(), timeout=PATIENCE
        )
    else:
        client = poplib.POP3(HOST, front.ports[name], timeout=PATIENCE)
    try:
        if way == "starttls":
            client.stls(tls.client())
        yield client
    finally:
        client.close()


@contextmanager
def smtp(front: Front, tls: Certificates, way: str = "plain", name: str = "smtp") -> Iterator[smtplib.SMTP]:
    """Connect to a listener; see ``imap``."""
    if way == "implicit":
        client: smtplib.SMTP = smtplib.SMTP_SSL(
            HOST, front.ports["smtps"], context=tls.client(), timeout=PATIENCE
        )
    else:
        client = smtplib.SMTP(HOST, front.ports[name], timeout=PATIENCE)
    try:
        if way == "starttls":
            client.starttls(context=tls.client())
        yield client
    finally:
        client.close()


class Raw:
    """A client that says exactly what a test tells it to, and reads lines."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=PATIENCE)
        if context is not None:
            self._socket = context.wrap_socket(self._socket, server_hostname="localhost")
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._socket.close()

    @property
    def port(self) -> int:
        """Its own port."""
        port: int = self._socket.getsockname()[1]
        return port

    def say(self, octets: bytes) -> None:
        """Send."""
        self._socket.sendall(octets)

    def line(self) -> bytes:
        """Read a line, and give it without its end."""
        line = self._file.readline()
        assert line.endswith(b"\r\n"), line
        return line[:-2]

    def ask(self, octets: bytes) -> bytes:
        """Send a line, and read one."""
        self.say(octets + b"\r\n")
        return self.line()

    def until(self, start: bytes) -> list[bytes]:
        """Read lines up to the one that starts so."""
        lines = [self.line()]
        while not lines[-1].startswith(start):
            lines.append(self.line())
        return lines

    def octets(self, count: int) -> bytes:
        """Read exactly so many octets."""
        return self._file.read(count)

    def rest(self) -> bytes:
        """Read up to the end of the connection."""
        return self._file.read()

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._socket.shutdown(socket.SHUT_WR)

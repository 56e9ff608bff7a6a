# SPDX-License-Identifier: Apache-2.0
"""The standard library's mail clients and a raw client, connected to a proxy's listeners."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from support.servers.certificates import Certificates
from support.servers.programs import TIMEOUT_SECONDS

HOST: Final = "127.0.0.1"


class Listeners(Protocol):
    """The listeners, by name."""

    @property
    def ports(self) -> dict[str, int]:
        """The port of each listener."""


@contextmanager
def imap(
    listeners: Listeners, tls: Certificates, tls_mode: str = "plain", name: str = "imap"
) -> Iterator[imaplib.IMAP4]:
    """Connect to a listener: plain, with ``starttls``, or with ``implicit`` TLS on its own listener."""
    if tls_mode == "implicit":
        client: imaplib.IMAP4 = imaplib.IMAP4_SSL(
            HOST, listeners.ports["imaps"], ssl_context=tls.client(), timeout=TIMEOUT_SECONDS
        )
    else:
        client = imaplib.IMAP4(HOST, listeners.ports[name], timeout=TIMEOUT_SECONDS)
    try:
        if tls_mode == "starttls":
            client.starttls(tls.client())
        yield client
    finally:
        with suppress(OSError):  # LOGOUT has already closed the connection
            client.shutdown()


@contextmanager
def pop3(
    listeners: Listeners, tls: Certificates, tls_mode: str = "plain", name: str = "pop3"
) -> Iterator[poplib.POP3]:
    """Connect to a listener; see ``imap``."""
    if tls_mode == "implicit":
        client: poplib.POP3 = poplib.POP3_SSL(
            HOST, listeners.ports["pop3s"], context=tls.client(), timeout=TIMEOUT_SECONDS
        )
    else:
        client = poplib.POP3(HOST, listeners.ports[name], timeout=TIMEOUT_SECONDS)
    try:
        if tls_mode == "starttls":
            client.stls(tls.client())
        yield client
    finally:
        client.close()


@contextmanager
def smtp(
    listeners: Listeners, tls: Certificates, tls_mode: str = "plain", name: str = "smtp"
) -> Iterator[smtplib.SMTP]:
    """Connect to a listener; see ``imap``."""
    if tls_mode == "implicit":
        client: smtplib.SMTP = smtplib.SMTP_SSL(
            HOST, listeners.ports["smtps"], context=tls.client(), timeout=TIMEOUT_SECONDS
        )
    else:
        client = smtplib.SMTP(HOST, listeners.ports[name], timeout=TIMEOUT_SECONDS)
    try:
        if tls_mode == "starttls":
            client.starttls(context=tls.client())
        yield client
    finally:
        client.close()


def _connected(where: int | Path, source: str) -> socket.socket:
    if isinstance(where, int):
        target = ("::1" if ":" in source else HOST, where)
        return socket.create_connection(target, TIMEOUT_SECONDS, source_address=(source, 0))
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT_SECONDS)
    sock.connect(str(where))
    return sock


class RawClient:
    """A client that sends given bytes and reads lines."""

    def __init__(
        self,
        where: int | Path,
        context: ssl.SSLContext | None = None,
        *,
        preface: bytes = b"",
        source: str = HOST,
    ) -> None:
        """Connect to a port or a UNIX socket.

        Args:
            where: The port or the socket.
            context: For TLS.
            preface: Sent before TLS.
            source: The client's own address on loopback; the port's is of the same family.
        """
        self._socket = _connected(where, source)
        self._socket.sendall(preface)
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
        """The client's own port."""
        port: int = self._socket.getsockname()[1]
        return port

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(data)

    def read_line(self) -> bytes:
        """Read a line; return it without its line end."""
        line = self._file.readline()
        assert line.endswith(b"\r\n"), line
        return line[:-2]

    def exchange(self, data: bytes) -> bytes:
        """Send a line, and read one line."""
        self.send(data + b"\r\n")
        return self.read_line()

    def read_until(self, start: bytes) -> list[bytes]:
        """Read lines up to the first one with this prefix."""
        lines = [self.read_line()]
        while not lines[-1].startswith(start):
            lines.append(self.read_line())
        return lines

    def read_bytes(self, count: int) -> bytes:
        """Read exactly ``count`` bytes."""
        return self._file.read(count)

    def read_to_eof(self) -> bytes:
        """Read until the end of the connection."""
        return self._file.read()

    def reset(self) -> None:
        """Reset the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._socket.close()

    def send_eof(self) -> None:
        """Shut down the sending direction."""
        self._socket.shutdown(socket.SHUT_WR)

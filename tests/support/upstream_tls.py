# SPDX-License-Identifier: Apache-2.0
"""Mail servers with TLS, in threads, that record what they receive in clear and inside of TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from mailproxy_config.model import Protocol, ProxySsl
from support.tls_authority import Issued

SECONDS: Final = 30.0


@dataclass
class Connection:
    """One connection of a mail server, in clear until ``start_tls``.

    Attributes:
        clear: Bytes received in clear.
        secure: Bytes received inside of TLS.
    """

    sock: socket.socket
    context: ssl.SSLContext
    clear: bytearray = field(default_factory=bytearray)
    secure: bytearray = field(default_factory=bytearray)

    def start_tls(self) -> None:
        """Perform the handshake."""
        self.sock = self.context.wrap_socket(self.sock, server_side=True)

    @property
    def is_secure(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def recv(self, count: int = 65536) -> bytes:
        """Receive bytes, and record them."""
        data = self.sock.recv(count)
        (self.secure if self.is_secure else self.clear).extend(data)
        return data

    def read_line(self) -> bytes:
        """Receive a line, without its end."""
        line = b""
        while not line.endswith(b"\r\n"):
            data = self.recv(1)
            if not data:
                raise ConnectionError
            line += data
        return line[:-2]

    def answer(self, reply: bytes) -> bytes:
        """Receive a line, and reply."""
        line = self.read_line()
        self.send(reply)
        return line


Step = Callable[[Connection], None]
"""What a server does in one part of a session."""


def nothing(_: Connection) -> None:
    """Do nothing."""


# --- greeting and STARTTLS, by protocol -------------------------------------------------------------

GREETINGS: Final = {
    Protocol.IMAP: b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready\r\n",
    Protocol.POP3: b"+OK ready\r\n",
    Protocol.SMTP: b"220 mail.example ESMTP\r\n",
}
GO_AHEAD: Final = {
    Protocol.IMAP: b"x1 OK begin TLS\r\n",
    Protocol.POP3: b"+OK begin TLS\r\n",
    Protocol.SMTP: b"220 2.0.0 begin TLS\r\n",
}


def offer_tls(protocol: Protocol, *, greeting: bytes = b"", go_ahead: bytes = b"") -> Step:
    """Greet, and reply to STARTTLS."""

    def step(c: Connection) -> None:
        c.send(greeting or GREETINGS[protocol])
        if protocol is Protocol.SMTP:
            c.answer(b"250-mail.example\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
        c.answer(go_ahead or GO_AHEAD[protocol])

    return step


def accept_login(protocol: Protocol) -> Step:
    """Accept a login with any password."""

    def step(c: Connection) -> None:
        if protocol is Protocol.IMAP:
            tag = c.answer(b"+ ok\r\n").split()[0]
            c.answer(b"+ ok\r\n")
            c.answer(tag + b" OK logged in\r\n")
        elif protocol is Protocol.POP3:
            c.answer(b"+OK\r\n")
            c.answer(b"+OK logged in\r\n")
        else:
            c.answer(b"250-mail.example\r\n250 AUTH PLAIN\r\n")
            c.answer(b"235 2.7.0 logged in\r\n")

    return step


def session(protocol: Protocol, mode: ProxySsl, then: Step = nothing) -> Step:
    """A whole session: TLS, greeting, login, and what comes then."""

    def step(c: Connection) -> None:
        if mode is ProxySsl.STARTTLS:
            offer_tls(protocol)(c)
        c.start_tls()
        if mode is ProxySsl.ENABLED:
            c.send(GREETINGS[protocol].replace(b" STARTTLS LOGINDISABLED", b""))
        accept_login(protocol)(c)
        then(c)

    return step


@dataclass
class MailServer:
    """A mail server on loopback.

    Attributes:
        names: The names of SNI, ``None`` for a handshake without.
    """

    step: Step
    context: ssl.SSLContext
    connections: list[Connection] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    port: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def received(self) -> bytes:
        """Return all bytes that were received, in clear and inside of TLS."""
        return b"".join(bytes(c.clear + c.secure) for c in self.connections)

    def received_in_clear(self) -> bytes:
        """Return all bytes that were received in clear."""
        return b"".join(bytes(c.clear) for c in self.connections)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(SECONDS)
        connection = Connection(sock, self.context)
        self.connections.append(connection)
        try:
            self.step(connection)
        except (OSError, ConnectionError):
            pass  # the proxy has left, which the test expects or sees by other means
        except BaseException as error:
            self.failures.append(error)
        finally:
            with contextlib.suppress(OSError):
                connection.sock.close()


def server_context(issued: Issued, chain: str | None = None) -> ssl.SSLContext:
    """Return the context of a mail server with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.files.certificate, issued.files.key)
    if chain is not None:
        context.load_verify_locations(chain)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def mail_server(step: Step, context: ssl.SSLContext) -> Iterator[MailServer]:
    """Run a mail server, one thread per connection."""
    server = MailServer(step, context)

    def on_name(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        server.names.append(name)

    context.sni_callback = on_name
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)
    server.port = listening.getsockname()[1]
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def accept() -> None:
        while not ended.is_set():
            try:
                sock, _ = listening.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=server._serve, args=(sock,))
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        ended.set()
        acceptor.join()
        listening.close()
        for connection in server.connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(SECONDS)
    assert server.failures == []

# SPDX-License-Identifier: Apache-2.0
"""The client side of TLS with OpenSSL."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Final

RECORD: Final = 16384


class Tls:
    """The client side of TLS, in memory.

    OpenSSL reads a record in two calls and a flight of the handshake in about a
    dozen.  From memory these need no system calls; the flight is one ``recv``.
    """

    __slots__ = ("_object", "incoming", "is_secure", "outgoing", "sock")

    def __init__(
        self, sock: socket.SocketType, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> None:
        self.sock = sock
        self.is_secure = False
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self.incoming, self.outgoing, server_hostname="mail.example.com", session=session
        )

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes that were received."""
        self.incoming.write(data)

    def handshake(self) -> bool:
        """Continue the handshake; returns whether it is complete."""
        with suppress(ssl.SSLWantReadError):
            self._object.do_handshake()
            self.is_secure = True
        if flight := self.outgoing.read():
            self.sock.send(flight)
        return self.is_secure

    def read(self) -> bytes:
        """Decrypt the complete records that were received."""
        data, incoming = b"", self.incoming
        with suppress(ssl.SSLWantReadError):
            while incoming.pending:
                data += self._object.read(RECORD)
        return data

    def read_into(self, buffer: bytearray) -> int:
        """Do the same, but return only the number of bytes."""
        count, incoming = 0, self.incoming
        with suppress(ssl.SSLWantReadError):
            while incoming.pending:
                count += self._object.read(RECORD, buffer)  # type: ignore[operator]
        return count

    def encrypt(self, data: bytes) -> bytes:
        """Encrypt."""
        self._object.write(data)
        return self.outgoing.read()

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session that later handshakes may resume.

        All handshakes resume the same session, because Python serializes and
        parses a session, with its certificate, at each access to this attribute.
        """
        return self._object.session

# SPDX-License-Identifier: Apache-2.0
"""Mail servers that accept every login and record what they receive, in threads of this process."""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from collections.abc import Iterator
from typing import Final

_GREETING: Final = {
    "imap": b"* OK ready\r\n",
    "pop3": b"+OK ready\r\n",
    "smtp": b"220 mail.example.org ready\r\n",
}
_LITERAL: Final = re.compile(rb"\{\d+\}\r\n$")


class TinyMail(socketserver.ThreadingTCPServer):
    """A mail server for one protocol; ``lines`` holds what all clients sent, without line ends."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, protocol: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.protocol = protocol
        self.lines: list[str] = []
        self.port: int = self.server_address[1]


class _Handler(socketserver.StreamRequestHandler):
    server: TinyMail

    def handle(self) -> None:
        reply = getattr(self, f"_{self.server.protocol}")
        self._tag = b""
        with contextlib.suppress(OSError):
            self.wfile.write(_GREETING[self.server.protocol])
            for line in self.rfile:
                self.server.lines.append(line.decode("latin-1").rstrip("\r\n"))
                self.wfile.write(reply(line))

    def _imap(self, line: bytes) -> bytes:
        self._tag = self._tag or line.split(b" ")[0]
        if _LITERAL.search(line):
            return b"+ go on\r\n"
        tag, self._tag = self._tag, b""
        return tag + b" OK completed\r\n"

    def _pop3(self, line: bytes) -> bytes:
        return b"+OK\r\n"

    def _smtp(self, line: bytes) -> bytes:
        command = line.split()[0].upper()
        return {b"XCLIENT": b"220 ready\r\n", b"AUTH": b"235 2.7.0 accepted\r\n"}.get(
            command, b"250 2.0.0 OK\r\n"
        )


@contextlib.contextmanager
def tiny_mail(protocol: str) -> Iterator[TinyMail]:
    """Serve ``imap``, ``pop3`` or ``smtp`` on a port of 127.0.0.1."""
    with TinyMail(protocol) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

# SPDX-License-Identifier: Apache-2.0
"""Logins through a whole proxy, and a mail server that accepts them; files that change under load."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def imap_server(logins: list[str], name: str, *, text: str = "logged in") -> Iterator[int]:
    """A mail server that accepts every login with a text, and appends its name to a list."""

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.sendall(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
            data = b""
            while data.count(b"\r\n") < 3:
                data += sock.recv(4096)
            logins.append(name)
            sock.sendall(f"a OK {text}\r\n".encode())
            sock.recv(1)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def log_in(port: int, user: str = "bob@example.org") -> str:
    """Log in, and return the reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.recv(4096)
        sock.sendall(f"a LOGIN {user} secret\r\n".encode())
        return sock.recv(4096).decode().strip()


class Load:
    """Clients that log in until the end of the block."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self.replies: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.005):
            self.replies.append(log_in(self._port))


def replace(file: Path, text: str) -> None:
    """Replace a file by renaming a complete one, as Kubernetes replaces Secrets and ConfigMaps."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)

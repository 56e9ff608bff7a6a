# SPDX-License-Identifier: Apache-2.0
"""Mail clients that connect from an address of their own, so that logs show whether it arrived."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from support.servers.programs import TIMEOUT_SECONDS

CLIENT: Final = "127.0.0.42"
"""The address of the clients."""

PROXY: Final = "127.0.0.1"
"""The address of the proxy, towards clients and towards mail servers."""


def connect(port: int, timeout: float | None = TIMEOUT_SECONDS) -> socket.socket:
    """Connect to the proxy from the address ``CLIENT``."""
    return socket.create_connection((PROXY, port), timeout=timeout, source_address=(CLIENT, 0))


class Imap(imaplib.IMAP4):
    """An IMAP client at the address ``CLIENT``."""

    def __init__(self, port: int) -> None:
        super().__init__(PROXY, port, timeout=TIMEOUT_SECONDS)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return connect(self.port, timeout)


class ImapTls(imaplib.IMAP4_SSL):
    """An IMAP client with implicit TLS at the address ``CLIENT``."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(PROXY, port, ssl_context=context, timeout=TIMEOUT_SECONDS)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return self._context.wrap_socket(connect(self.port, timeout))


class Pop3(poplib.POP3):
    """A POP3 client at the address ``CLIENT``."""

    def __init__(self, port: int) -> None:
        super().__init__(PROXY, port, timeout=TIMEOUT_SECONDS)

    def _create_socket(self, timeout: float) -> socket.socket:
        return connect(self.port, timeout)


def smtp(port: int, context: ssl.SSLContext | None = None) -> smtplib.SMTP:
    """Return an SMTP client at the address ``CLIENT``; with a context, after STARTTLS."""
    client = smtplib.SMTP(
        PROXY, port, "client.example.net", timeout=TIMEOUT_SECONDS, source_address=(CLIENT, 0)
    )
    if context is not None:
        client.starttls(context=context)
    client.ehlo()
    return client


def imap_login(port: int, context: ssl.SSLContext, user: str, password: str) -> None:
    """Log in by IMAP with STARTTLS, open the inbox, log out."""
    with _closing(Imap(port)) as client:
        client.starttls(context)
        _use(client, user, password)


def imap_login_without_tls(port: int, user: str, password: str) -> None:
    """Log in by IMAP without TLS, open the inbox, log out."""
    with _closing(Imap(port)) as client:
        _use(client, user, password)


def imaps_login(port: int, context: ssl.SSLContext, user: str, password: str) -> None:
    """Log in by IMAP with implicit TLS, open the inbox, log out."""
    with _closing(ImapTls(port, context)) as client:
        _use(client, user, password)


@contextmanager
def _closing(client: imaplib.IMAP4) -> Iterator[imaplib.IMAP4]:
    try:
        yield client
    finally:
        with suppress(OSError):  # LOGOUT has already closed the connection
            client.shutdown()


def _use(client: imaplib.IMAP4, user: str, password: str) -> None:
    assert client.login(user, password)[0] == "OK"
    assert client.select()[0] == "OK"
    client.logout()


def pop3_login(port: int, context: ssl.SSLContext, user: str, password: str) -> None:
    """Log in by POP3 with STLS, and quit."""
    client = Pop3(port)
    try:
        client.stls(context)
        client.user(user)
        assert client.pass_(password).startswith(b"+OK")
        client.quit()
    finally:
        client.close()


class Pop3Tls(poplib.POP3):
    """A POP3 client with implicit TLS at the address ``CLIENT``."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(PROXY, port, timeout=TIMEOUT_SECONDS)

    def _create_socket(self, timeout: float) -> socket.socket:
        return self._context.wrap_socket(connect(self.port, timeout))


class SmtpTls(smtplib.SMTP_SSL):
    """An SMTP client with implicit TLS at the address ``CLIENT``."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        source = (CLIENT, 0)
        super().__init__(
            PROXY, port, "client.example.net", timeout=TIMEOUT_SECONDS, context=context, source_address=source
        )


def pop3s_login(port: int, context: ssl.SSLContext, user: str, password: str) -> None:
    """Log in by POP3 with implicit TLS, and quit."""
    client = Pop3Tls(port, context)
    try:
        client.user(user)
        assert client.pass_(password).startswith(b"+OK")
        client.quit()
    finally:
        client.close()


def smtp_login(port: int, context: ssl.SSLContext, user: str, password: str) -> None:
    """Log in by SMTP with STARTTLS, and quit."""
    with smtp(port, context) as client:
        assert client.login(user, password)[0] == 235


Login = Callable[[int, ssl.SSLContext, str, str], None]

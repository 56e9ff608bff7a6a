# SPDX-License-Identifier: Apache-2.0
"""The replies to SMTP clients (RFC 5321, RFC 2034, RFC 4954)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mailproxy.protocols.types import AuthDenied
from mailproxy_config.model import AuthMethod, ServerConfig, StartTls

OK: Final = b"250 2.0.0 OK\r\n"
BYE: Final = b"221 2.0.0 Bye\r\n"
START_TLS: Final = b"220 2.0.0 Start TLS\r\n"
AUTHENTICATED: Final = b"235 2.0.0 OK\r\n"
INVALID: Final = b"500 5.5.1 Invalid command\r\n"
INVALID_ARGUMENT: Final = b"501 5.5.4 Invalid argument\r\n"
BAD_SEQUENCE: Final = b"503 5.5.1 Bad sequence of commands\r\n"
AUTH_DISABLED: Final = b"502 5.5.1 Authentication not enabled\r\n"
BDAT_REFUSED: Final = b"530 5.7.0 Authentication required\r\n"
BDAT_CLOSES: Final = b"421 4.7.0 BDAT without authentication, closing connection\r\n"
"""Behind ``BDAT_REFUSED``: the chunk must not be read as commands."""
EARLY_TALKER: Final = b"503 5.5.0 Improper use of SMTP command pipelining\r\n"
AUTH_REQUIRED: Final = b"530 5.7.1 Authentication required\r\n"
TLS_REQUIRED: Final = b"530 5.7.0 Must issue a STARTTLS command first\r\n"
TEMPORARY_FAILURE: Final = b"454 4.7.0 Temporary authentication failure\r\n"
REFUSED: Final = b"535 5.7.8 Authentication failed.\r\n"
"""The upstream refused the credentials."""
UNAVAILABLE: Final = b"451 4.3.0 Mail server is temporarily unavailable\r\n"
"""To RCPT, and to DATA after it: no recipient was accepted, and none was refused for good."""
INTERNAL_ERROR: Final = b"451 4.3.2 Internal server error\r\n"
CERTIFICATE_INVALID: Final = b"421 4.7.1 SSL certificate error\r\n"
CERTIFICATE_MISSING: Final = b"421 4.7.1 No required SSL certificate\r\n"
SHUTDOWN: Final = b"421 4.3.2 Service shutting down, try again later\r\n"
BUSY: Final = b"421 4.3.2 Too many connections, try again later\r\n"

_DENIED: Final = b"535 5.7.0"
_MECHANISMS: Final = (
    (AuthMethod.PLAIN, "PLAIN"),
    (AuthMethod.LOGIN, "LOGIN"),
    (AuthMethod.CRAM_MD5, "CRAM-MD5"),
    (AuthMethod.EXTERNAL, "EXTERNAL"),
    (AuthMethod.XOAUTH2, "XOAUTH2"),
    (AuthMethod.OAUTHBEARER, "OAUTHBEARER"),
)
"""In the order of the reply, whatever the directive's."""


def greeting(server: ServerConfig) -> bytes:
    """Return the greeting."""
    return f"220 {server.server_name} ESMTP ready\r\n".encode()


def hello(server: ServerConfig) -> bytes:
    """Return the reply to HELO."""
    return f"250 {server.server_name}\r\n".encode()


def denial(denied: AuthDenied) -> bytes:
    """Return the reply to a denied login, with text and perhaps code of the authentication service."""
    return (denied.code or _DENIED) + b" " + denied.text + b"\r\n"


def capabilities(
    server: ServerConfig, starttls: StartTls = StartTls.DISABLED, more: Sequence[str] = ()
) -> bytes:
    """Return the reply to EHLO.

    Args:
        server: The server.
        starttls: The directive before TLS, ``DISABLED`` with TLS.  With ``ONLY`` there is no AUTH.
        more: Lines that only some clients get, after those of the directive.

    REQUIRETLS is a promise about TLS: it is not listed before.
    """
    lines = [server.server_name, *server.smtp_capabilities, *more]
    if starttls is not StartTls.DISABLED:
        lines = [line for line in lines if line.upper() != "REQUIRETLS"]
    mechanisms = [word for method, word in _MECHANISMS if method in server.smtp_auth]
    if mechanisms and starttls is not StartTls.ONLY and server.smtp_auth_command:
        lines.append(" ".join(("AUTH", *mechanisms)))
    if starttls is not StartTls.DISABLED:
        lines.append("STARTTLS")
    all_but_last = "".join(f"250-{line}\r\n" for line in lines[:-1])
    return f"{all_but_last}250 {lines[-1]}\r\n".encode()

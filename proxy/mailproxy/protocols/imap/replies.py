# SPDX-License-Identifier: Apache-2.0
"""The replies to IMAP clients."""

from __future__ import annotations

from typing import Final

from mailproxy_config.model import AuthMethod, ServerConfig, StartTls

GREETING: Final = b"* OK IMAP4 ready\r\n"
CONTINUE: Final = b"+ OK\r\n"
CHALLENGE_PREFIX: Final = b"+ "
BYE: Final = b"* BYE\r\n"
CERTIFICATE_INVALID: Final = b"* BYE SSL certificate error\r\n"
CERTIFICATE_MISSING: Final = b"* BYE No required SSL certificate\r\n"
INTERNAL_ERROR: Final = b"* BAD internal server error\r\n"
SHUTDOWN: Final = b"* BYE [UNAVAILABLE] server shutting down\r\n"
BUSY: Final = b"* BYE [UNAVAILABLE] too many connections\r\n"

_MECHANISMS: Final = (
    (AuthMethod.PLAIN, b" AUTH=PLAIN"),
    (AuthMethod.LOGIN, b" AUTH=LOGIN"),
    (AuthMethod.CRAM_MD5, b" AUTH=CRAM-MD5"),
    (AuthMethod.EXTERNAL, b" AUTH=EXTERNAL"),
)


def completed(tag: bytes) -> bytes:
    """Reply that a command succeeded."""
    return tag + b" OK completed\r\n"


def invalid(tag: bytes) -> bytes:
    """Reply that a command is unknown, malformed or not allowed now."""
    return tag + b" BAD invalid command\r\n"


def denied(tag: bytes, text: bytes) -> bytes:
    """Reply that the authentication service denied the login, with its text."""
    return b"%b NO %b\r\n" % (tag, text)


def outage(tag: bytes, code: bytes) -> bytes:
    """Reply that a login failed for a reason other than its credentials, with a code of RFC 5530."""
    return b"%b NO [%b] Account is temporarily unavailable.\r\n" % (tag, code)


def capabilities(server: ServerConfig, starttls: StartTls = StartTls.DISABLED) -> bytes:
    """Return the untagged CAPABILITY response; the order of mechanisms is fixed.

    Args:
        server: The server.
        starttls: The directive before TLS, ``DISABLED`` with TLS.  With ``ONLY`` there is no AUTH.
    """
    words = "".join(f" {word}" for word in server.imap_capabilities).encode()
    if starttls is StartTls.ONLY:
        return b"* CAPABILITY" + words + b" STARTTLS LOGINDISABLED\r\n"
    mechanisms = b"".join(word for method, word in _MECHANISMS if method in server.imap_auth)
    end = b"\r\n" if starttls is StartTls.DISABLED else b" STARTTLS\r\n"
    return b"* CAPABILITY" + words + mechanisms + end

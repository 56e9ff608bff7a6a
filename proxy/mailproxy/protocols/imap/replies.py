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
    (AuthMethod.XOAUTH2, b" AUTH=XOAUTH2"),
    (AuthMethod.OAUTHBEARER, b" AUTH=OAUTHBEARER"),
)
_TOKENS: Final = frozenset({AuthMethod.XOAUTH2, AuthMethod.OAUTHBEARER})


def completed(tag: bytes) -> bytes:
    """Reply that a command succeeded."""
    return tag + b" OK completed\r\n"


def invalid(tag: bytes) -> bytes:
    """Reply that a command is unknown, malformed or not allowed now."""
    return tag + b" BAD invalid command\r\n"


def id_completed(tag: bytes) -> bytes:
    """Reply to ID: nothing about the proxy."""
    return b"* ID NIL\r\n" + tag + b" OK ID completed.\r\n"


def trusted_id_completed(tag: bytes) -> bytes:
    """Reply to ID of a proxy, in Dovecot's words."""
    return b"* ID NIL\r\n" + tag + b" OK Trusted ID completed.\r\n"


def proxy_loop(tag: bytes) -> bytes:
    """Reply to ID of a proxy with an ``x-proxy-ttl`` that is used up."""
    return tag + b" NO [SERVERBUG] Proxy loop\r\n"


def enable_ignored(tag: bytes) -> bytes:
    """Reply to ENABLE before login: nothing is enabled."""
    return b"* ENABLED\r\n" + tag + b" OK ENABLE ignored in non-authenticated state.\r\n"


def denied(tag: bytes, text: bytes) -> bytes:
    """Reply that the authentication service denied the login, with its text."""
    return b"%b NO %b\r\n" % (tag, text)


def refused(tag: bytes, code: bytes, text: bytes) -> bytes:
    """Reply that the upstream refused the login, with a code of RFC 5530."""
    return b"%b NO [%b] %b\r\n" % (tag, code, text)


def outage(tag: bytes, code: bytes) -> bytes:
    """Reply that a login failed for a reason other than its credentials, with a code of RFC 5530."""
    return b"%b NO [%b] Account is temporarily unavailable.\r\n" % (tag, code)


def capabilities(server: ServerConfig, starttls: StartTls = StartTls.DISABLED) -> bytes:
    """Return the untagged CAPABILITY response; the order of mechanisms is fixed.

    Args:
        server: The server.
        starttls: The directive before TLS, ``DISABLED`` with TLS.  With ``ONLY`` there is no AUTH.
    """
    words = "".join(f" {word}" for word in _words(server)).encode()
    if starttls is StartTls.ONLY:
        return b"* CAPABILITY" + words + b" STARTTLS LOGINDISABLED\r\n"
    mechanisms = b"".join(word for method, word in _MECHANISMS if method in server.imap_auth)
    end = b"\r\n" if starttls is StartTls.DISABLED else b" STARTTLS\r\n"
    return b"* CAPABILITY" + words + mechanisms + end


def _words(server: ServerConfig) -> list[str]:
    """Return the configured capabilities, and those of what is turned on: ID, and SASL-IR with tokens."""
    words = list(server.imap_capabilities)
    listed = {word.upper() for word in words}
    if server.answers_id:
        words += [word for word in ("ID", "SASL-IR") if word not in listed]
    elif not _TOKENS.isdisjoint(server.imap_auth) and "SASL-IR" not in listed:
        words.append("SASL-IR")
    return words

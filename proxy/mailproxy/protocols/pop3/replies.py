# SPDX-License-Identifier: Apache-2.0
"""The replies to POP3 clients (RFC 1939, RFC 2449, RFC 5034)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mailproxy.protocols.types import AuthDenied
from mailproxy_config.model import AuthMethod, ServerConfig, StartTls, Tempfail

GREETING: Final = b"+OK POP3 ready\r\n"
OK: Final = b"+OK\r\n"
TRUSTED_GREETING: Final = b"+OK [XCLIENT] POP3 ready\r\n"
"""To clients that may send XCLIENT, as Dovecot greets them."""
PROXY_LOOP: Final = b"-ERR [SYS/PERM] Proxy loop\r\n"
INVALID: Final = b"-ERR invalid command\r\n"
INTERNAL_ERROR: Final = b"-ERR internal server error\r\n"
CERTIFICATE_INVALID: Final = b"-ERR SSL certificate error\r\n"
CERTIFICATE_MISSING: Final = b"-ERR No required SSL certificate\r\n"
OUTAGE: Final = b"-ERR [SYS/TEMP] Account is temporarily unavailable.\r\n"
"""A login failed for a reason other than its credentials (RFC 3206)."""
REFUSED: Final = b"-ERR [AUTH] Authentication failed.\r\n"
"""The upstream refused the credentials (RFC 3206)."""
SHUTDOWN: Final = b"-ERR server is shutting down, try again later\r\n"
BUSY: Final = b"-ERR too many connections, try again later\r\n"

_MECHANISMS: Final = (
    (AuthMethod.PLAIN, ("PLAIN", "LOGIN")),
    (AuthMethod.CRAM_MD5, ("CRAM-MD5",)),
    (AuthMethod.EXTERNAL, ("EXTERNAL",)),
    (AuthMethod.XOAUTH2, ("XOAUTH2",)),
    (AuthMethod.OAUTHBEARER, ("OAUTHBEARER",)),
)
"""In the order of the replies; LOGIN comes with ``plain``, and APOP is no SASL mechanism."""
_RESPONSE_CODES: Final = ("RESP-CODES", "AUTH-RESP-CODE")
"""Listed where replies have ``[SYS/TEMP]`` (RFC 2449 section 6.4, RFC 3206 section 6)."""


def greeting(challenge: bytes, text: bytes = GREETING) -> bytes:
    """Return the greeting with a challenge for APOP and CRAM-MD5 (RFC 1939 section 7)."""
    return text[:-2] + b" " + challenge + b"\r\n"


def denial(denied: AuthDenied) -> bytes:
    """Return the reply to a denied login, with the text of the authentication service."""
    return b"-ERR " + denied.text + b"\r\n"


def mechanisms(server: ServerConfig) -> bytes:
    """Return the reply to AUTH without an argument."""
    return _multi_line("+OK methods supported:", _sasl_mechanisms(server))


def capabilities(server: ServerConfig, starttls: StartTls = StartTls.DISABLED) -> bytes:
    """Return the reply to CAPA.

    Args:
        server: The server.
        starttls: The directive before TLS, ``DISABLED`` with TLS or after USER.  With ``ONLY`` the
            capabilities for logins, USER and SASL, are left out.
    """
    words = list(server.pop3_capabilities)
    if (
        server.proxy_tempfail is Tempfail.RFC5530
        or server.counts_failed_logins
        or server.auth_mode.needs_routes
    ):
        listed = {word.upper() for word in words}
        words += [word for word in _RESPONSE_CODES if word not in listed]
    elif server.limits_logins and "RESP-CODES" not in (word.upper() for word in words):
        words.append("RESP-CODES")
    if starttls is StartTls.ONLY:
        lines = [word for word in words if word.upper() != "USER"]
    else:
        lines = [*words, " ".join(("SASL", *_sasl_mechanisms(server)))]
    if starttls is not StartTls.DISABLED:
        lines.append("STLS")
    return _multi_line("+OK Capability list follows", lines)


def _sasl_mechanisms(server: ServerConfig) -> list[str]:
    return [word for method, words in _MECHANISMS if method in server.pop3_auth for word in words]


def _multi_line(first: str, lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in (first, *lines, ".")).encode()

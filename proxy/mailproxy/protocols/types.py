# SPDX-License-Identifier: Apache-2.0
"""What conversations are about: secrets, clients, requests, decisions, and how a conversation ends.

Plain values without behaviour.  They are mutable only where a session really
changes them, and small: one of each may live as long as a session does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mailproxy.enums import CloseReason, Method

UNAVAILABLE: Final = b"[UNAVAILABLE]"
"""The client's host name cannot be had: no name, no confirmation, or nobody to ask."""
TEMPUNAVAIL: Final = b"[TEMPUNAVAIL]"
"""The client's host name cannot be had now: name servers failed or timed out."""


class Secret:
    """Bytes that print as ``***`` everywhere, and are shown only to who asks by name."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def reveal(self) -> bytes:
        """Give the bytes themselves; for a peer that must have them, never for a log."""
        return self._data

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._data == self._data

    def __hash__(self) -> int:
        return hash(self._data)


@dataclass(slots=True)
class ClientCertificate:
    """A certificate that a client presented, as ``auth_http`` and PROXY v2 tell of it."""

    subject: bytes
    """RFC 2253 form, most specific first."""
    issuer: bytes
    serial: bytes
    """Upper-case hexadecimal."""
    fingerprint: bytes
    """SHA-1 over the DER form, 40 lower-case hexadecimal digits."""
    pem: bytes
    common_name: bytes | None


@dataclass(slots=True)
class TlsInfo:
    """What a finished handshake settled."""

    version: str
    """OpenSSL's name, e.g. ``TLSv1.3``."""
    cipher: str
    resumed: bool = False
    server_name: bytes | None = None
    """SNI, as the client sent it."""
    alpn: bytes | None = None
    certificate: ClientCertificate | None = None
    verify_code: int = 0
    """OpenSSL's verification result, 0 when all is well."""
    verify_error: bytes = b""
    """OpenSSL's text for ``verify_code``."""
    verify_is_tolerable: bool = False
    """Whether ``OptionalNoCA`` lets this ``verify_code`` pass."""
    own_signature: bytes | None = None
    """Signature algorithm of the certificate we presented, e.g. ``RSA-SHA256``."""
    own_key: bytes | None = None
    """Key algorithm and size of the certificate we presented, e.g. ``RSA2048``."""


@dataclass(slots=True)
class ProxyAddresses:
    """The addresses of an inbound PROXY header; v1 text exactly as received."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int


@dataclass(slots=True)
class Client:
    """Who is at the other end, as far as is known by now.

    ``address`` is text without a port: ``192.0.2.1``, ``2001:db8::1``,
    ``::ffff:192.0.2.1``, or ``unix:``.  It is the address after
    ``set_real_ip_from``; ``local_address`` is where we accepted the connection.
    """

    address: str
    port: int = 0
    local_address: str = ""
    local_port: int = 0
    proxied: ProxyAddresses | None = None
    tls: TlsInfo | None = None
    host: bytes = UNAVAILABLE
    """SMTP: the confirmed host name, or one of the two placeholders."""


@dataclass(slots=True)
class Credentials:
    """What a client presented: one complete attempt to log in.

    ``password`` is the digest for APOP and CRAM-MD5, and ``None`` for methods
    that carry none.  ``salt`` is the challenge those two answered.
    """

    method: Method
    user: bytes = b""
    password: Secret | None = None
    salt: bytes | None = None


@dataclass(slots=True)
class Envelope:
    """What SMTP gathered before RCPT asked for permission (``smtp_auth none``).

    Each is the whole command as the client wrote it (``MAIL FROM:<a@x>  SIZE=1``);
    ``helo`` is the argument alone.
    """

    helo: bytes
    mail: bytes
    rcpt: bytes


@dataclass(slots=True)
class AuthRequest:
    """One question to the authorization service."""

    credentials: Credentials
    attempt: int
    """``Auth-Login-Attempt``: 1 for the first of the session."""
    client: Client
    envelope: Envelope | None = None


@dataclass(slots=True)
class AuthAllowed:
    """The client may log in at this upstream.

    ``address`` is an IP address without brackets, or ``unix:`` and a path, with port 0.
    ``user`` and ``password`` are what to log in with: the service's own where it sent some.
    """

    address: str
    port: int
    user: bytes
    password: Secret | None = None


@dataclass(slots=True)
class AuthDenied:
    """The client may not.  ``wait`` seconds of penance allow another attempt; 0 closes."""

    text: bytes
    wait: int = 0
    code: bytes | None = None
    """``Auth-Error-Code``, SMTP only."""
    user: bytes | None = None
    """``Auth-User``, which counts even now."""


@dataclass(slots=True)
class AuthDeferred:
    """Ask again in ``wait`` seconds (at least 1), with these credentials where given."""

    wait: int
    user: bytes | None = None
    password: Secret | None = None


Decision = AuthAllowed | AuthDenied | AuthDeferred


@dataclass(slots=True)
class UpstreamLogin:
    """A frontend's conversation succeeded: who the client is, and where it belongs."""

    grant: AuthAllowed
    method: Method
    unread: bytes = b""
    """Bytes the client sent ahead; they go to the upstream first, exactly once."""
    tag: bytes = b""
    """IMAP: the tag of the command that logged in, without the space."""
    envelope: Envelope | None = None
    """SMTP, method ``none``: what to repeat to the upstream."""
    helo: bytes | None = None
    """SMTP: the client's HELO or EHLO argument, ``None`` when it gave none."""
    esmtp: bool = False
    """SMTP: whether the client used EHLO at least once."""


@dataclass(slots=True)
class SessionEnd:
    """A frontend's conversation is over, and everything that had to be said was said."""

    reason: CloseReason


@dataclass(slots=True)
class UpstreamLoginResult:
    """The upstream accepted the login.  ``reply`` is what the client gets to see of it."""

    reply: bytes = field(repr=False)

# SPDX-License-Identifier: Apache-2.0
"""Values that protocols, sessions and the authentication client exchange: clients, logins, decisions.

They are mutable only where a session changes them, and small: one of each may
exist for as long as a session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Protocol

from mailproxy.enums import CloseReason, LoginResult, Method
from mailproxy_config.model import VerifyClient

if TYPE_CHECKING:
    from mailproxy.errors import UpstreamError
    from mailproxy.protocols.sansio import ProtocolGenerator

    Resumed = ProtocolGenerator["UpstreamLogin | SessionEnd"]

UNAVAILABLE: Final = b"[UNAVAILABLE]"
"""Instead of a host name: the client has none, it is not confirmed, or there is no resolver."""
TEMPUNAVAIL: Final = b"[TEMPUNAVAIL]"
"""Instead of a host name: name servers failed or timed out."""
PROXY_TTL: Final = 6
"""How many proxies may follow the first one; each takes one off, so that a loop ends."""


class Secret:
    """Bytes that must not be logged: they print as ``***``."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def reveal(self) -> bytes:
        """Return the bytes, to be sent to a peer; never to be logged."""
        return self._data

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._data == self._data

    def __hash__(self) -> int:
        return hash(self._data)


@dataclass(frozen=True, slots=True)
class LoginSecrets:
    """Secrets of the proxy for logins at upstreams, read from files."""

    master_password: Secret | None = None
    """The password of ``proxy_master_user``."""


NO_SECRETS: Final = LoginSecrets()


@dataclass(slots=True)
class ClientCertificate:
    """A client's certificate, as ``auth_http`` and PROXY version 2 describe it."""

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
    """The result of a TLS handshake."""

    version: str
    """OpenSSL's name, e.g. ``TLSv1.3``."""
    cipher: str
    resumed: bool = False
    server_name: bytes | None = None
    """SNI, as the client sent it."""
    alpn: bytes | None = None
    certificate: ClientCertificate | None = None
    verify_code: int = 0
    """OpenSSL's verification result, 0 for success."""
    verify_error: bytes = b""
    """OpenSSL's text for ``verify_code``."""
    verify_is_tolerable: bool = False
    """Whether ``ssl_verify_client OptionalNoCA`` accepts this ``verify_code``."""
    own_signature: bytes | None = None
    """Signature algorithm of the certificate that the client got, e.g. ``RSA-SHA256``."""
    own_key: bytes | None = None
    """Key algorithm and size of the certificate that the client got, e.g. ``RSA2048``."""


class CertificateFault(Enum):
    """Why a client's certificate is not accepted (``ssl_verify_client``)."""

    INVALID = auto()
    MISSING = auto()


def certificate_fault(mode: VerifyClient, tls: TlsInfo) -> CertificateFault | None:
    """Check the client's certificate after a handshake; ``None`` if it is accepted.

    Args:
        mode: The directive ``ssl_verify_client``.
        tls: The result of the handshake.
    """
    if mode is VerifyClient.DISABLED:
        return None
    if tls.verify_code and not (mode is VerifyClient.OPTIONAL_NO_CA and tls.verify_is_tolerable):
        return CertificateFault.INVALID
    if mode is VerifyClient.REQUIRED and tls.certificate is None:
        return CertificateFault.MISSING
    return None


@dataclass(slots=True)
class ProxyAddresses:
    """The addresses of an inbound PROXY header; those of version 1 exactly as received."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int


@dataclass(slots=True)
class ReceivedIdentity:
    """What a trusted client wrote about the original client (``real_ip_command``), besides addresses."""

    peer: str
    """Address of the trusted client."""
    attributes: frozenset[bytes] = frozenset()
    """Which facts it has sent, by their names in XCLIENT."""
    session_id: str = ""
    """Empty if there is none, or one that may not be sent on."""
    server_name: bytes = b""
    """The host name that the original client has connected to."""
    transport: bytes = b""
    """``TLS`` or ``insecure``, as the original client is connected; empty if unknown."""
    forwarded: tuple[tuple[bytes, bytes], ...] = ()
    """Names and values of other facts, in printable ASCII."""
    helo: bytes | None = None
    """SMTP: the original client's HELO or EHLO argument."""
    is_esmtp: bool | None = None
    """SMTP: whether the original client used EHLO; ``None`` if unknown."""


@dataclass(slots=True)
class Client:
    """A client, as far as it is known.

    ``address`` is text without a port: ``192.0.2.1``, ``2001:db8::1``,
    ``::ffff:192.0.2.1``, or ``unix:``.  It is the address after ``set_real_ip_from`` and
    ``real_ip_command``; ``local_address`` is the one that accepted the connection.
    """

    address: str
    port: int = 0
    local_address: str = ""
    local_port: int = 0
    proxied: ProxyAddresses | None = None
    tls: TlsInfo | None = None
    host: bytes = UNAVAILABLE
    """SMTP: the confirmed host name, or one of the two placeholders."""
    session_id: str = ""
    """At most 64 letters, digits and hyphens; as in the log."""
    id_pairs: tuple[tuple[bytes, bytes], ...] = ()
    """IMAP: what the client wrote about itself with ID, in printable ASCII."""
    proxied_destination: tuple[str, int] | None = None
    """Address and port that the client has connected to, as a trusted peer sent them."""
    proxy_ttl: int = PROXY_TTL
    """How many proxies may follow: the number that was received, less one."""
    received: ReceivedIdentity | None = None
    """What a trusted client wrote about the original one."""
    has_asked_capabilities: bool = False
    """IMAP: whether the client has sent CAPABILITY; only with ``imap_capability_after_login``."""

    @property
    def connected(self) -> tuple[str, int]:
        """Address and port that the client has connected to."""
        return self.proxied_destination or (self.local_address, self.local_port)

    @property
    def upstream_session_id(self) -> str:
        """The ID for upstreams: the one that the first proxy of a chain has given the session."""
        received = self.received
        return self.session_id if received is None else received.session_id or self.session_id


@dataclass(slots=True)
class Credentials:
    """The credentials of one login.

    ``password`` is the digest for APOP and CRAM-MD5, and ``None`` for methods
    that have none.  ``challenge`` is the one that APOP and CRAM-MD5 respond to.
    """

    method: Method
    user: bytes = b""
    password: Secret | None = None
    challenge: bytes | None = None


@dataclass(slots=True)
class Envelope:
    """The SMTP commands before a login without credentials (``smtp_auth none``), which RCPT starts.

    ``mail`` and ``rcpt`` are whole commands as the client wrote them (``MAIL FROM:<a@x>  SIZE=1``);
    ``helo`` is the argument alone.
    """

    helo: bytes
    mail: bytes
    rcpt: bytes


@dataclass(slots=True)
class PolicyFacts:
    """What a policy server gets about one login (``auth_policy_server``), and what it decided."""

    user: bytes
    """As the client sent it."""
    password_hash: str
    is_refused: bool = False
    """Whether the policy server has refused the login."""
    message: str = ""
    """What it wrote about the refusal."""


@dataclass(slots=True)
class AuthRequest:
    """One request to the authentication service; as an effect, sends it.  The result is a ``Decision``.

    ``AuthUnavailable`` is raised if there is no usable response.  The session
    sends the error reply; only ``tempfail`` catches it and goes on.
    """

    credentials: Credentials
    attempt: int
    """``Auth-Login-Attempt``: 1 for the first of the session."""
    client: Client
    envelope: Envelope | None = None
    token_issuer: str = ""
    """The issuer of the access token, once the proxy has validated it (``auth_mode jwt``)."""
    was_deferred: bool = False
    """Whether it is repeated after ``Auth-Status: WAIT``; set by the cache (``auth_cache``)."""
    policy: PolicyFacts | None = None
    """Set where a policy server is asked."""


@dataclass(frozen=True, slots=True)
class UpstreamServer:
    """One item of ``Auth-Server``, where names and lists are allowed (``auth_http_server_names``).

    ``host`` is a host name, an IP address without brackets, or ``unix:`` and a path, with port 0.
    """

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """An address to connect to: one candidate for a login.

    ``address`` and ``port`` are as in ``AuthAllowed``.  ``name`` is the host name that was
    resolved to it, which its certificate must have; empty for an address from the service.
    """

    address: str
    port: int
    name: str = ""


Overrides = tuple[tuple[str, object], ...]
"""Directives of ``ServerConfig`` with the values that they have for one login, sorted by name."""


class Cancellable(Protocol):
    """Something that works for a session, and calls it when it is done."""

    def cancel(self) -> None:
        """End without calling the session: the client has left."""

    def close(self) -> None:
        """Close what it has open."""


class UpstreamVerdict(Protocol):
    """What gets the upstream's verdict on a login that the authentication service has allowed."""

    def succeeded(self) -> None:
        """The upstream has accepted the login."""

    def failed(self, session: Any, error: Exception, /) -> Cancellable | None:  # noqa: ANN401 - of a higher layer
        """The login has failed; returns a delay, after which the session gets the error again."""

    def abandoned(self) -> None:
        """The session has ended before the upstream decided; ignored after a verdict."""


@dataclass(slots=True)
class AuthAllowed:
    """The client may log in at this upstream.

    ``address`` is an IP address without brackets, or ``unix:`` and a path, with port 0.  It is empty where
    the service has named a group; then ``port`` is the one of servers without their own, or 0.
    ``user`` and ``password`` are the credentials for the upstream: those from the
    service where it sent some.  ``servers`` has all items of a response with names or several
    addresses; it is empty for one address, and ``address`` and ``port`` are those of the first item.
    ``overrides`` are from the service, too (``auth_http_overrides``).
    """

    address: str
    port: int
    user: bytes
    password: Secret | None = None
    servers: tuple[UpstreamServer, ...] = ()
    overrides: Overrides = ()
    upstream_group: str = ""
    """The group of upstreams that ``servers`` are of; its directives apply to the login."""
    hash_key: bytes = b""
    """``Auth-Server-Hash``: what ``hash`` of the group uses instead of ``user``."""
    smtp_auth: bool = True
    """Whether ``proxy_smtp_auth`` applies; false for ``Auth-SMTP: no``."""
    attempt: UpstreamVerdict | None = field(default=None, repr=False, compare=False)
    """What counts failed logins, where that is configured."""


@dataclass(slots=True)
class AuthDenied:
    """The login is denied.  After ``wait`` seconds the client may try again; 0 closes the connection."""

    text: bytes
    wait: int = 0
    code: bytes | None = None
    """``Auth-Error-Code``, SMTP only."""
    user: bytes | None = None
    """``Auth-User``, which is also used after a denial."""
    sasl_error: bytes | None = None
    """``Auth-Error-SASL``: the challenge of XOAUTH2 or OAUTHBEARER with an error, in base64."""
    limit: LoginResult | None = None
    """Set if a limit of the proxy refused the login: no verdict on its credentials."""


@dataclass(slots=True)
class LoginUnknown(AuthDenied):
    """No upstream is asked: no route leads to one, or it can be no login (``auth_mode upstream``).

    The client gets the same reply as after a refusal of an upstream, as late; ``text`` is for the log.
    """


@dataclass(slots=True)
class AuthDeferred:
    """The request is repeated after ``wait`` seconds (at least 1), with these credentials where given."""

    wait: int
    user: bytes | None = None
    password: Secret | None = None


Decision = AuthAllowed | AuthDenied | AuthDeferred


@dataclass(slots=True)
class UpstreamLogin:
    """The result of a frontend: the login at the upstream."""

    grant: AuthAllowed
    method: Method
    unread: bytes = b""
    """Bytes that the client sent ahead; they are the first that are relayed to the upstream."""
    tag: bytes = b""
    """IMAP: the tag of the command that logged in, without the space."""
    envelope: Envelope | None = None
    """SMTP, method ``none``: the commands to repeat at the upstream."""
    helo: bytes | None = None
    """SMTP: the client's HELO or EHLO argument, ``None`` if it sent none."""
    esmtp: bool = False
    """SMTP: whether the client used EHLO at least once."""
    is_committed: bool = False
    """Whether something about the client was sent inside of the protocol, set before its first byte is.

    That is a credential, XCLIENT, an ID with its address, or MAIL.  The login is tried at no other
    address after that.
    """

    def resume(self, _error: UpstreamError, /) -> Resumed | None:
        """Return the generator that goes on after this failure as after an outage; ``None``: not so."""
        return None

    def pass_on(self, _error: UpstreamError, _refusal: bytes, /) -> Resumed | None:
        """Return the generator that goes on after a failure that is no outage; ``None``: the session ends.

        The second argument is the last reply to the client, or what it is made from.
        """
        return None


@dataclass(slots=True)
class SessionEnd:
    """The session ends; all replies have been sent."""

    reason: CloseReason


UpstreamLoginResult = bytes
"""The upstream accepted the login: its reply, which is sent to the client."""

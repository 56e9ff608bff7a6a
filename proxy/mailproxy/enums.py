# SPDX-License-Identifier: Apache-2.0
"""Enumerations: values of metric labels and log fields, and the notes of frontends.

Metrics, the session log and the frontends use them; every closed set of label
values is defined here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Method(StrEnum):
    """How a client presented its credentials."""

    PASSWORD = "password"  # noqa: S105 - IMAP LOGIN, POP3 USER/PASS
    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram_md5"
    APOP = "apop"
    EXTERNAL = "external"
    NONE = "none"
    XOAUTH2 = "xoauth2"
    OAUTHBEARER = "oauthbearer"


PASSWORD_METHODS: Final = frozenset(
    {Method.PASSWORD, Method.PLAIN, Method.LOGIN, Method.CRAM_MD5, Method.APOP}
)
"""The methods with a password, in clear text or as a digest."""
CLEAR_PASSWORD_METHODS: Final = frozenset({Method.PASSWORD, Method.PLAIN, Method.LOGIN})


class LoginResult(StrEnum):
    """How a login ended."""

    SUCCESS = "success"
    DENIED = "denied"
    TEMPORARY = "temporary"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    INVALID_RESPONSE = "invalid_response"
    UPSTREAM_DENIED = "upstream_denied"
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_FAILED = "upstream_failed"
    ABORTED = "aborted"
    LIMIT_CONN = "limit_conn"
    LIMIT_REQ = "limit_req"
    TLS_REQUIRED = "tls_required"
    METHOD_DISABLED = "method_disabled"
    BAD_CREDENTIALS_SYNTAX = "bad_credentials_syntax"


class ProtocolErrorKind(StrEnum):
    """A violation of a mail protocol, by a client or (the last three before ``other``) by an upstream."""

    UNKNOWN_COMMAND = "unknown_command"
    BAD_SEQUENCE = "bad_sequence"
    BAD_ARGUMENTS = "bad_arguments"
    LINE_TOO_LONG = "line_too_long"
    LITERAL_INVALID = "literal_invalid"
    BASE64_INVALID = "base64_invalid"
    CONTROL_CHAR = "control_char"
    EARLY_TALKER = "early_talker"
    PLAINTEXT_BEFORE_TLS = "plaintext_before_tls"
    ALPN_MISMATCH = "alpn_mismatch"
    FOREIGN_PROTOCOL = "foreign_protocol"
    PROXY_HEADER = "proxy_header"
    NO_GREETING = "no_greeting"
    UNEXPECTED_REPLY = "unexpected_reply"
    REPLY_TOO_LONG = "reply_too_long"
    OTHER = "other"


class CloseReason(StrEnum):
    """Why a client connection was closed: the first cause."""

    CLIENT_QUIT = "client_quit"
    CLIENT_CLOSED = "client_closed"
    UPSTREAM_CLOSED = "upstream_closed"
    CLIENT_RESET = "client_reset"
    PREAUTH_TIMEOUT = "preauth_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    PROTOCOL_ERROR = "protocol_error"
    MAX_ERRORS = "max_errors"
    MAX_COMMANDS = "max_commands"
    TLS_FAILED = "tls_failed"
    PROXY_PROTOCOL_FAILED = "proxy_protocol_failed"
    LIMIT = "limit"
    AUTH_REJECTED = "auth_rejected"
    AUTH_UNAVAILABLE = "auth_unavailable"
    UPSTREAM_ERROR = "upstream_error"
    DRAIN = "drain"
    INTERNAL_ERROR = "internal_error"


class AuthOutcome(StrEnum):
    """How one request to the authentication service ended."""

    OK = "ok"
    DENIED = "denied"
    WAIT = "wait"
    ERROR = "error"
    TIMEOUT = "timeout"


class AuthErrorReason(StrEnum):
    """Why a request to the authentication service got no usable response."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    INVALID_RESPONSE = "invalid_response"
    NO_SERVER = "no_server"
    BAD_ADDRESS = "bad_address"
    HTTP_5XX = "http_5xx"


class AuthCacheEvent(StrEnum):
    """What happened in the cache of the authentication service's decisions."""

    HIT = "hit"
    """A login was decided without a request."""
    MISS = "miss"
    """A request was sent."""
    JOINED = "joined"
    """A login waits for the request of another one with the same credentials."""
    STALE = "stale"
    """An expired entry was used because the service fails."""
    STORED = "stored"
    EVICTED = "evicted"
    """An entry was dropped for another one."""


class CacheUse(StrEnum):
    """How the last login of a session was decided by the cache; a field of the log."""

    HIT = "hit"
    STALE = "stale"


class UpstreamStage(StrEnum):
    """The step of a login at the upstream."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    TOKEN = "token"  # noqa: S105 - a label
    GREETING = "greeting"
    TLS = "tls"
    ID = "id"
    HELLO = "hello"
    XCLIENT = "xclient"
    LOGIN = "login"
    ENVELOPE = "envelope"
    RELAY = "relay"


class UpstreamTry(StrEnum):
    """How a try of a login at an upstream ended, where there may be several."""

    SUCCESS = "success"
    """The login is complete."""
    NEXT = "next"
    """It failed, and another try followed."""
    FINAL = "final"
    """It failed in a way that is not tried again, such as a wrong password."""
    EXHAUSTED = "exhausted"
    """It failed, and was the last one (``proxy_next_upstream_tries``)."""
    TIMEOUT = "timeout"
    """It failed, and there was no time for another one (``proxy_next_upstream_timeout``)."""
    ABANDONED = "abandoned"
    """Another address of the same name was connected first, or the client has left."""


class ProxyHeaderResult(StrEnum):
    """The result of reading the PROXY header that a listener requires."""

    V1 = "v1"
    V2 = "v2"
    LOCAL = "local"
    UNKNOWN = "unknown"
    MISSING = "missing"
    INVALID = "invalid"
    TIMEOUT = "timeout"
    UNTRUSTED = "untrusted"


class TlsMode(StrEnum):
    """How TLS was started."""

    IMPLICIT = "implicit"
    STARTTLS = "starttls"


class TlsFailure(StrEnum):
    """Why a TLS handshake failed."""

    TIMEOUT = "timeout"
    EOF = "eof"
    NOT_TLS = "not_tls"
    NO_SHARED_CIPHER = "no_shared_cipher"
    UNSUPPORTED_VERSION = "unsupported_version"
    BAD_CLIENT_CERT = "bad_client_cert"
    CLIENT_CERT_MISSING = "client_cert_missing"
    VERIFY_FAILED = "verify_failed"
    ALPN_MISMATCH = "alpn_mismatch"
    UNRECOGNIZED_NAME = "unrecognized_name"
    OTHER = "other"


class UpstreamTlsFailure(StrEnum):
    """Why TLS with an upstream could not be started."""

    VERIFY = "verify"
    """Its certificate is not trusted, or revoked."""
    NAME = "name"
    EXPIRED = "expired"
    """Its certificate is not valid any more, or not yet."""
    PROTOCOL = "protocol"
    """It does not speak TLS, or no version or cipher in common."""
    REFUSED = "refused"
    """It ended the handshake."""
    STRIPPED = "stripped"
    """It does not offer STARTTLS, or refused it."""
    INJECTED = "injected"
    """Bytes in clear text came after the positive reply to STARTTLS."""
    TIMEOUT = "timeout"


class TokenResult(StrEnum):
    """How a request for an access token ended."""

    OK = "ok"
    REFUSED = "refused"
    """The service does not know the client, its secret, the scope or the refresh token."""
    UNAVAILABLE = "unavailable"
    """No connection, or an error of the service."""
    TIMEOUT = "timeout"
    INVALID = "invalid"
    """The answer has no usable token."""


class TokenFinding(StrEnum):
    """The result of validating an access token (``auth_mode jwt``): what is wrong with it."""

    VALID = "valid"
    MALFORMED = "malformed"
    """It is no signed JSON Web Token, or has extensions that must be understood."""
    ISSUER = "issuer"
    UNKNOWN_KEY = "unknown_key"
    ALGORITHM = "algorithm"
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    AUDIENCE = "audience"
    TYPE = "type"
    """It is no access token."""
    CLIENT = "client"
    SCOPE = "scope"
    IDENTITY = "identity"
    """It has no user name, or one that is none."""
    UNVERIFIED = "unverified"
    """Its issuer has not verified the address of the user."""
    DOMAIN = "domain"
    USER = "user"
    """The client has sent another user name."""
    UNAVAILABLE = "unavailable"
    """The keys of its issuer cannot be fetched."""


class PasswordFinding(StrEnum):
    """The result of verifying a password (``auth_mode static``)."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN_USER = "unknown_user"
    QUEUE_FULL = "queue_full"
    """Too many passwords wait already; the client is asked to try again later."""
    ERROR = "error"
    """The library failed."""


class JwksResult(StrEnum):
    """How fetching the keys of an issuer ended."""

    OK = "ok"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    STATUS = "status"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    INVALID = "invalid"
    EMPTY = "empty"


class PolicyCommand(StrEnum):
    """A request to a policy server."""

    ALLOW = "allow"
    REPORT = "report"


class PolicyResult(StrEnum):
    """How a request to a policy server ended."""

    OK = "ok"
    REFUSED = "refused"
    DELAYED = "delayed"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    """No connection, or an error of the server."""
    INVALID = "invalid"
    """The response is not usable."""
    SKIPPED = "skipped"
    """Not sent, because the server has failed a moment ago."""


class DnsPurpose(StrEnum):
    """The purpose of a name lookup."""

    PTR = "ptr"
    FORWARD = "forward"
    AUTH = "auth"
    UPSTREAM = "upstream"


class DnsResult(StrEnum):
    """How a DNS query ended."""

    OK = "ok"
    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    INVALID = "invalid"


class CacheResult(StrEnum):
    """How a lookup in the resolver's cache ended."""

    HIT = "hit"
    MISS = "miss"
    NEGATIVE_HIT = "negative_hit"
    STALE = "stale"


class SessionState(StrEnum):
    """The phase of a session."""

    STARTING = "starting"
    PREAUTH = "preauth"
    AUTH = "auth"
    UPSTREAM = "upstream"
    RELAY = "relay"


@dataclass(slots=True)
class ProtocolViolation:
    """A client violated its protocol."""

    kind: ProtocolErrorKind


@dataclass(slots=True)
class LoginRefused:
    """A login that was refused without a request to the authentication service."""

    method: Method
    result: LoginResult


@dataclass(slots=True)
class LoginDenied:
    """The authentication service denied a login; ``text`` is its reply, prepared for the log."""

    text: bytes
    code: bytes | None = None


@dataclass(slots=True)
class LogNote:
    """A log event at ``info``: a fixed name, and bytes that the log escapes.

    ``text`` never holds a password.  With ``is_ours``, the administrator
    has to fix the cause, and the event is logged at ``error``.
    """

    event: str
    text: bytes = b""
    is_ours: bool = False


@dataclass(slots=True)
class ClientNamed:
    """A trusted client has named the original one (``real_ip_command``)."""


Note = ProtocolViolation | LoginRefused | LoginDenied | LogNote | ClientNamed


class Limit(StrEnum):
    """A limit because of which a client was rejected."""

    CONN_TOTAL = "conn_total"
    MAX_ERRORS = "max_errors"
    MAX_COMMANDS = "max_commands"
    LIMIT_CONN = "limit_conn"
    LIMIT_REQ = "limit_req"
    LIMIT_PREAUTH = "limit_preauth"
    BLOCKED = "blocked"
    """``auth_block``."""


class GroupLogin(StrEnum):
    """Which member of a Service a login got."""

    OWNER = "owner"
    """The one that was chosen for it."""
    FALLBACK = "fallback"
    """The next one, because its own was not ready."""
    UNAVAILABLE = "unavailable"
    """None: its own, or every member, was not ready."""


class ZoneEvent(StrEnum):
    """What happened in a zone of ``limit_conn`` or ``limit_req``."""

    ZONE_FULL = "zone_full"
    """There was no place for a key: a session was not counted, or another key was forgotten."""
    REJECTED = "rejected"
    DRY_RUN = "dry_run"
    """It would have been rejected without ``limit_conn_dry_run`` or ``limit_req_dry_run``."""
    DELAYED = "delayed"
    SKIPPED = "skipped"
    """It was let in without being counted: the key was too long, or there was an error."""


class PenaltyAction(StrEnum):
    """What was done with a login because of earlier ones (``auth_penalty``, ``auth_block``)."""

    DELAYED = "delayed"
    REFUSED = "refused"
    """With a temporary error: too many wait, it has waited for too long, or its address is blocked."""
    EXEMPT = "exempt"
    """Its address is exempt."""
    KNOWN = "known"
    """Its user logged in from there within the last hour."""


class FailedCredentials(StrEnum):
    """Whether refused credentials are among the last ones of their address."""

    NEW = "new"
    REPEATED = "repeated"


class Direction(StrEnum):
    """The direction of relayed bytes."""

    TO_UPSTREAM = "to_upstream"
    TO_CLIENT = "to_client"


class TlsVersion(StrEnum):
    """A version of TLS, by OpenSSL's name."""

    V1_0 = "TLSv1"
    V1_1 = "TLSv1.1"
    V1_2 = "TLSv1.2"
    V1_3 = "TLSv1.3"
    OTHER = "other"


class ReloadResult(StrEnum):
    """How loading a configuration ended."""

    SUCCESS = "success"
    FAILURE = "failure"


class RestartReason(StrEnum):
    """Why a worker was replaced."""

    CRASH = "crash"
    KILLED = "killed"
    REQUESTED = "requested"
    UNRESPONSIVE = "unresponsive"


class LoginOutcome(StrEnum):
    """The result of a login, as a label of its duration."""

    SUCCESS = "success"
    FAILURE = "failure"


class ConnectResult(StrEnum):
    """The result of connecting to an upstream."""

    OK = "ok"
    ERROR = "error"


class Resumed(StrEnum):
    """Whether a TLS handshake resumed an earlier session."""

    TRUE = "true"
    FALSE = "false"


class Authenticated(StrEnum):
    """Whether the client of a session has logged in."""

    TRUE = "true"
    FALSE = "false"

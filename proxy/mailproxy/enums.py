# SPDX-License-Identifier: Apache-2.0
"""The closed sets of words for what happens, and the notes that conversations make.

Metrics, the session log and the conversations all use these words; a metric's
label takes its values from here and from nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """How a client presented its credentials."""

    PASSWORD = "password"  # noqa: S105 - IMAP LOGIN, POP3 USER/PASS
    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram_md5"
    APOP = "apop"
    EXTERNAL = "external"
    NONE = "none"


class LoginResult(StrEnum):
    """How an attempt to log in ended."""

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
    TLS_REQUIRED = "tls_required"
    METHOD_DISABLED = "method_disabled"
    BAD_CREDENTIALS_SYNTAX = "bad_credentials_syntax"


class ProtocolErrorKind(StrEnum):
    """A violation of a mail protocol, by a client or (the last ones) by an upstream."""

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
    """The first cause of a client connection's end."""

    CLIENT_QUIT = "client_quit"
    CLIENT_CLOSED = "client_closed"
    UPSTREAM_CLOSED = "upstream_closed"
    CLIENT_RESET = "client_reset"
    PREAUTH_TIMEOUT = "preauth_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    PROTOCOL_ERROR = "protocol_error"
    MAX_ERRORS = "max_errors"
    TLS_FAILED = "tls_failed"
    PROXY_PROTOCOL_FAILED = "proxy_protocol_failed"
    LIMIT = "limit"
    AUTH_REJECTED = "auth_rejected"
    AUTH_UNAVAILABLE = "auth_unavailable"
    UPSTREAM_ERROR = "upstream_error"
    DRAIN = "drain"
    INTERNAL_ERROR = "internal_error"


class AuthOutcome(StrEnum):
    """How one request to the authorization service ended."""

    OK = "ok"
    DENIED = "denied"
    WAIT = "wait"
    ERROR = "error"
    TIMEOUT = "timeout"


class AuthErrorReason(StrEnum):
    """Why a request to the authorization service gave no usable answer."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    INVALID_RESPONSE = "invalid_response"
    NO_SERVER = "no_server"
    BAD_ADDRESS = "bad_address"
    HTTP_5XX = "http_5xx"


class UpstreamStage(StrEnum):
    """How far a login at the upstream had come."""

    CONNECT = "connect"
    GREETING = "greeting"
    HELLO = "hello"
    XCLIENT = "xclient"
    LOGIN = "login"
    ENVELOPE = "envelope"
    RELAY = "relay"


class ProxyHeaderResult(StrEnum):
    """What became of a PROXY header that a listener asked for."""

    V1 = "v1"
    V2 = "v2"
    LOCAL = "local"
    UNKNOWN = "unknown"
    MISSING = "missing"
    INVALID = "invalid"
    TIMEOUT = "timeout"
    UNTRUSTED = "untrusted"


class TlsMode(StrEnum):
    """How TLS began."""

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
    OTHER = "other"


class DnsPurpose(StrEnum):
    """What a name was looked up for."""

    PTR = "ptr"
    FORWARD = "forward"
    AUTH = "auth"


class DnsResult(StrEnum):
    """How a question to a name server ended."""

    OK = "ok"
    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    INVALID = "invalid"


class CacheResult(StrEnum):
    """How a look-up in the resolver's cache ended."""

    HIT = "hit"
    MISS = "miss"
    NEGATIVE_HIT = "negative_hit"
    STALE = "stale"


class SessionState(StrEnum):
    """The phase a session is in."""

    STARTING = "starting"
    PREAUTH = "preauth"
    AUTH = "auth"
    UPSTREAM = "upstream"
    RELAY = "relay"


@dataclass(slots=True)
class ProtocolViolation:
    """A client broke its protocol's rules, or spoke out of turn."""

    kind: ProtocolErrorKind


@dataclass(slots=True)
class LoginRefused:
    """An attempt to log in that never reached the authorization service."""

    method: Method
    result: LoginResult


@dataclass(slots=True)
class LoginDenied:
    """The authentication service denied a login; ``text`` is its answer, fit for a log."""

    text: bytes
    code: bytes | None = None


@dataclass(slots=True)
class LogNote:
    """Something for the log at ``info``: a fixed sentence, and bytes that the log will escape.

    ``text`` never holds a password.  ``is_ours`` is for what an administrator
    has to mend: it is logged at ``error``.
    """

    event: str
    text: bytes = b""
    is_ours: bool = False


Note = ProtocolViolation | LoginRefused | LoginDenied | LogNote


class Limit(StrEnum):
    """A limit that turned a client away."""

    CONN_TOTAL = "conn_total"
    MAX_ERRORS = "max_errors"


class LimitMode(StrEnum):
    """What a limit does when it is hit."""

    ENFORCE = "enforce"


class Direction(StrEnum):
    """Which way relayed bytes went."""

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
    """How an attempt to load a configuration ended."""

    SUCCESS = "success"
    FAILURE = "failure"


class RestartReason(StrEnum):
    """Why a worker had to be replaced."""

    CRASH = "crash"
    KILLED = "killed"
    REQUESTED = "requested"
    UNRESPONSIVE = "unresponsive"


class LoginOutcome(StrEnum):
    """Whether a login went through, where its time is all that is told."""

    SUCCESS = "success"
    FAILURE = "failure"


class ConnectResult(StrEnum):
    """Whether an upstream could be connected to."""

    OK = "ok"
    ERROR = "error"


class Authenticated(StrEnum):
    """Whether a session got as far as its upstream."""

    TRUE = "true"
    FALSE = "false"

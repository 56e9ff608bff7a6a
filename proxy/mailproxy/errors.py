# SPDX-License-Identifier: Apache-2.0
"""The exceptions that end a session, shared by all layers.

Expected results (a denied login, ``QUIT``) are values, not exceptions.  No text
from here is sent to a peer: replies to clients are in a protocol's ``replies``.
"""

from __future__ import annotations

from typing import Final

from mailproxy.enums import (
    AuthErrorReason,
    CloseReason,
    ProtocolErrorKind,
    UpstreamStage,
    UpstreamTlsFailure,
)


class SessionError(Exception):
    """A session ended early."""

    reason: CloseReason = CloseReason.INTERNAL_ERROR


class PeerDisconnected(SessionError):
    """The peer is disconnected, or its time is over.

    Attributes:
        sent_nothing: Whether no byte was ever received from it.
    """

    reason = CloseReason.CLIENT_CLOSED
    sent_nothing = False

    @property
    def is_silent_end(self) -> bool:
        """Whether the peer connected and closed without a byte, as probes do; false for a timeout."""
        return self.sent_nothing and self.reason is not CloseReason.PREAUTH_TIMEOUT


class PeerClosed(PeerDisconnected):
    """The peer closed the connection."""


class PeerReset(PeerDisconnected):
    """The connection was reset or failed."""

    reason = CloseReason.CLIENT_RESET


class PeerTimedOut(PeerDisconnected):
    """The peer did not send, or not accept, bytes in time."""

    reason = CloseReason.PREAUTH_TIMEOUT


class ShuttingDown(SessionError):
    """The proxy drains."""

    reason = CloseReason.DRAIN


class TlsFailed(SessionError):
    """A TLS handshake failed."""

    reason = CloseReason.TLS_FAILED


class LineTooLong(SessionError):
    """A line is longer than the buffer.

    Attributes:
        seen: The bytes in the buffer; never sent to a peer.
    """

    reason = CloseReason.PROTOCOL_ERROR

    def __init__(self, seen: bytes, limit: int) -> None:
        super().__init__(f"line of more than {limit} bytes")
        self.seen = seen


class AuthUnavailable(SessionError):
    """There is no usable response from the authentication service.

    Attributes:
        failure: The label of the metric ``auth_errors_total``.
        service: Host and port of ``auth_http``, for logs; set when there are no more retries.
    """

    reason = CloseReason.AUTH_UNAVAILABLE
    failure: AuthErrorReason = AuthErrorReason.INVALID_RESPONSE
    service: str = ""

    def __init__(self, message: str = "", failure: AuthErrorReason | None = None) -> None:
        super().__init__(message)
        if failure is not None:
            self.failure = failure


class AuthTimedOut(AuthUnavailable):
    """The service did not respond within ``auth_http_timeout``."""

    failure = AuthErrorReason.TIMEOUT


class AuthUnreachable(AuthUnavailable):
    """The service could not be connected to, or closed the connection."""

    failure = AuthErrorReason.CONNECT


class InvalidAuthResponse(AuthUnavailable):
    """The response of the service is invalid.

    Attributes:
        status: The HTTP status, if there is one.
        value: The invalid value, for ``{}`` in the message; it may contain any bytes.
    """

    status: int | None = None
    value: bytes | None = None


class UpstreamError(SessionError):
    """The login at the upstream failed.

    Attributes:
        stage: The stage of the login.
        kind: The upstream's protocol violation, if it is one.
        reply: Everything that it sent since our last command, unchanged.
        tls_failure: Why TLS could not be started, if that is the cause.
    """

    reason = CloseReason.UPSTREAM_ERROR
    tls_failure: UpstreamTlsFailure | None = None
    client_reply: bytes = b""
    """Sent to the client instead of the internal error reply."""
    is_misconfigured: bool = False
    """Whether an administrator has to change the proxy's or the upstream's configuration: no retry helps."""

    def __init__(
        self,
        message: str,
        *,
        stage: UpstreamStage,
        kind: ProtocolErrorKind | None = None,
        reply: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.kind = kind
        self.reply = reply


_PASSING_TLS_FAILURES: Final = frozenset(
    {
        UpstreamTlsFailure.PROTOCOL,
        UpstreamTlsFailure.REFUSED,
        UpstreamTlsFailure.TIMEOUT,
        UpstreamTlsFailure.INJECTED,
    }
)


class UpstreamTlsError(UpstreamError):
    """TLS with the upstream could not be started; no credentials were sent."""

    def __init__(self, failure: UpstreamTlsFailure, message: str, *, reply: bytes = b"") -> None:
        super().__init__(message, stage=UpstreamStage.TLS, reply=reply)
        self.tls_failure = failure
        self.is_misconfigured = failure not in _PASSING_TLS_FAILURES


class UpstreamConfigError(UpstreamError):
    """The proxy and the upstream, or the authentication service, are not configured for each other."""

    is_misconfigured = True


class UpstreamGuardError(UpstreamError):
    """The upstream offers something with which the client could leave its login (``proxy_smtp_guard``)."""

    is_misconfigured = True

    def __init__(
        self, message: str, *, stage: UpstreamStage, reply: bytes, client_reply: bytes = b""
    ) -> None:
        super().__init__(message, stage=stage, reply=reply)
        self.client_reply = client_reply


class ProxyLoopError(UpstreamError):
    """The client has come through so many proxies that they are probably a loop."""

    is_misconfigured = True


class TokenUnavailable(UpstreamError):
    """The token service provides no access token; nothing was sent to the upstream."""

    def __init__(self, message: str, *, is_misconfigured: bool = False) -> None:
        super().__init__(message, stage=UpstreamStage.TOKEN)
        self.is_misconfigured = is_misconfigured


class UpstreamTokenRefused(UpstreamError):
    """The upstream refused the proxy's access token.

    Attributes:
        token: The token, of a type that prints as ``***``.
    """

    def __init__(self, reply: bytes, token: object) -> None:
        super().__init__("upstream refused the access token", stage=UpstreamStage.LOGIN, reply=reply)
        self.token = token


class UpstreamRefused(UpstreamError):
    """The upstream sent another reply than the expected one.

    The client gets ``reply`` with ``proxy_pass_error_message``.

    Attributes:
        is_denial: Whether the upstream refused this client's login, e.g. a
            wrong password or an unwanted sender.
        token_error: The challenge with the error of the client's access token, in base64, if there was one.
    """

    token_error: bytes = b""

    def __init__(
        self,
        reply: bytes,
        *,
        stage: UpstreamStage,
        kind: ProtocolErrorKind | None = None,
        is_denial: bool = False,
    ) -> None:
        super().__init__(f"upstream refused at {stage}", stage=stage, kind=kind, reply=reply)
        self.is_denial = is_denial

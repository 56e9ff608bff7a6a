# SPDX-License-Identifier: Apache-2.0
"""The families of what can go wrong, shared by every layer.

Expected outcomes are values (a denial, ``QUIT``); these are broken promises.
No text in here ever reaches a peer: what a client is told comes from its
protocol's ``replies``.
"""

from __future__ import annotations

from mailproxy.enums import AuthErrorReason, CloseReason, ProtocolErrorKind, UpstreamStage


class SessionError(Exception):
    """Something ended a session before its time."""

    reason: CloseReason = CloseReason.INTERNAL_ERROR


class PeerDisconnected(SessionError):
    """The peer of this conversation will say no more.

    Attributes:
        sent_nothing: Whether not one byte ever came from it.
    """

    reason = CloseReason.CLIENT_CLOSED
    sent_nothing = False

    @property
    def is_silent_end(self) -> bool:
        """Whether the peer connected and left, as balancers and probes do; a timeout is something else."""
        return self.sent_nothing and self.reason is not CloseReason.PREAUTH_TIMEOUT


class PeerClosed(PeerDisconnected):
    """The peer closed its side."""


class PeerReset(PeerDisconnected):
    """The connection broke."""

    reason = CloseReason.CLIENT_RESET


class PeerTimedOut(PeerDisconnected):
    """The peer said nothing for as long as its directive allows."""

    reason = CloseReason.PREAUTH_TIMEOUT


class ShuttingDown(SessionError):
    """The proxy drains; a conversation says its goodbye and ends."""

    reason = CloseReason.DRAIN


class TlsFailed(SessionError):
    """A TLS handshake did not complete."""

    reason = CloseReason.TLS_FAILED


class LineTooLong(SessionError):
    """More bytes than the buffer takes, and no line end among them.

    Attributes:
        seen: The bytes that fill the buffer; for the log, never for a peer.
    """

    reason = CloseReason.PROTOCOL_ERROR

    def __init__(self, seen: bytes, limit: int) -> None:
        super().__init__(f"line of more than {limit} bytes")
        self.seen = seen


class AuthUnavailable(SessionError):
    """The authorization service gave no usable answer.

    Attributes:
        failure: What was wrong, in the words that ``auth_errors_total`` counts by.
        service: The host and port that ``auth_http`` names, once the failure is settled; for logs.
    """

    reason = CloseReason.AUTH_UNAVAILABLE
    failure: AuthErrorReason = AuthErrorReason.INVALID_RESPONSE
    service: str = ""

    def __init__(self, message: str = "", failure: AuthErrorReason | None = None) -> None:
        super().__init__(message)
        if failure is not None:
            self.failure = failure


class AuthTimedOut(AuthUnavailable):
    """It did not answer within ``auth_http_timeout``."""

    failure = AuthErrorReason.TIMEOUT


class AuthUnreachable(AuthUnavailable):
    """It could not be connected to, or broke off."""

    failure = AuthErrorReason.CONNECT


class InvalidAuthResponse(AuthUnavailable):
    """It answered something that is not an answer.

    Attributes:
        status: The HTTP status, where the answer has one.
        value: What is wrong, where ``{}`` stands in the message; it may hold anything.
    """

    status: int | None = None
    value: bytes | None = None


class UpstreamError(SessionError):
    """The upstream could not be reached, broke off, or answered nonsense.

    Attributes:
        stage: How far we had come.
        kind: The upstream's violation, where it is one.
        reply: Everything it sent since our last command, unchanged.
    """

    reason = CloseReason.UPSTREAM_ERROR

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


class UpstreamRefused(UpstreamError):
    """The upstream answered, but not what was hoped for.

    The client gets ``reply`` where ``proxy_pass_error_message`` is on.

    Attributes:
        is_denial: Whether it was the login that was refused, with an upstream
            that goes on: a wrong password, or a sender that it does not want.
    """

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

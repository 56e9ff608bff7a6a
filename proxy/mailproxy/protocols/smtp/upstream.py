# SPDX-License-Identifier: Apache-2.0
"""The login at an SMTP upstream: XCLIENT, AUTH, or MAIL and RCPT."""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterator
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected, UpstreamConfigError, UpstreamError, UpstreamGuardError
from mailproxy.protocols.client_identity import smtp_xclient, xtext
from mailproxy.protocols.sansio import ProtocolGenerator, Send, UpgradeToTls
from mailproxy.protocols.sasl import is_unsafe
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.types import AuthAllowed, Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import (
    UpstreamLoginBase,
    read_reply,
    upstream_disconnected,
    upstream_refused,
)
from mailproxy.protocols.upstream_tls import injected, not_offered, refused
from mailproxy_config.model import ServerConfig, XclientMode

# Aliases of enum members: each access saves 0.25 µs on Python 3.11 and 0.08 µs on 3.13.
_GREETING: Final = UpstreamStage.GREETING
_TLS: Final = UpstreamStage.TLS
_HELLO: Final = UpstreamStage.HELLO
_XCLIENT: Final = UpstreamStage.XCLIENT
_LOGIN: Final = UpstreamStage.LOGIN
_ENVELOPE: Final = UpstreamStage.ENVELOPE
_LINES: Final = rb"(?:[0-9]{3}-[^\n]*\n)*(?![0-9]{3}-)[^\n]*\n"
"""The lines of a reply, up to the first without ``-`` behind its code (RFC 5321 section 4.2.1)."""
COMPLETE: Final = re.compile(_LINES)
# Complete replies with the expected code in their first line:
GREETING_REPLY: Final = re.compile(rb"(?=220)" + _LINES)
_REPLY_250: Final = re.compile(rb"(?=250)" + _LINES)
_GUARDED_REPLY_250: Final = re.compile(rb"(?=250)(?!(?:250-[^\n]*\n)*250[- ](?i:XCLIENT)[ \r\n])" + _LINES)
"""A reply to EHLO without XCLIENT."""
_GUARDED_REPLY_250_BEFORE_AUTH: Final = re.compile(
    rb"(?=250)(?!(?:250-[^\n]*\n)*250[- ](?i:XCLIENT)(?![^\n]* (?i:TTL|FORWARD)\b)[ \r\n])" + _LINES
)
"""A reply to EHLO without XCLIENT, or with Dovecot's, which lists it until AUTH and refuses it then."""
_GUARDED: Final = frozenset({_GUARDED_REPLY_250, _GUARDED_REPLY_250_BEFORE_AUTH})
REPLY_220_OR_250: Final = re.compile(rb"(?=220|250)" + _LINES)
_REPLY_235: Final = re.compile(rb"(?=235)" + _LINES)
_REFUSAL: Final = re.compile(rb"[45](?:[0-9]{2}|[0-9]?\r?\n)")
"""A refusal; its code may be incomplete."""
_OFFERS_TLS: Final = re.compile(rb"^250[- ]STARTTLS[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_MISTRUST: Final = (
    "upstream accepts XCLIENT from this client: take the client's network out of the hosts that may send it, "
    "or set xclient to true"
)
_XCLIENT_ATTRIBUTES: Final = re.compile(rb"^250[- ]XCLIENT ([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
Step = tuple[Send, UpstreamStage, re.Pattern[bytes]]
"""A command, its stage of the login, and the expected reply."""


class SmtpUpstream(UpstreamLoginBase):
    """The login at one server's SMTP upstreams."""

    __slots__ = ("_ehlo", "_helo", "_last_reply", "_negotiates_xclient", "_sends_auth")

    def __init__(self, server: ServerConfig, *, sends_auth: bool = False) -> None:
        super().__init__(server)
        self._negotiates_xclient = server.negotiates_xclient
        self._sends_auth = sends_auth = sends_auth or server.proxy_smtp_auth
        guarded = _GUARDED_REPLY_250_BEFORE_AUTH if sends_auth else _GUARDED_REPLY_250
        self._last_reply = guarded if server.proxy_smtp_guard else _REPLY_250
        last_reply = _REPLY_250 if server.xclient else self._last_reply
        self._ehlo = Send(f"EHLO {server.server_name}\r\n".encode()), _HELLO, last_reply
        self._helo = Send(f"HELO {server.server_name}\r\n".encode()), _HELLO, _REPLY_250

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in according to ``xclient`` and ``proxy_smtp_auth``.

        The client gets ``235`` or, with method ``none``, the upstream's reply
        to RCPT, whatever its code.
        """
        receive, stage = self.receive, _GREETING
        try:
            if self.has_preamble:
                yield from self.preamble(client)
            received: bytes = yield receive
            if GREETING_REPLY.match(received) is None:
                received = yield from self._read_expected(received, GREETING_REPLY, stage)
            if self.has_prologue:
                stage = self.prologue_stage
                yield from self._prologue(received, client, login)
            for command, stage, expected in self._steps(client, login):
                yield command
                received = yield receive
                if expected.match(received) is None:
                    received = yield from self._read_expected(received, expected, stage)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, stage) from gone
        return replies.AUTHENTICATED if login.envelope is None else received

    def _prologue(self, greeting: bytes, client: Client, login: UpstreamLogin) -> ProtocolGenerator[bytes]:
        """Perform what comes between greeting and login: STARTTLS, and the XCLIENT attributes on offer.

        Returns:
            The reply to the last EHLO inside of TLS; empty if none was sent.
        """
        if self.starts_tls:
            yield from self._start_tls(greeting)
        if self.server.negotiates_xclient:
            return (yield from self._negotiate_xclient(client, login))
        return b""

    def _negotiate_xclient(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[bytes]:
        """Send EHLO, the XCLIENT attributes that the reply lists, and EHLO again; return the last reply."""
        yield self._ehlo[0]
        received = yield from self._expect(_REPLY_250, _HELLO)
        listed = _XCLIENT_ATTRIBUTES.search(received)
        if listed is None:
            if self.server.xclient_mode is XclientMode.REQUIRED:
                reason = "upstream does not offer XCLIENT, which xclientMode requires"
                raise UpstreamConfigError(reason, stage=_XCLIENT, reply=received)
            return (yield from self._without_xclient(login, received))
        has_login = bool(login.grant.user) and not self._sends_auth
        login.is_committed = True
        offered = frozenset(listed[1].upper().split())
        facts = self.facts
        for command in smtp_xclient(client, login, offered, has_login=has_login, facts=facts):
            yield Send(command)
            yield from self._expect(GREETING_REPLY, _XCLIENT)
        word = b"EHLO " if login.esmtp or login.helo is None else b"HELO "
        yield Send(word + (login.helo or self.server.server_name.encode()) + b"\r\n")
        return (yield from self._expect(self._last_reply, _HELLO))

    def _without_xclient(self, login: UpstreamLogin, hello: bytes) -> ProtocolGenerator[bytes]:
        """Go on after a reply to EHLO that does not list XCLIENT; return the last reply to EHLO."""
        yield from ()
        return hello

    def _expect(self, expected: re.Pattern[bytes], stage: UpstreamStage) -> ProtocolGenerator[bytes]:
        """Read the reply to the last command, and check it."""
        received: bytes = yield self.receive
        if expected.match(received) is None:
            received = yield from self._read_expected(received, expected, stage)
        return received

    def _start_tls(self, greeting: bytes) -> ProtocolGenerator[None]:
        """Start TLS with EHLO and STARTTLS; the reply to that EHLO is forgotten."""
        _check_is_whole(greeting)
        yield self._ehlo[0]
        extensions = yield from self._read_reply()
        if extensions.startswith(b"250") and _OFFERS_TLS.search(extensions) is None:
            raise not_offered(extensions, "STARTTLS")
        if not extensions.startswith(b"250"):
            raise refused(extensions, "EHLO, and so STARTTLS")
        yield Send(b"STARTTLS\r\n")
        reply = yield from self._read_reply()
        if not reply.startswith(b"220"):
            raise refused(reply, "STARTTLS")
        yield UpgradeToTls()

    def _read_reply(self) -> ProtocolGenerator[bytes]:
        """Read one reply, and nothing behind it, before TLS."""
        received = yield from read_reply((yield self.receive), COMPLETE, self.limit, _TLS)
        if received.startswith(b"421"):
            raise upstream_refused(received, _TLS, is_valid_reply=True, is_bye=True)
        _check_is_whole(received)
        return received

    def _read_expected(
        self, received: bytes, expected: re.Pattern[bytes], stage: UpstreamStage
    ) -> ProtocolGenerator[bytes]:
        """Read a reply and check that it is the expected one."""
        received = yield from read_reply(received, COMPLETE, self.limit, stage)
        if expected.match(received):
            return received
        if expected in _GUARDED and _REPLY_250.match(received):
            raise UpstreamGuardError(
                _MISTRUST, stage=stage, reply=received, client_reply=replies.TEMPORARY_FAILURE
            )
        is_bye = received.startswith(b"421")  # RFC 5321 section 3.8
        raise upstream_refused(
            received, stage, is_valid_reply=_REFUSAL.match(received) is not None, is_bye=is_bye
        )

    def _steps(self, client: Client, login: UpstreamLogin) -> Iterator[Step]:
        """Yield the commands: EHLO or HELO, XCLIENT, the client's EHLO or HELO, then AUTH, or MAIL and RCPT.

        Raises:
            UpstreamError: There is no password, or the credentials contain CR, LF or NUL.
        """
        server = self.server
        if not self._negotiates_xclient:
            yield self._ehlo if login.esmtp or server.xclient else self._helo
        login.is_committed = True
        if server.xclient and not self._negotiates_xclient:
            yield Send(self._xclient(client, login.grant)), _XCLIENT, REPLY_220_OR_250
            if login.helo is not None:
                word = b"EHLO " if login.esmtp else b"HELO "
                yield Send(word + login.helo + b"\r\n"), _HELLO, self._last_reply
        envelope = login.envelope
        if envelope is not None:
            yield Send(envelope.mail + b"\r\n"), _ENVELOPE, _REPLY_250
            yield Send(envelope.rcpt + b"\r\n"), _ENVELOPE, COMPLETE
        elif server.proxy_smtp_auth:
            yield Send(_authentication(login.grant)), _LOGIN, _REPLY_235

    def _xclient(self, client: Client, grant: AuthAllowed) -> bytes:
        """Return the XCLIENT command; with ``proxy_smtp_auth`` it has no LOGIN, as AUTH follows."""
        address = client.address
        is_ipv6 = ":" in address and not address.startswith("unix:")
        attribute = b" ADDR=IPV6:" if is_ipv6 else b" ADDR="
        has_login = grant.user and not self._sends_auth
        login = b" LOGIN=" + xtext(grant.user) if has_login else b""
        return b"XCLIENT" + attribute + address.encode() + login + b" NAME=" + client.host + b"\r\n"


def _check_is_whole(received: bytes) -> None:
    """Check that nothing was received behind a reply."""
    if COMPLETE.fullmatch(received) is None:
        raise injected("STARTTLS")


def _authentication(grant: AuthAllowed) -> bytes:
    """Return AUTH PLAIN with an initial response, whatever the client used."""
    if grant.password is None:
        raise UpstreamConfigError("no password available", stage=_LOGIN)
    password = grant.password.reveal()
    if is_unsafe(grant.user + password):
        raise UpstreamError("control characters in the credentials for the upstream", stage=_LOGIN)
    message = b2a_base64(b"\0" + grant.user + b"\0" + password, newline=False)
    return b"AUTH PLAIN " + message + b"\r\n"

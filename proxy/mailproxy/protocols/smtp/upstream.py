# SPDX-License-Identifier: Apache-2.0
"""Logging in at an SMTP server on a client's behalf: XCLIENT, AUTH, or MAIL and RCPT."""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterator
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.proxy_protocol import outbound_header
from mailproxy.protocols.sansio import ProtocolGenerator, Send
from mailproxy.protocols.sasl import is_unsafe
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.types import AuthAllowed, Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import (
    UpstreamLoginBase,
    read_reply,
    upstream_disconnected,
    upstream_error,
    upstream_refused,
)
from mailproxy_config.model import ServerConfig

_GREETING: Final = UpstreamStage.GREETING
_HELLO: Final = UpstreamStage.HELLO
_XCLIENT: Final = UpstreamStage.XCLIENT
_LOGIN: Final = UpstreamStage.LOGIN
_ENVELOPE: Final = UpstreamStage.ENVELOPE
_LINES: Final = rb"(?:[0-9]{3}-[^\n]*\n)*(?![0-9]{3}-)[^\n]*\n"
"""The first line and those up to the first that does not continue it (RFC 5321 section 4.2.1).

A line without a code continues nothing.
"""
_WHOLE: Final = re.compile(_LINES)
# Whole replies with the code that is hoped for in their first line, which counts:
_WELCOME: Final = re.compile(rb"(?=220)" + _LINES)
_DONE: Final = re.compile(rb"(?=250)" + _LINES)
_TAKEN_OVER: Final = re.compile(rb"(?=220|250)" + _LINES)
_PROVEN: Final = re.compile(rb"(?=235)" + _LINES)
_HONEST: Final = re.compile(rb"[45](?:[0-9]{2}|[0-9]?\r?\n)")
"""A refusal; its code may be cut short."""
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")
_Step = tuple[Send, UpstreamStage, re.Pattern[bytes]]
"""A command, how far the login is with it, and the reply that is hoped for."""


class SmtpUpstream(UpstreamLoginBase):
    """One server's side of the conversation with SMTP upstreams."""

    __slots__ = ("_ehlo", "_helo")

    def __init__(self, server: ServerConfig) -> None:
        super().__init__(server)
        self._ehlo = Send(f"EHLO {server.server_name}\r\n".encode()), _HELLO, _DONE
        self._helo = Send(f"HELO {server.server_name}\r\n".encode()), _HELLO, _DONE

    def log_in(self, client: Client, identified: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in as ``xclient`` and ``proxy_smtp_auth`` want it.

        The client gets ``235``; or, where it did not log in, the upstream's
        own reply to RCPT, whatever that is.

        Raises:
            UpstreamRefused: The upstream did not say what it should.
            UpstreamError: It broke off or said too much, or there is no
                password to log in with.
        """
        receive, stage = self.receive, _GREETING
        try:
            if self.introduces:
                yield Send(outbound_header(self.server, client))
            heard: bytes = yield receive
            if _WELCOME.match(heard) is None:
                heard = yield from self._hear_out(heard, _WELCOME, stage)
            for command, stage, hoped_for in self._steps(client, identified):
                yield command
                heard = yield receive
                if hoped_for.match(heard) is None:
                    heard = yield from self._hear_out(heard, hoped_for, stage)
        except PeerDisconnected as gone:
            raise upstream_disconnected(stage) from gone
        return UpstreamLoginResult(replies.AUTHENTICATED if identified.envelope is None else heard)

    def _hear_out(
        self, heard: bytes, hoped_for: re.Pattern[bytes], stage: UpstreamStage
    ) -> ProtocolGenerator[bytes]:
        """Insist on the reply that is hoped for."""
        heard = yield from read_reply(heard, _WHOLE, self.limit, stage)
        if hoped_for.match(heard):
            return heard
        is_bye = heard.startswith(b"421")  # RFC 5321 section 3.8
        raise upstream_refused(heard, stage, is_honest=_HONEST.match(heard) is not None, is_bye=is_bye)

    def _steps(self, client: Client, identified: UpstreamLogin) -> Iterator[_Step]:
        """Say who we are, who the client is, and what it called itself; then log in, or begin its message.

        Raises:
            UpstreamError: This step cannot be said.
        """
        server = self.server
        yield self._ehlo if identified.esmtp or server.xclient else self._helo
        if server.xclient:
            yield Send(self._xclient(client, identified.grant)), _XCLIENT, _TAKEN_OVER
            if identified.helo is not None:
                word = b"EHLO " if identified.esmtp else b"HELO "
                yield Send(word + identified.helo + b"\r\n"), _HELLO, _DONE
        envelope = identified.envelope
        if envelope is not None:
            yield Send(envelope.mail + b"\r\n"), _ENVELOPE, _DONE
            yield Send(envelope.rcpt + b"\r\n"), _ENVELOPE, _WHOLE
        elif server.proxy_smtp_auth:
            yield Send(_authentication(identified.grant)), _LOGIN, _PROVEN

    def _xclient(self, client: Client, grant: AuthAllowed) -> bytes:
        """Word the XCLIENT command; with ``proxy_smtp_auth`` the login is proven, not told."""
        address = client.address
        is_ipv6 = ":" in address and not address.startswith("unix:")
        attribute = b" ADDR=IPV6:" if is_ipv6 else b" ADDR="
        tells_login = grant.user and not self.server.proxy_smtp_auth
        login = b" LOGIN=" + xtext(grant.user) if tells_login else b""
        return b"XCLIENT" + attribute + address.encode() + login + b" NAME=" + client.host + b"\r\n"


def xtext(data: bytes) -> bytes:
    """Encode an XCLIENT attribute (RFC 1891 section 5): printable ASCII but ``+`` and ``=`` as it is."""
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % ord(match[0]), data)


def _authentication(grant: AuthAllowed) -> bytes:
    """Word AUTH PLAIN with an initial response, whatever the client used."""
    if grant.password is None:
        raise upstream_error("no password available", _LOGIN)
    password = grant.password.reveal()
    if is_unsafe(grant.user + password):
        raise upstream_error("control characters in the credentials for the upstream", _LOGIN)
    message = b2a_base64(b"\0" + grant.user + b"\0" + password, newline=False)
    return b"AUTH PLAIN " + message + b"\r\n"

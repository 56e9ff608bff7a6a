# SPDX-License-Identifier: Apache-2.0
"""Logging in at an SMTP server on a client's behalf: XCLIENT, AUTH, or MAIL and RCPT."""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Iterator
from typing import Final

from mailproxy.dialogue.actions import Dialogue
from mailproxy.dialogue.values import Client, Granted, Identified, LoggedIn
from mailproxy.events import ProtocolErrorKind, UpstreamStage
from mailproxy.protocols.exchange import Exchange
from mailproxy.protocols.sasl import is_unsafe
from mailproxy.protocols.smtp import replies
from mailproxy_config.model import ServerConfig

_HELLO: Final = UpstreamStage.HELLO
_XCLIENT: Final = UpstreamStage.XCLIENT
_LOGIN: Final = UpstreamStage.LOGIN
_ENVELOPE: Final = UpstreamStage.ENVELOPE
_WELCOME: Final = frozenset({b"220"})
_DONE: Final = frozenset({b"250"})
_TAKEN_OVER: Final = frozenset({b"220", b"250"})
_PROVEN: Final = frozenset({b"235"})
_WHATEVER: Final = frozenset[bytes]()
_WHOLE: Final = re.compile(rb"(?=([^\n]*)\n)(?:[0-9]{3}-[^\n]*\n)*(?![0-9]{3}-)[^\n]*\n")
"""The first line, which counts, and those up to the first that does not continue it (RFC 5321 section 4.2.1).

A line without a code continues nothing.
"""
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")
_Step = tuple[bytes, UpstreamStage, frozenset[bytes]]
"""A command, how far the login is with it, and the codes that are hoped for."""


class SmtpUpstream:
    """One server's side of the conversation with SMTP upstreams."""

    __slots__ = ("_ehlo", "_helo", "_server")

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        self._ehlo = f"EHLO {server.server_name}\r\n".encode()
        self._helo = f"HELO {server.server_name}\r\n".encode()

    def log_in(self, client: Client, identified: Identified) -> Dialogue[LoggedIn]:
        """Log in as ``xclient`` and ``proxy_smtp_auth`` want it.

        The client gets ``235``; or, where it did not log in, the upstream's
        own reply to RCPT, whatever that is.

        Raises:
            UpstreamRefused: The upstream did not say what it should.
            UpstreamError: It broke off or said too much, or there is no
                password to log in with.
        """
        exchange = Exchange(self._server.proxy_buffer)
        yield from exchange.introduce(self._server, client)
        _judge(exchange, (yield from exchange.reply(_WHOLE)), _WELCOME)
        for command, stage, codes in self._steps(exchange, client, identified):
            yield from exchange.say(command, stage)
            _judge(exchange, (yield from exchange.reply(_WHOLE)), codes)
        return LoggedIn(replies.AUTHENTICATED if identified.envelope is None else exchange.said())

    def _steps(self, exchange: Exchange, client: Client, identified: Identified) -> Iterator[_Step]:
        """Say who we are, who the client is, and what it called itself; then log in, or begin its message.

        Raises:
            UpstreamError: This step cannot be said.
        """
        server = self._server
        yield self._ehlo if identified.esmtp or server.xclient else self._helo, _HELLO, _DONE
        if server.xclient:
            yield self._xclient(client, identified.grant), _XCLIENT, _TAKEN_OVER
            if identified.helo is not None:
                word = b"EHLO " if identified.esmtp else b"HELO "
                yield word + identified.helo + b"\r\n", _HELLO, _DONE
        envelope = identified.envelope
        if envelope is not None:
            yield envelope.mail + b"\r\n", _ENVELOPE, _DONE
            yield envelope.rcpt + b"\r\n", _ENVELOPE, _WHATEVER
        elif server.proxy_smtp_auth:
            exchange.stage = _LOGIN
            yield _authentication(exchange, identified.grant), _LOGIN, _PROVEN

    def _xclient(self, client: Client, grant: Granted) -> bytes:
        """Word the XCLIENT command; with ``proxy_smtp_auth`` the login is proven, not told."""
        address = client.address
        is_ipv6 = ":" in address and not address.startswith("unix:")
        prefix = "IPV6:" if is_ipv6 else ""
        login = b""
        if grant.user and not self._server.proxy_smtp_auth:
            login = b" LOGIN=" + xtext(grant.user)
        return b"XCLIENT ADDR=" + f"{prefix}{address}".encode() + login + b" NAME=" + client.host + b"\r\n"


def xtext(octets: bytes) -> bytes:
    """Encode an XCLIENT attribute (RFC 1891 section 5): printable ASCII but ``+`` and ``=`` as it is."""
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % ord(match[0]), octets)


def _authentication(exchange: Exchange, grant: Granted) -> bytes:
    """Word AUTH PLAIN with an initial response, whatever the client used."""
    if grant.password is None:
        raise exchange.failed("no password available")
    password = grant.password.reveal()
    if is_unsafe(grant.user + password):
        raise exchange.failed("control characters in the credentials for the upstream")
    message = b2a_base64(b"\0" + grant.user + b"\0" + password, newline=False)
    return b"AUTH PLAIN " + message + b"\r\n"


def _judge(exchange: Exchange, line: bytes, codes: frozenset[bytes]) -> None:
    """Insist on one of some codes in a reply's first line; where there are none, any reply will do."""
    code = line[:3]
    if codes and code not in codes:
        is_honest = code.isdigit() and code[:1] in {b"4", b"5"}
        raise exchange.refused(None if is_honest else ProtocolErrorKind.UNEXPECTED_REPLY)

"""Logging in at an SMTP server on a client's behalf: XCLIENT, AUTH, or MAIL and RCPT."""

from __future__ import annotations

import re
from binascii import b2a_base64
from typing import Final

from mailproxy.dialogue.actions import Dialogue
from mailproxy.dialogue.values import Client, Envelope, Granted, Identified, LoggedIn
from mailproxy.events import ProtocolErrorKind, UpstreamStage
from mailproxy.protocols.exchange import Exchange
from mailproxy.protocols.sasl import is_unsafe
from mailproxy.protocols.smtp import replies
from mailproxy_config.model import ServerConfig

_HELLO: Final = UpstreamStage.HELLO
_XCLIENT: Final = UpstreamStage.XCLIENT
_MORE: Final = b"-"
_NOT_XTEXT: Final = re.compile(rb"[^!-*,-<>-~]")


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
        yield from _expect(exchange, b"220")
        yield from self._hello(exchange, client, identified)
        if identified.envelope is not None:
            return LoggedIn((yield from _transaction(exchange, identified.envelope)))
        if self._server.proxy_smtp_auth:
            yield from _authenticate(exchange, identified.grant)
        return LoggedIn(replies.AUTHENTICATED)

    def _hello(self, exchange: Exchange, client: Client, identified: Identified) -> Dialogue[None]:
        """Say who we are, who the client is, and what it called itself."""
        is_extended = identified.esmtp or self._server.xclient
        yield from exchange.say(self._ehlo if is_extended else self._helo, _HELLO)
        yield from _expect(exchange, b"250")
        if not self._server.xclient:
            return
        yield from exchange.say(self._xclient(client, identified.grant), _XCLIENT)
        yield from _expect(exchange, b"220", b"250")
        if identified.helo is not None:
            word = b"EHLO " if identified.esmtp else b"HELO "
            yield from exchange.say(word + identified.helo + b"\r\n", _HELLO)
            yield from _expect(exchange, b"250")

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


def _authenticate(exchange: Exchange, grant: Granted) -> Dialogue[None]:
    """AUTH PLAIN with an initial response, whatever the client used."""
    exchange.stage = UpstreamStage.LOGIN
    if grant.password is None:
        raise exchange.failed("no password available")
    password = grant.password.reveal()
    if is_unsafe(grant.user + password):
        raise exchange.failed("control characters in the credentials for the upstream")
    message = b2a_base64(b"\0" + grant.user + b"\0" + password, newline=False)
    yield from exchange.say(b"AUTH PLAIN " + message + b"\r\n", UpstreamStage.LOGIN)
    yield from _expect(exchange, b"235")


def _transaction(exchange: Exchange, envelope: Envelope) -> Dialogue[bytes]:
    """Repeat the client's MAIL and RCPT; any reply to RCPT is the client's to see."""
    yield from exchange.say(envelope.mail + b"\r\n", UpstreamStage.ENVELOPE)
    yield from _expect(exchange, b"250")
    yield from exchange.say(envelope.rcpt + b"\r\n", UpstreamStage.ENVELOPE)
    yield from _reply(exchange)
    return exchange.said()


def _expect(exchange: Exchange, *codes: bytes) -> Dialogue[None]:
    """Take one reply, of any number of lines; the first line's code is judged."""
    code = yield from _reply(exchange)
    if code in codes:
        return
    is_honest = code.isdigit() and code[:1] in {b"4", b"5"}
    raise exchange.refused(None if is_honest else ProtocolErrorKind.UNEXPECTED_REPLY)


def _reply(exchange: Exchange) -> Dialogue[bytes]:
    """Take one reply, and give its code.

    A reply ends with the first line that does not continue it; a line without
    a code continues nothing.
    """
    line = yield from exchange.line()
    code = line[:3]
    while line[3:4] == _MORE and line[:3].isdigit():
        line = yield from exchange.line()
    return code

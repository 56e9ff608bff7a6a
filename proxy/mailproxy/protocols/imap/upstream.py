# SPDX-License-Identifier: Apache-2.0
"""The conversation with an IMAP server, from its greeting to the client's login.

LOGIN with literals, as nginx does it, under the client's own tag: so the
server's last reply answers the client's command, and is handed on unchanged.
Untagged lines may come at any time (RFC 9051 section 2.2.2); how many is
bounded by ``proxy_buffer`` alone.
"""

from __future__ import annotations

import re
from typing import Final

from mailproxy.dialogue.actions import Dialogue, Send, Telling
from mailproxy.dialogue.values import Client, Identified, LoggedIn
from mailproxy.events import ProtocolErrorKind, UpstreamStage
from mailproxy.protocols.exchange import Exchange
from mailproxy_config.model import ServerConfig

_GREETING: Final = b"* OK"
_BYE: Final = b"* BYE"
_ANSWER: Final = re.compile(rb"(?:\* (?!BYE)[^\n]*\n)*((?!\* (?!BYE))[^\n]*)\n")
"""Untagged lines, which answer nothing but for BYE, and the line that counts."""
_GO_ON: Final = b"+"
_TAKES_LITERALS_AT_ONCE: Final = re.compile(rb"\* OK \[CAPABILITY [^\]]*(?<= )LITERAL\+[ \]]", re.IGNORECASE)
_LOGIN: Final = UpstreamStage.LOGIN


class ImapUpstream:
    """One server's side of the conversations with IMAP upstreams."""

    __slots__ = ("_server",)

    def __init__(self, server: ServerConfig) -> None:
        self._server = server

    def log_in(self, client: Client, identified: Identified) -> Dialogue[LoggedIn]:
        """Log in; the client gets the tagged reply and all that came between the password and it.

        Raises:
            UpstreamRefused: The upstream said no, or what is no IMAP reply;
                everything it said in that step goes with it.
            UpstreamError: It broke off, or its lines do not fit ``proxy_buffer``.
        """
        exchange = _ImapExchange(self._server.proxy_buffer)
        yield from exchange.introduce(self._server, client)
        greeting = yield from exchange.reply()
        if greeting[:4] != _GREETING:
            raise exchange.refused(None if greeting.startswith(_BYE) else ProtocolErrorKind.UNEXPECTED_REPLY)
        grant, tag = identified.grant, identified.tag
        user = grant.user
        password = b"" if grant.password is None else grant.password.reveal()
        if _TAKES_LITERALS_AT_ONCE.match(greeting):
            login = b"%b LOGIN {%d+}\r\n%b {%d+}\r\n%b\r\n" % (tag, len(user), user, len(password), password)
            yield from exchange.say(login, _LOGIN)
        else:  # each when the upstream asks for it
            yield from exchange.say(b"%b LOGIN {%d}\r\n" % (tag, len(user)), _LOGIN)
            _judge(exchange, tag, (yield from exchange.reply(_ANSWER)), _GO_ON)
            yield from exchange.say(b"%b {%d}\r\n" % (user, len(password)), _LOGIN)
            _judge(exchange, tag, (yield from exchange.reply(_ANSWER)), _GO_ON)
            yield from exchange.say(password + b"\r\n", _LOGIN)
        _judge(exchange, tag, (yield from exchange.reply(_ANSWER)), tag + b" OK")
        return LoggedIn(exchange.said())


class _ImapExchange(Exchange):
    """An exchange in which a line may be under way that answers nothing."""

    __slots__ = ()

    def say(self, command: bytes, stage: UpstreamStage) -> Telling:
        """Say a command; of what was said before it only an unfinished line is kept."""
        buffer = self._buffer
        self.stage = stage
        self._buffer = b"" if buffer[-1:] == b"\n" else buffer[buffer.rfind(b"\n") + 1 :]
        return (Send(command),)


def _judge(exchange: Exchange, tag: bytes, line: bytes, hoped_for: bytes) -> None:
    """Insist on what was hoped for; only the beginning of the line is looked at."""
    if line[: len(hoped_for)] != hoped_for:
        is_honest = line.startswith((_BYE, tag + b" NO", tag + b" BAD"))
        raise exchange.refused(None if is_honest else ProtocolErrorKind.UNEXPECTED_REPLY)

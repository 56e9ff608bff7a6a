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

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.proxy_protocol import outbound_header
from mailproxy.protocols.sansio import ProtocolGenerator, Receive, Send
from mailproxy.protocols.types import Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import (
    LF,
    ONE_LINE,
    UpstreamLoginBase,
    read_reply,
    upstream_disconnected,
    upstream_refused,
)

_READY: Final = b"* OK"
_BYE: Final = b"* BYE"
_ANSWER: Final = re.compile(rb"(?:\* (?!BYE)[^\n]*\n)*((?!\* (?!BYE))[^\n]*)\n")
"""Untagged lines, which answer nothing but for BYE, and the line that counts."""
_GO_ON: Final = b"+"
_TAKES_LITERALS_AT_ONCE: Final = re.compile(
    rb"\* OK \[CAPABILITY [^\]\n]*(?<= )LITERAL\+[ \]]", re.IGNORECASE
)
_GREETING: Final = UpstreamStage.GREETING
_LOGIN: Final = UpstreamStage.LOGIN
_Step = tuple[bytes, bytes]
"""A command, and what the line that answers it is hoped to begin with."""


class ImapUpstream(UpstreamLoginBase):
    """One server's side of the conversations with IMAP upstreams."""

    __slots__ = ()

    def log_in(self, client: Client, identified: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets the tagged reply and all that came between the password and it.

        Raises:
            UpstreamRefused: The upstream said no, or what is no IMAP reply;
                everything it said in that step goes with it.
            UpstreamError: It broke off, or its lines do not fit ``proxy_buffer``.
        """
        receive, stage = self.receive, _GREETING
        try:
            if self.introduces:
                yield Send(outbound_header(self.server, client))
            heard: bytes = yield receive
            if not (heard.startswith(_READY) and LF in heard):
                heard = yield from self._hear_greeting_out(heard)
            stage = _LOGIN
            for command, hoped_for in _steps(heard, identified):
                kept = b"" if heard[-1] == LF else heard[heard.rfind(b"\n") + 1 :]
                yield Send(command)
                # a line that was under way answers nothing, and still takes room
                heard = kept + (yield Receive(self.limit - len(kept)) if kept else receive)
                if not (heard.startswith(hoped_for) and LF in heard):
                    heard = yield from self._hear_out(heard, hoped_for, identified.tag)
        except PeerDisconnected as gone:
            raise upstream_disconnected(stage) from gone
        return UpstreamLoginResult(heard)

    def _hear_greeting_out(self, heard: bytes) -> ProtocolGenerator[bytes]:
        heard = yield from read_reply(heard, ONE_LINE, self.limit, _GREETING)
        if heard.startswith(_READY):
            return heard
        raise upstream_refused(heard, _GREETING, is_honest=heard.startswith(_BYE))

    def _hear_out(self, heard: bytes, hoped_for: bytes, tag: bytes) -> ProtocolGenerator[bytes]:
        """Insist on what was hoped for; only the beginning of the line that counts is looked at."""
        heard = yield from read_reply(heard, _ANSWER, self.limit, _LOGIN)
        answer = _ANSWER.match(heard)
        line = b"" if answer is None else answer[1]
        if line.startswith(hoped_for):
            return heard
        is_bye = line.startswith(_BYE)
        is_honest = is_bye or line.startswith((tag + b" NO", tag + b" BAD"))
        raise upstream_refused(heard, _LOGIN, is_honest=is_honest, is_bye=is_bye)


def _steps(greeting: bytes, identified: UpstreamLogin) -> tuple[_Step, ...]:
    """Word LOGIN: in one go, or each literal when the upstream asks for it."""
    grant, tag = identified.grant, identified.tag
    user = grant.user
    password = b"" if grant.password is None else grant.password.reveal()
    done = tag + b" OK"
    if _TAKES_LITERALS_AT_ONCE.match(greeting):
        login = b"%b LOGIN {%d+}\r\n%b {%d+}\r\n%b\r\n" % (tag, len(user), user, len(password), password)
        return ((login, done),)
    return (
        (b"%b LOGIN {%d}\r\n" % (tag, len(user)), _GO_ON),
        (b"%b {%d}\r\n" % (user, len(password)), _GO_ON),
        (password + b"\r\n", done),
    )

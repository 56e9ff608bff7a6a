# SPDX-License-Identifier: Apache-2.0
"""Logging in at a POP3 server on a client's behalf: USER and PASS, however the client did it."""

from __future__ import annotations

from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.proxy_protocol import outbound_header
from mailproxy.protocols.sansio import ProtocolGenerator, Send
from mailproxy.protocols.sasl import is_unsafe
from mailproxy.protocols.types import AuthAllowed, Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import (
    LF,
    ONE_LINE,
    UpstreamLoginBase,
    read_reply,
    upstream_disconnected,
    upstream_error,
    upstream_refused,
)

_GREETING: Final = UpstreamStage.GREETING
_LOGIN: Final = UpstreamStage.LOGIN
_POSITIVE: Final = b"+OK"


class Pop3Upstream(UpstreamLoginBase):
    """One server's side of the conversation with POP3 upstreams."""

    __slots__ = ()

    def log_in(self, client: Client, identified: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets the reply to PASS and what came with it.

        Raises:
            UpstreamRefused: The upstream said ``-ERR``, or what is no POP3 reply.
            UpstreamError: It broke off or said too much, or these credentials
                cannot be said in a line.
        """
        receive, stage = self.receive, _GREETING
        try:
            if self.introduces:
                yield Send(outbound_header(self.server, client))
            heard: bytes = yield receive
            if not (heard.startswith(_POSITIVE) and LF in heard):
                heard = yield from self._hear_out(heard, stage)
            stage = _LOGIN
            for command in _commands(identified.grant):
                yield Send(command)
                heard = yield receive
                if not (heard.startswith(_POSITIVE) and LF in heard):
                    heard = yield from self._hear_out(heard, stage)
        except PeerDisconnected as gone:
            raise upstream_disconnected(stage) from gone
        return UpstreamLoginResult(heard)

    def _hear_out(self, heard: bytes, stage: UpstreamStage) -> ProtocolGenerator[bytes]:
        """Insist on a positive reply; only its beginning is looked at."""
        heard = yield from read_reply(heard, ONE_LINE, self.limit, stage)
        if heard.startswith(_POSITIVE):
            return heard
        raise upstream_refused(heard, stage, is_honest=heard.startswith(b"-ERR"))


def _commands(grant: AuthAllowed) -> tuple[bytes, bytes]:
    """Word the login.

    Raises:
        UpstreamError: There is no password to log in with, or something that a line cannot hold.
    """
    user, password = grant.user, grant.password
    if password is None:
        raise upstream_error("no password available", _LOGIN)
    secret = password.reveal()
    if is_unsafe(user + secret):
        raise upstream_error("control characters in the credentials for the upstream", _LOGIN)
    return b"USER " + user + b"\r\n", b"PASS " + secret + b"\r\n"

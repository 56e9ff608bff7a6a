# SPDX-License-Identifier: Apache-2.0
"""Logging in at a POP3 server on a client's behalf: USER and PASS, however the client did it."""

from __future__ import annotations

from typing import Final

from mailproxy.dialogue.actions import Dialogue
from mailproxy.dialogue.values import Client, Identified, LoggedIn
from mailproxy.events import ProtocolErrorKind, UpstreamStage
from mailproxy.protocols.exchange import Exchange
from mailproxy.protocols.sasl import is_unsafe
from mailproxy_config.model import ServerConfig

_LOGIN: Final = UpstreamStage.LOGIN


class Pop3Upstream:
    """One server's side of the conversation with POP3 upstreams."""

    __slots__ = ("_server",)

    def __init__(self, server: ServerConfig) -> None:
        self._server = server

    def log_in(self, client: Client, identified: Identified) -> Dialogue[LoggedIn]:
        """Log in; the client gets the reply to PASS and what came with it.

        Raises:
            UpstreamRefused: The upstream said ``-ERR``, or what is no POP3 reply.
            UpstreamError: It broke off or said too much, or these credentials
                cannot be said in a line.
        """
        grant = identified.grant
        exchange = Exchange(self._server.proxy_buffer)
        yield from exchange.introduce(self._server, client)
        _judge(exchange, (yield from exchange.reply()))
        password = None if grant.password is None else grant.password.reveal()
        exchange.stage = _LOGIN
        if password is None:
            raise exchange.failed("no password available")
        if is_unsafe(grant.user + password):
            raise exchange.failed("control characters in the credentials for the upstream")
        yield from exchange.say(b"USER " + grant.user + b"\r\n", _LOGIN)
        _judge(exchange, (yield from exchange.reply()))
        yield from exchange.say(b"PASS " + password + b"\r\n", _LOGIN)
        _judge(exchange, (yield from exchange.reply()))
        return LoggedIn(exchange.said())


def _judge(exchange: Exchange, line: bytes) -> None:
    """Insist on a positive reply; only its beginning is looked at."""
    if line[:3] != b"+OK":
        is_honest = line.startswith(b"-ERR")
        raise exchange.refused(None if is_honest else ProtocolErrorKind.UNEXPECTED_REPLY)

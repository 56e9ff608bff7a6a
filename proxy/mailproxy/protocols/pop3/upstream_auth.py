# SPDX-License-Identifier: Apache-2.0
"""The login at a POP3 upstream with ``proxy_auth``, a master user or an access token (RFC 5034)."""

from __future__ import annotations

import re
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.pop3.upstream import CAPABILITIES, Pop3Upstream, login_commands
from mailproxy.protocols.sansio import ProtocolGenerator, Send
from mailproxy.protocols.temporary_refusal import TEMPORARY
from mailproxy.protocols.types import NO_SECRETS, Client, LoginSecrets, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import ONE_LINE, read_reply, upstream_disconnected
from mailproxy.protocols.upstream_sasl import (
    Mechanism,
    Reply,
    UpstreamSasl,
    Verdict,
    choose,
    encode,
    exchange,
    refusal,
    uses_sasl,
)
from mailproxy_config.model import Protocol, ServerConfig
from mailproxy_config.upstream_login import ProxyAuth

_GREETING: Final = UpstreamStage.GREETING
_LOGIN: Final = UpstreamStage.LOGIN
MAX_COMMAND: Final = 255
"""Bytes of a command with its line end (RFC 2449 section 4)."""
_SASL: Final = re.compile(rb"^SASL ([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_USER: Final = re.compile(rb"^USER\b", re.IGNORECASE | re.MULTILINE)
_TEMPORARY: Final = TEMPORARY[Protocol.POP3]
"""Response codes that are not about the credentials (RFC 3206, RFC 2449)."""


class Pop3AuthUpstream(Pop3Upstream):
    """The login at one server's POP3 upstreams."""

    __slots__ = ("_sasl",)

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        super().__init__(server)
        if not self.has_prologue:
            self.prologue_stage = _LOGIN
        self._sasl = UpstreamSasl(server, secrets)
        self.has_preamble = self.has_preamble or self._sasl.has_token

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets the last reply and what came with it."""
        mechanisms = yield from self._sasl.prepare(login)
        stage = _GREETING
        try:
            if self.has_preamble:
                yield from self.preamble(client)
            received = yield from self._read_expected((yield self.receive), stage)
            stage = self.prologue_stage
            yield from self._prologue(received, client, login)
            stage, login.is_committed = _LOGIN, True
            received = yield from self._authenticate(mechanisms)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, stage) from gone
        return received

    def _authenticate(self, mechanisms: tuple[Mechanism, ...]) -> ProtocolGenerator[bytes]:
        """Choose a mechanism by the reply to CAPA, and use it."""
        names: set[bytes] = set()
        has_user, reply = True, b""
        if self._sasl.needs_list:
            yield Send(b"CAPA\r\n")
            reply = yield from read_reply((yield self.receive), CAPABILITIES, self.limit, _LOGIN)
            listed = _SASL.search(reply)
            names = set(listed[1].upper().split()) if listed is not None else set()
            has_user = not reply.startswith(b"+OK") or _USER.search(reply) is not None
        mechanism = choose(mechanisms, names, native=has_user, reply=reply)
        if mechanism.kind is ProxyAuth.NATIVE:
            return (yield from self._log_in_natively(mechanism))
        command = b"AUTH " + mechanism.name
        with_initial = command + b" " + encode(mechanism.responses[0])
        is_initial = mechanism.has_initial and len(with_initial) + 2 <= MAX_COMMAND
        if is_initial:
            command = with_initial
        return (yield from exchange(mechanism, command, self._read, is_initial=is_initial))

    def _log_in_natively(self, mechanism: Mechanism) -> ProtocolGenerator[bytes]:
        """Send USER and PASS."""
        received = b""
        for command in login_commands(mechanism.grant):
            yield Send(command)
            reply = yield from self._read(received)
            received = reply.received
            if reply.verdict is not Verdict.OK:
                raise refusal(mechanism, reply)
        return received

    def _read(self, _before: bytes) -> ProtocolGenerator[Reply]:
        """Read the reply to the last command."""
        received = yield from read_reply((yield self.receive), ONE_LINE, self.limit, _LOGIN)
        return Reply(_verdict(received), received)


def _verdict(reply: bytes) -> Verdict:
    if reply.startswith(b"+OK"):
        return Verdict.OK
    if reply.startswith((b"+ ", b"+\r", b"+\n")):
        return Verdict.CHALLENGE
    if not reply.startswith(b"-ERR"):
        return Verdict.INVALID
    return Verdict.TEMPORARY if _TEMPORARY.match(reply) else Verdict.REFUSED


def pop3_upstream(server: ServerConfig, secrets: LoginSecrets = NO_SECRETS) -> Pop3Upstream:
    """Return the login at a server's upstreams."""
    return Pop3AuthUpstream(server, secrets) if uses_sasl(server) else Pop3Upstream(server)

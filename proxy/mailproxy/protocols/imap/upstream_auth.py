# SPDX-License-Identifier: Apache-2.0
"""The login at an IMAP upstream with ``proxy_auth``, a master user or an access token.

AUTHENTICATE has the tag of the client's command, as LOGIN has.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.imap.after_login import capability_after_login
from mailproxy.protocols.imap.upstream import (
    CAPABILITIES,
    READY,
    RESPONSE,
    GuardedImapUpstream,
    ImapUpstream,
    login_steps,
    plain_imap_upstream,
    tagged,
)
from mailproxy.protocols.sansio import ProtocolGenerator, Receive, Send
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
_AUTH: Final = b"AUTH="
_TEMPORARY: Final = TEMPORARY[Protocol.IMAP]
"""Response codes that are not about the credentials (RFC 5530)."""


class ImapAuthUpstream(ImapUpstream):
    """The login at one server's IMAP upstreams."""

    __slots__ = ("_sasl",)

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        super().__init__(server)
        if not self.has_prologue:
            self.prologue_stage = _LOGIN
        self._sasl = UpstreamSasl(server, secrets)
        self.has_preamble = self.has_preamble or self._sasl.has_token

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets the tagged response and everything that came after the last command."""
        mechanisms = yield from self._sasl.prepare(login)
        stage = _GREETING
        try:
            if self.has_preamble:
                yield from self.preamble(client)
            received = yield from read_reply((yield self.receive), ONE_LINE, self.limit, stage)
            if not received.startswith(READY):
                raise self.refused_greeting(received)
            stage = self.prologue_stage
            received = yield from self._prologue(received, client, login)
            stage, login.is_committed = _LOGIN, True
            received = yield from self._authenticate(received, login, mechanisms)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, stage) from gone
        return received

    def _authenticate(
        self, greeting: bytes, login: UpstreamLogin, mechanisms: tuple[Mechanism, ...]
    ) -> ProtocolGenerator[bytes]:
        """Choose a mechanism by the capabilities, and use it."""
        listed = CAPABILITIES.match(greeting)
        if listed is None and self._sasl.needs_list:
            greeting = yield from self.ask_capabilities(greeting, login.tag)
            listed = CAPABILITIES.match(greeting)
        words = frozenset(listed[1].upper().split() if listed is not None else ())
        names = {word.removeprefix(_AUTH) for word in words if word.startswith(_AUTH)}
        mechanism = choose(mechanisms, names, native=b"LOGINDISABLED" not in words, reply=greeting)
        if mechanism.kind is ProxyAuth.NATIVE:
            return (yield from self._log_in_natively(greeting, login, mechanism))
        command = login.tag + b" AUTHENTICATE " + mechanism.name
        is_initial = b"SASL-IR" in words and mechanism.has_initial
        if is_initial:
            command += b" " + encode(mechanism.responses[0])
        read = partial(self._read, login.tag)
        return (yield from exchange(mechanism, command, read, is_initial=is_initial, before=greeting))

    def _log_in_natively(
        self, received: bytes, login: UpstreamLogin, mechanism: Mechanism
    ) -> ProtocolGenerator[bytes]:
        """Send LOGIN."""
        for command, expected in login_steps(received, replace(login, grant=mechanism.grant)):
            yield Send(command)
            reply = yield from self._read(login.tag, received)
            received = reply.received
            if not tagged(received).startswith(expected):
                raise refusal(mechanism, reply)
        return received

    def _read(self, tag: bytes, before: bytes) -> ProtocolGenerator[Reply]:
        """Read the response to the last command; an incomplete line from before it is no response to it."""
        kept = before[before.rfind(b"\n") + 1 :]
        received = kept + (yield Receive(self.limit - len(kept)))
        received = yield from read_reply(received, RESPONSE, self.limit, _LOGIN)
        return Reply(_verdict(tagged(received), tag), received)


class GuardedImapAuthUpstream(GuardedImapUpstream, ImapAuthUpstream):
    """The same with ``proxy_imap_guard``."""

    __slots__ = ()

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        ImapAuthUpstream.__init__(self, server, secrets)


def _verdict(line: bytes, tag: bytes) -> Verdict:
    if line.startswith(tag + b" OK"):
        return Verdict.OK
    if line.startswith(b"+"):
        return Verdict.CHALLENGE
    if line.startswith(b"* BYE"):
        return Verdict.GOODBYE
    if not line.startswith((tag + b" NO", tag + b" BAD")):
        return Verdict.INVALID
    return Verdict.TEMPORARY if _TEMPORARY.match(line) else Verdict.REFUSED


def imap_upstream(server: ServerConfig, secrets: LoginSecrets = NO_SECRETS) -> ImapUpstream:
    """Return the login at a server's upstreams."""
    has_guard = server.proxy_imap_guard
    if uses_sasl(server):
        kind: type[ImapUpstream] = GuardedImapAuthUpstream if has_guard else ImapAuthUpstream
        arguments: tuple[Any, ...] = (server, secrets)
    else:
        kind, arguments = plain_imap_upstream(server), (server,)
    if server.imap_capability_after_login:
        kind = capability_after_login(kind)
    return kind(*arguments)

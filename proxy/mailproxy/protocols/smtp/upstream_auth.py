# SPDX-License-Identifier: Apache-2.0
"""The login at an SMTP upstream with ``proxy_auth``, a master user or an access token (RFC 4954).

AUTH is always sent, whatever ``proxy_smtp_auth`` is; a client without a login (``smtp_auth none``) is
passed on as without these directives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import replace
from functools import lru_cache
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.sansio import ProtocolGenerator, Send
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.upstream import (
    COMPLETE,
    GREETING_REPLY,
    REPLY_220_OR_250,
    SmtpUpstream,
    Step,
)
from mailproxy.protocols.types import Client, LoginSecrets, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import read_reply, upstream_disconnected
from mailproxy.protocols.upstream_sasl import (
    CHALLENGE,
    OK,
    Fault,
    Mechanism,
    Reply,
    UpstreamSasl,
    Verdict,
    choose,
    encode,
    exchange,
    plain,
)
from mailproxy_config.model import ServerConfig
from mailproxy_config.upstream_login import ProxyAuth

_GREETING: Final = UpstreamStage.GREETING
_LOGIN: Final = UpstreamStage.LOGIN
MAX_COMMAND: Final = 512
"""Bytes of a command with its line end (RFC 5321 section 4.5.3.1.4)."""
MAX_RESPONSE: Final = 12288
"""Bytes of a response with its line end (RFC 4954 section 4)."""
_AUTH: Final = re.compile(rb"^250[- ]AUTH[ =]([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_PLAIN: Final = b"PLAIN"


class SmtpAuthUpstream(SmtpUpstream):
    """The login at one server's SMTP upstreams."""

    __slots__ = ("_sasl",)

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        super().__init__(server, sends_auth=True)
        self._sasl = UpstreamSasl(server, secrets)
        self.has_preamble = self.has_preamble or self._sasl.has_token

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets ``235``, or the reply to RCPT if it did not log in."""
        if login.envelope is not None:
            return (yield from super().log_in(client, login))
        mechanisms = yield from self._sasl.prepare(login)
        stage = _GREETING
        try:
            if self.has_preamble:
                yield from self.preamble(client)
            received = yield from self._expect(GREETING_REPLY, stage)
            login.esmtp = True  # the list of mechanisms is in the reply to EHLO
            if self.has_prologue:
                stage = self.prologue_stage
                received = yield from self._prologue(received, client, login)
            for command, stage, expected in self._hello_steps(client, login):
                yield command
                received = yield from self._expect(expected, stage)
            stage, login.is_committed = _LOGIN, True
            yield from self._authenticate(received, mechanisms)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, stage) from gone
        return replies.AUTHENTICATED

    def _hello_steps(self, client: Client, login: UpstreamLogin) -> Iterator[Step]:
        """Yield the commands up to the last EHLO, unless XCLIENT was negotiated."""
        server = self.server
        if server.negotiates_xclient:
            return
        yield self._ehlo
        if server.xclient:
            login.is_committed = True
            yield Send(self._xclient(client, login.grant)), UpstreamStage.XCLIENT, REPLY_220_OR_250
            name = login.helo or server.server_name.encode()
            yield Send(b"EHLO " + name + b"\r\n"), UpstreamStage.HELLO, self._last_reply

    def _authenticate(self, hello: bytes, mechanisms: tuple[Mechanism, ...]) -> ProtocolGenerator[None]:
        """Choose a mechanism by the reply to the last EHLO, and use it."""
        mechanism = choose(mechanisms, mechanisms_in(hello), native=True, reply=hello)
        if mechanism.kind is ProxyAuth.NATIVE:
            mechanism = _native(mechanism)
        name = _PLAIN if mechanism.kind is ProxyAuth.NATIVE else mechanism.name
        responses = tuple(map(encode, mechanism.responses))
        if any(len(response) + 2 > MAX_RESPONSE for response in responses):
            raise Fault(f"the response of {mechanism.kind} is longer than {MAX_RESPONSE} bytes")
        command = b"AUTH " + name
        with_initial = command + b" " + responses[0]
        is_initial = mechanism.has_initial and len(with_initial) + 2 <= MAX_COMMAND
        if is_initial:
            command = with_initial
        yield from exchange(mechanism, command, self._read, is_initial=is_initial)

    def _read(self, _before: bytes) -> ProtocolGenerator[Reply]:
        """Read the reply to the last command."""
        received: bytes = yield self.receive
        if COMPLETE.match(received) is None:
            received = yield from read_reply(received, COMPLETE, self.limit, _LOGIN)
        return Reply(_verdict(received), received)


@lru_cache(64)
def mechanisms_in(hello: bytes) -> Set[bytes]:
    """Return the mechanisms that a reply to EHLO lists, in upper case."""
    return {name for listed in _AUTH.finditer(hello) for name in listed[1].upper().split()}


def _native(mechanism: Mechanism) -> Mechanism:
    """Return AUTH PLAIN, which nginx sends."""
    grant = mechanism.grant
    assert grant.password is not None  # noqa: S101 - else there is no mechanism
    return replace(mechanism, responses=(plain(grant.user, grant.password.reveal()),))


def _verdict(reply: bytes) -> Verdict:
    if reply.startswith(b"235"):
        return OK
    if reply.startswith(b"334"):
        return CHALLENGE
    if reply.startswith(b"421"):
        return Verdict.GOODBYE
    if reply.startswith(b"4"):
        return Verdict.TEMPORARY
    return Verdict.REFUSED if reply.startswith(b"5") else Verdict.INVALID

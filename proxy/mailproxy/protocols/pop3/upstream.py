# SPDX-License-Identifier: Apache-2.0
"""The login at a POP3 upstream: USER and PASS, whatever the client used."""

from __future__ import annotations

import re
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected, UpstreamConfigError, UpstreamError
from mailproxy.protocols.client_identity import pop3_xclient
from mailproxy.protocols.sansio import ProtocolGenerator, Send, UpgradeToTls
from mailproxy.protocols.sasl import is_unsafe
from mailproxy.protocols.types import AuthAllowed, Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import (
    LF,
    ONE_LINE,
    UpstreamLoginBase,
    read_reply,
    upstream_disconnected,
    upstream_refused,
)
from mailproxy.protocols.upstream_tls import injected, refused
from mailproxy_config.model import SendIdentity

# Aliases of enum members: each access saves 0.25 µs on Python 3.11 and 0.08 µs on 3.13.
_GREETING: Final = UpstreamStage.GREETING
_TLS: Final = UpstreamStage.TLS
_XCLIENT: Final = UpstreamStage.XCLIENT
_LOGIN: Final = UpstreamStage.LOGIN
_POSITIVE: Final = b"+OK"
_UNTRUSTED: Final = b"not from trusted ip"
"""Dovecot's positive reply to an XCLIENT that it ignores."""
CAPABILITIES: Final = re.compile(rb"\+OK[^\n]*\n(?:(?!\.\r?\n)[^\n]*\n)*\.\r?\n|(?!\+OK)[^\n]*\n")
_LISTS_XCLIENT: Final = re.compile(rb"^XCLIENT\b", re.IGNORECASE | re.MULTILINE)


class Pop3Upstream(UpstreamLoginBase):
    """The login at one server's POP3 upstreams."""

    __slots__ = ()

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets the reply to PASS and what came with it."""
        receive, stage = self.receive, _GREETING
        try:
            if self.has_preamble:
                yield from self.preamble(client)
            received: bytes = yield receive
            if not (received.startswith(_POSITIVE) and LF in received):
                received = yield from self._read_expected(received, stage)
            if self.has_prologue:
                stage = self.prologue_stage
                yield from self._prologue(received, client, login)
            stage, login.is_committed = _LOGIN, True
            for command in login_commands(login.grant):
                yield Send(command)
                received = yield receive
                if not (received.startswith(_POSITIVE) and LF in received):
                    received = yield from self._read_expected(received, stage)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, stage) from gone
        return received

    def _prologue(self, greeting: bytes, client: Client, login: UpstreamLogin) -> ProtocolGenerator[None]:
        """Perform what comes between greeting and login: STLS, and XCLIENT."""
        if self.starts_tls:
            yield from self._start_tls(greeting)
        mode = self.server.proxy_pop3_xclient
        if mode is SendIdentity.DISABLED:
            return
        offers_xclient = b"[XCLIENT]" in greeting
        if self.starts_tls:  # the greeting came in clear
            offers_xclient = yield from self._lists_xclient()
        if not offers_xclient and mode is SendIdentity.AUTO:
            return
        login.is_committed = True
        yield Send(pop3_xclient(client, self.facts))
        received = yield from read_reply((yield self.receive), ONE_LINE, self.limit, _XCLIENT)
        if not received.startswith(_POSITIVE):
            raise UpstreamConfigError("upstream refused XCLIENT", stage=_XCLIENT, reply=received)
        if _UNTRUSTED in received.lower():
            reason = "upstream ignores XCLIENT: put the proxy's address into login_trusted_networks"
            raise UpstreamConfigError(reason, stage=_XCLIENT, reply=received)

    def _lists_xclient(self) -> ProtocolGenerator[bool]:
        """Return whether the reply to CAPA lists XCLIENT."""
        yield Send(b"CAPA\r\n")
        received = yield from read_reply((yield self.receive), CAPABILITIES, self.limit, _XCLIENT)
        return _LISTS_XCLIENT.search(received) is not None

    def _start_tls(self, greeting: bytes) -> ProtocolGenerator[None]:
        """Start TLS with STLS."""
        if greeting.find(b"\n") + 1 != len(greeting):
            raise injected("STLS")
        yield Send(b"STLS\r\n")
        received = yield from read_reply((yield self.receive), ONE_LINE, self.limit, _TLS)
        if not received.startswith(_POSITIVE):
            raise refused(received, "STLS")
        if received.find(b"\n") + 1 != len(received):
            raise injected("STLS")
        yield UpgradeToTls()

    def _read_expected(self, received: bytes, stage: UpstreamStage) -> ProtocolGenerator[bytes]:
        """Read a reply and check that it is positive."""
        received = yield from read_reply(received, ONE_LINE, self.limit, stage)
        if received.startswith(_POSITIVE):
            return received
        raise upstream_refused(received, stage, is_valid_reply=received.startswith(b"-ERR"))


def login_commands(grant: AuthAllowed) -> tuple[bytes, bytes]:
    """Return the commands USER and PASS.

    Raises:
        UpstreamError: There is no password, or the credentials contain CR, LF or NUL.
    """
    user, password = grant.user, grant.password
    if password is None:
        raise UpstreamConfigError("no password available", stage=_LOGIN)
    secret = password.reveal()
    if is_unsafe(user + secret):
        raise UpstreamError("control characters in the credentials for the upstream", stage=_LOGIN)
    return b"USER " + user + b"\r\n", b"PASS " + secret + b"\r\n"

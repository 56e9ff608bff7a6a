# SPDX-License-Identifier: Apache-2.0
"""SMTP logins that differ from client to client: AUTH or not (``Auth-SMTP``), the client's EHLO name.

Each is a class of its own, chosen by the configuration, so that other logins cost no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.protocols.sansio import ProtocolGenerator, Send
from mailproxy.protocols.smtp.upstream import SmtpUpstream, Step
from mailproxy.protocols.smtp.upstream_auth import SmtpAuthUpstream
from mailproxy.protocols.smtp.verdict import SmtpVerdictUpstream
from mailproxy.protocols.types import NO_SECRETS, Client, LoginSecrets, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import UpstreamLoginBase
from mailproxy.protocols.upstream_sasl import uses_sasl
from mailproxy_config.model import AuthMode, ServerConfig, SmtpHelo

_NAME: Final = re.compile(rb"[!-~]{1,255}")
"""A name that is sent on: printable ASCII of the length of a domain (RFC 5321 section 4.5.3.1.2)."""


class ClientHeloUpstream(SmtpUpstream):
    """The login with ``proxy_smtp_helo client``: EHLO or HELO as the client sent it, without XCLIENT.

    The name of the proxy remains where the client sent none, or one that is
    too long or not in ASCII, and in the EHLO before STARTTLS.
    """

    __slots__ = ()

    def _steps(self, client: Client, login: UpstreamLogin) -> Iterator[Step]:
        steps = super()._steps(client, login)
        if not self.server.xclient and (hello := _client_hello(login)) is not None:
            _, stage, expected = next(steps)
            yield hello, stage, expected
        yield from steps

    def _without_xclient(self, login: UpstreamLogin, hello: bytes) -> ProtocolGenerator[bytes]:
        command = _client_hello(login)
        if command is not None:
            yield command
            hello = yield from self._expect(self._last_reply, UpstreamStage.HELLO)
        return hello


class ClientHeloAuthUpstream(ClientHeloUpstream, SmtpAuthUpstream):
    """The same with ``proxy_auth``, a master user or an access token."""

    __slots__ = ()

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        SmtpAuthUpstream.__init__(self, server, secrets)

    def _hello_steps(self, client: Client, login: UpstreamLogin) -> Iterator[Step]:
        steps = super()._hello_steps(client, login)
        server = self.server
        if not (server.xclient or server.negotiates_xclient) and (hello := _client_hello(login)) is not None:
            _, stage, _ = next(steps)
            yield hello, stage, self._last_reply
        yield from steps


class ClientHeloVerdictUpstream(ClientHeloAuthUpstream, SmtpVerdictUpstream):
    """The same with ``auth_mode upstream``."""

    __slots__ = ()

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        SmtpVerdictUpstream.__init__(self, server, secrets)


class PerLoginAuthUpstream(UpstreamLoginBase):
    """The login with ``proxy_smtp_auth``, except where the service sends ``Auth-SMTP: no``.

    Such a login is the one without ``proxy_smtp_auth``: XCLIENT then has the user name.
    """

    __slots__ = ("_with_auth", "_without_auth")

    def __init__(self, with_auth: SmtpUpstream, without_auth: SmtpUpstream) -> None:
        super().__init__(with_auth.server)
        self._with_auth = with_auth
        self._without_auth = without_auth

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in with AUTH, or without."""
        upstream = self._with_auth if login.grant.smtp_auth else self._without_auth
        return upstream.log_in(client, login)


def smtp_upstream(server: ServerConfig, secrets: LoginSecrets = NO_SECRETS) -> UpstreamLoginBase:
    """Return the login at a server's upstreams."""
    has_client_name = server.proxy_smtp_helo is SmtpHelo.CLIENT
    if server.auth_mode is AuthMode.UPSTREAM:
        return (ClientHeloVerdictUpstream if has_client_name else SmtpVerdictUpstream)(server, secrets)
    kind = ClientHeloUpstream if has_client_name else SmtpUpstream
    upstream: SmtpUpstream
    if uses_sasl(server):
        upstream = (ClientHeloAuthUpstream if has_client_name else SmtpAuthUpstream)(server, secrets)
    elif server.proxy_smtp_auth:
        upstream = kind(server)
    else:
        return kind(server)
    return PerLoginAuthUpstream(upstream, kind(replace(server, proxy_smtp_auth=False)))


def _client_hello(login: UpstreamLogin) -> Send | None:
    """Return the client's EHLO or HELO, ``None`` if its name must not be sent on."""
    name = login.helo
    if name is None or _NAME.fullmatch(name) is None:
        return None
    return Send((b"EHLO " if login.esmtp else b"HELO ") + name + b"\r\n")

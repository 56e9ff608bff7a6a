# SPDX-License-Identifier: Apache-2.0
"""SMTP logins that the upstream decides about (``auth_mode upstream``).

Mail is relayed only after the upstream's 235 to the client's own credentials.  XCLIENT never has LOGIN,
which would make the upstream believe that the client has logged in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import UpstreamRefused
from mailproxy.protocols.sansio import ProtocolGenerator, Send
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.frontend import SmtpFrontendConfig
from mailproxy.protocols.smtp.tempfail import SmtpTempfailFrontend
from mailproxy.protocols.smtp.upstream_auth import MAX_RESPONSE, SmtpAuthUpstream, mechanisms_in
from mailproxy.protocols.types import Client, LoginSecrets, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_sasl import CHALLENGE, Fault, Mechanism, Verdict, choose, respond
from mailproxy.protocols.verdict import VerdictFrontend
from mailproxy_config.model import ServerConfig
from mailproxy_config.upstream_login import ProxyAuth

MAX_MESSAGE: Final = (MAX_RESPONSE - 2) // 4 * 3
"""Bytes of a message whose base64 fits into a response."""
_PASSWORDS: Final = {ProxyAuth.NATIVE: (ProxyAuth.PLAIN, ProxyAuth.LOGIN)}
"""The mechanisms instead of nginx's AUTH PLAIN."""
_AUTH: Final = {kind: Send(f"AUTH {kind.upper()}\r\n".encode()) for kind in ProxyAuth}


class SmtpVerdictFrontend(VerdictFrontend[SmtpFrontendConfig], SmtpTempfailFrontend):
    """The server side of an SMTP session that goes on after a refusal."""

    __slots__ = ()

    def refused_reply(self, reply: bytes = b"") -> bytes:
        """Return the reply to refused credentials (RFC 4954 section 6)."""
        return replies.REFUSED


class SmtpVerdictUpstream(SmtpAuthUpstream):
    """The login at one server's SMTP upstreams.

    AUTH is sent without an initial response: then no reply to it can depend on the credentials, and one
    without 334 is an error of the configuration.  XCLIENT is sent where the upstream lists it,
    with ``xclient_mode always``, too (``ServerConfig.negotiates_xclient``): most upstreams refuse it, and no
    login depends on it.
    """

    __slots__ = ()

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        mechanisms = dict.fromkeys(
            each for listed in server.proxy_auth for each in _PASSWORDS.get(listed, (listed,))
        )
        super().__init__(replace(server, proxy_auth=tuple(mechanisms)), secrets)

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets ``235``.

        Raises:
            Fault: The client has not sent credentials (``smtp_auth none``).
        """
        return super().log_in(client, login) if login.envelope is None else _refuse()

    def _authenticate(self, hello: bytes, mechanisms: tuple[Mechanism, ...]) -> ProtocolGenerator[None]:
        """Choose a mechanism by the reply to the last EHLO, and use it."""
        mechanism = choose(mechanisms, mechanisms_in(hello), native=False, reply=hello)
        if any(len(response) > MAX_MESSAGE for response in mechanism.responses):
            # a refusal: whether a login is possible must not depend on the length of the password
            raise UpstreamRefused(b"", stage=UpstreamStage.LOGIN, is_denial=True)
        yield _AUTH[mechanism.kind]
        reply = yield from self._read(b"")
        if reply.verdict is not CHALLENGE and reply.verdict is not Verdict.GOODBYE:
            raise Fault("upstream did not continue AUTH: its reply is not 334", reply.received)
        yield from respond(mechanism, list(mechanism.responses), reply, self._read)


def _refuse() -> ProtocolGenerator[UpstreamLoginResult]:
    yield from ()
    raise Fault("a client without credentials cannot be passed on with authMode Upstream")

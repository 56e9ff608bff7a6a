# SPDX-License-Identifier: Apache-2.0
"""SMTP logins that the upstream decides about (``auth_mode upstream``).

Mail is relayed only after the upstream's 235 to the client's own credentials.  XCLIENT never has LOGIN,
which would make the upstream believe that the client has logged in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from mailproxy.enums import UpstreamStage
from mailproxy.errors import UpstreamRefused
from mailproxy.protocols.sansio import ProtocolGenerator
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.frontend import SmtpFrontendConfig
from mailproxy.protocols.smtp.tempfail import SmtpTempfailFrontend
from mailproxy.protocols.smtp.upstream_auth import MAX_RESPONSE, SmtpAuthUpstream, mechanisms_in
from mailproxy.protocols.types import Client, LoginSecrets, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_sasl import (
    Fault,
    Mechanism,
    Reply,
    Verdict,
    choose,
    encode,
    exchange,
    plain,
)
from mailproxy.protocols.verdict import VerdictFrontend
from mailproxy_config.model import ServerConfig, XclientMode
from mailproxy_config.upstream_login import ProxyAuth

_ANSWERS: Final = frozenset({Verdict.CHALLENGE, Verdict.GOODBYE})
"""Replies to AUTH without an initial response that have a meaning."""


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
    with ``xclient_mode always``, too: most upstreams refuse it, and no login depends on it.
    """

    __slots__ = ()

    def __init__(self, server: ServerConfig, secrets: LoginSecrets) -> None:
        if server.xclient and server.xclient_mode is XclientMode.ALWAYS:
            server = replace(server, xclient_mode=XclientMode.AUTO)
        super().__init__(server, secrets)

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client gets ``235``.

        Raises:
            Fault: The client has not sent credentials (``smtp_auth none``).
        """
        if login.envelope is not None:
            raise Fault("a client without credentials cannot be passed on with authMode Upstream")
        return (yield from super().log_in(client, login))

    def _authenticate(self, hello: bytes, mechanisms: tuple[Mechanism, ...]) -> ProtocolGenerator[None]:
        """Choose a mechanism by the reply to the last EHLO, and use it."""
        names = mechanisms_in(hello)
        usable = [_with_password(each, names) for each in mechanisms]
        mechanism = choose(usable, names, native=False, reply=hello)
        if any(len(encode(response)) + 2 > MAX_RESPONSE for response in mechanism.responses):
            # a refusal: whether a login is possible must not depend on the length of the password
            raise UpstreamRefused(b"", stage=UpstreamStage.LOGIN, is_denial=True)
        yield from exchange(mechanism, b"AUTH " + mechanism.name, self._read_answer, is_initial=False)

    def _read_answer(self, before: bytes) -> ProtocolGenerator[Reply]:
        """Read the reply to AUTH, before which nothing was received, or to a response."""
        reply = yield from self._read(before)
        if not before and reply.verdict not in _ANSWERS:
            raise Fault("upstream did not continue AUTH: its reply is not 334", reply.received)
        return reply


def _with_password(mechanism: Mechanism, names: Collection[bytes]) -> Mechanism:
    """Return PLAIN or LOGIN, as the upstream lists them, instead of ``Native``."""
    if mechanism.kind is not ProxyAuth.NATIVE:
        return mechanism
    grant = mechanism.grant
    assert grant.password is not None  # noqa: S101 - else there is no mechanism
    user, password = grant.user, grant.password.reveal()
    if b"LOGIN" in names and b"PLAIN" not in names:
        return Mechanism(ProxyAuth.LOGIN, grant, (user, password))
    return Mechanism(ProxyAuth.PLAIN, grant, (plain(user, password),))

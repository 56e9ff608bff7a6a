# SPDX-License-Identifier: Apache-2.0
"""The SMTP server side for trusted clients: XCLIENT names the original client (Postfix, XCLIENT_README)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Final

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.client_identity import MAX_LINE
from mailproxy.protocols.frontend import CommandHandling, CommandResult
from mailproxy.protocols.received_identity import SMTP_ATTRIBUTES, Facts, InvalidIdentity, smtp_facts
from mailproxy.protocols.sansio import ProtocolGenerator, Send, resolve_client
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.frontend import SmtpFrontend, SmtpFrontendConfig, SmtpWithoutAuthFrontend
from mailproxy.protocols.trusted_frontend import TrustedFrontend
from mailproxy.protocols.types import UNAVAILABLE
from mailproxy_config.model import ByteCount, ServerConfig, StartTls

_XCLIENT: Final = b"XCLIENT"
_CAPABILITY: Final = f"XCLIENT {SMTP_ATTRIBUTES}"


class SmtpTrustedFrontendConfig(SmtpFrontendConfig):
    """What all frontends of trusted clients share; their reply to EHLO has XCLIENT, where it is allowed.

    Attributes:
        capabilities_after: The reply to EHLO after XCLIENT: it would be refused.
        capabilities_after_in_clear: The same before TLS; STARTTLS would be refused, too.
    """

    __slots__ = ("capabilities_after", "capabilities_after_in_clear")

    def __init__(self, server: ServerConfig) -> None:
        buffer = ByteCount(max(server.smtp_client_buffer, MAX_LINE))
        super().__init__(replace(server, smtp_client_buffer=buffer))
        in_clear = () if server.starttls is StartTls.ONLY else (_CAPABILITY,)
        self.capabilities_after = self.capabilities
        without_tls = tuple(line for line in server.smtp_capabilities if line.upper() != "REQUIRETLS")
        self.capabilities_after_in_clear = Send(
            replies.capabilities(replace(server, smtp_capabilities=without_tls))
        )
        self.capabilities = Send(replies.capabilities(server, more=(_CAPABILITY,)))
        self.capabilities_in_clear = Send(replies.capabilities(server, server.starttls, in_clear))


class SmtpTrustedFrontend(TrustedFrontend[SmtpFrontendConfig], SmtpFrontend):
    """The server side of a trusted client's session.

    LOGIN is no attribute: XCLIENT names a client, and does not log it in.
    """

    __slots__ = ()

    def handle_command(self, line: bytes) -> CommandHandling:
        """Handle XCLIENT, and every other command as for any client."""
        word, _, arguments = line.partition(b" ")
        if word.upper() == _XCLIENT:
            return self._xclient(arguments)
        return super().handle_command(line)

    def _set_helo(self, helo: bytes, *, extended: bool) -> Send:
        """HELO and EHLO: upstreams and the authentication service get those of the original client."""
        reply = super()._set_helo(helo, extended=extended)
        received, config = self.client.received, self.config
        if received is None:
            return reply
        self.helo = received.helo or helo
        self.esmtp = self.esmtp if received.is_esmtp is None else received.is_esmtp
        if not extended:
            return reply
        assert isinstance(config, SmtpTrustedFrontendConfig)  # noqa: S101 - as the registry makes it
        return config.capabilities_after_in_clear if self.client.tls is None else config.capabilities_after

    def _xclient(self, arguments: bytes) -> ProtocolGenerator[CommandResult]:
        try:
            facts = smtp_facts(arguments)
            refusal = self._refusal(facts)
            if refusal is not None:
                yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE, refusal)
                return None
            yield from self.name_client(facts, (), b"")  # there is no TTL
        except InvalidIdentity:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS, replies.INVALID_ARGUMENT)
            return None
        self.helo = self.mail = None
        self.esmtp = False
        if b"NAME" not in facts and b"ADDR" in facts:
            has_resolver = self.server.resolver is not None
            self.client.host = (yield from resolve_client()) if has_resolver else UNAVAILABLE
        yield self.config.greeting
        return None

    def _refusal(self, facts: Facts) -> bytes | None:
        """Return the reply to XCLIENT that comes too late, too early, or twice.

        A second one directly after the first may have the attributes that did not fit into its line.
        """
        if self.is_tls_missing:
            return replies.TLS_REQUIRED
        received = self.client.received
        is_rest = received is not None and self.helo is None and received.attributes.isdisjoint(facts)
        if self.login_attempts or self.mail is not None or not (is_rest or received is None):
            return replies.BAD_SEQUENCE
        return None


@cache
def _without_auth() -> type[SmtpFrontend]:
    bases = (SmtpTrustedFrontend, SmtpWithoutAuthFrontend)
    return type("SmtpTrustedWithoutAuthFrontend", bases, {"__slots__": ()})


def smtp_trusted_frontend(server: ServerConfig) -> type[SmtpFrontend]:
    """Return the class of trusted clients' sessions."""
    return SmtpTrustedFrontend if server.smtp_auth_command else _without_auth()

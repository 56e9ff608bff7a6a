# SPDX-License-Identifier: Apache-2.0
"""The POP3 server side for trusted clients: Dovecot's XCLIENT names the original client."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.client_identity import MAX_POP3_LINE
from mailproxy.protocols.frontend import CommandHandling, CommandResult
from mailproxy.protocols.pop3 import replies
from mailproxy.protocols.pop3.frontend import Pop3Frontend, Pop3FrontendConfig
from mailproxy.protocols.received_identity import InvalidIdentity, pop3_facts
from mailproxy.protocols.sansio import ProtocolGenerator, Send, send
from mailproxy.protocols.trusted_frontend import TrustedFrontend
from mailproxy_config.model import ByteCount, ServerConfig

_XCLIENT: Final = b"XCLIENT"
_TRUSTED_GREETING: Final = Send(replies.TRUSTED_GREETING)


class Pop3TrustedFrontend(TrustedFrontend[Pop3FrontendConfig], Pop3Frontend):
    """The server side of a trusted client's session."""

    __slots__ = ()

    def handle_command(self, line: bytes) -> CommandHandling:
        """Handle XCLIENT, and every other command as for any client."""
        word, _, arguments = line.partition(b" ")
        if word.upper() == _XCLIENT:
            return self._xclient(arguments)
        return super().handle_command(line)

    def _xclient(self, arguments: bytes) -> ProtocolGenerator[CommandResult]:
        user, self.user = self.user, None
        if user is not None or not self.may_name_client:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE)
            return None
        try:
            ended = yield from self.name_client(*pop3_facts(arguments), replies.PROXY_LOOP)
        except InvalidIdentity:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS)
            return None
        if ended is None:
            yield from send(replies.OK)
        return ended


def pop3_trusted_config(server: ServerConfig) -> Pop3FrontendConfig:
    """Return what all frontends of trusted clients share: room for the longest XCLIENT, the greeting."""
    buffer = ByteCount(max(server.pop3_client_buffer, MAX_POP3_LINE))
    return Pop3FrontendConfig(replace(server, pop3_client_buffer=buffer), _TRUSTED_GREETING)

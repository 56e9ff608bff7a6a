# SPDX-License-Identifier: Apache-2.0
"""The IMAP server side for trusted clients: ID with Dovecot's keys names the original client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.client_identity import MAX_ID_LINE
from mailproxy.protocols.frontend import CommandResult
from mailproxy.protocols.imap import replies
from mailproxy.protocols.imap.frontend import ImapFrontendConfig
from mailproxy.protocols.imap.id_frontend import ImapIdFrontend
from mailproxy.protocols.imap_id import Pair
from mailproxy.protocols.received_identity import InvalidIdentity, id_facts
from mailproxy.protocols.sansio import ProtocolGenerator, send
from mailproxy.protocols.trusted_frontend import TrustedFrontend
from mailproxy_config.model import ByteCount, ImapId, ServerConfig


class ImapTrustedFrontend(TrustedFrontend[ImapFrontendConfig], ImapIdFrontend):
    """The server side of a trusted client's session."""

    __slots__ = ()

    def _answer_id(self, pairs: Sequence[Pair]) -> ProtocolGenerator[CommandResult]:
        """ID: the first one with the keys of a proxy names the client; any other one is ordinary."""
        try:
            facts, forwarded = id_facts(pairs)
            if not (facts or forwarded) or not self.may_name_client:
                return (yield from super()._answer_id(pairs))
            ended = yield from self.name_client(facts, forwarded, replies.proxy_loop(self._tag))
        except InvalidIdentity:
            return (yield from self.count_error(ProtocolErrorKind.BAD_ARGUMENTS))
        if ended is None:
            yield from send(replies.trusted_id_completed(self._tag))
        return ended


def imap_trusted_config(server: ServerConfig) -> ImapFrontendConfig:
    """Return what all frontends of trusted clients share: room for the longest ID, which is announced."""
    buffer = ByteCount(max(server.imap_client_buffer, MAX_ID_LINE))
    return ImapFrontendConfig(replace(server, imap_id_command=ImapId.ANSWER, imap_client_buffer=buffer))

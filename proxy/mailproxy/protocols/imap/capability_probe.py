# SPDX-License-Identifier: Apache-2.0
"""The capabilities of an IMAP upstream before login."""

from __future__ import annotations

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.capability_probe import CapabilityProbe, end_session
from mailproxy.protocols.imap.upstream import CAPABILITIES, READY, ImapUpstream
from mailproxy.protocols.sansio import ProtocolGenerator
from mailproxy.protocols.types import Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import ONE_LINE, read_reply, upstream_disconnected


class ImapCapabilityProbe(CapabilityProbe, ImapUpstream):
    """Greeting, perhaps STARTTLS, CAPABILITY, LOGOUT."""

    __slots__ = ()

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Return the words of the CAPABILITY response, none if there was no such response."""
        stage = UpstreamStage.GREETING
        try:
            if self.has_preamble:
                yield from self.preamble(client)
            received = yield from read_reply((yield self.receive), ONE_LINE, self.limit, stage)
            if not received.startswith(READY):
                raise self.refused_greeting(received)
            stage = self.prologue_stage
            if self.starts_tls:
                received = yield from self._start_tls(received, login.tag)
            received = yield from self.ask_capabilities(received, login.tag)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, stage) from gone
        yield from end_session(login.tag + b" LOGOUT\r\n")
        listed = CAPABILITIES.match(received)
        return b"" if listed is None else listed[1]

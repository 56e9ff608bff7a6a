# SPDX-License-Identifier: Apache-2.0
"""The extensions of an SMTP upstream."""

from __future__ import annotations

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.capability_probe import CapabilityProbe, end_session
from mailproxy.protocols.sansio import ProtocolGenerator
from mailproxy.protocols.smtp.upstream import COMPLETE, GREETING_REPLY, SmtpUpstream
from mailproxy.protocols.types import Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import read_reply, upstream_disconnected, upstream_refused


class SmtpCapabilityProbe(CapabilityProbe, SmtpUpstream):
    """Greeting, perhaps STARTTLS, EHLO, QUIT."""

    __slots__ = ()

    def log_in(self, client: Client, _login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Return the reply to EHLO."""
        stage = UpstreamStage.GREETING
        try:
            if self.has_preamble:
                yield from self.preamble(client)
            received = yield from self._expect(GREETING_REPLY, stage)
            if self.starts_tls:
                stage = UpstreamStage.TLS
                yield from self._start_tls(received)
            stage = UpstreamStage.HELLO
            yield self._ehlo[0]
            received = yield from read_reply((yield self.receive), COMPLETE, self.limit, stage)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, stage) from gone
        if not received.startswith(b"250"):
            raise upstream_refused(received, stage, is_valid_reply=received[:1] in b"45")
        yield from end_session(b"QUIT\r\n")
        return received

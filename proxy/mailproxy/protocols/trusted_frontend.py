# SPDX-License-Identifier: Apache-2.0
"""Sessions of trusted clients, which may name the original client before login (``real_ip_command``)."""

from __future__ import annotations

from typing import Final

from mailproxy.enums import ClientNamed, CloseReason, LogNote
from mailproxy.protocols.frontend import ConfigT, Frontend
from mailproxy.protocols.received_identity import Facts, ForwardedFacts, ProxyLoop, apply_identity
from mailproxy.protocols.sansio import ProtocolGenerator, note, send
from mailproxy.protocols.types import SessionEnd

PROXY_LOOP: Final = "client has come through too many proxies"


class TrustedFrontend(Frontend[ConfigT]):
    """A frontend that lets its client name the original one; the first base of a protocol's class.

    The name counts once, and before any login.  It is not accepted in clear where logins are not; and
    there is no STARTTLS after it, as somebody on the network may have put it before STARTTLS
    (RFC 3207 section 4.2).
    """

    __slots__ = ()

    @property
    def is_tls_offered(self) -> bool:
        """Whether STARTTLS is allowed now."""
        return self.client.received is None and super().is_tls_offered

    @property
    def may_name_client(self) -> bool:
        """Whether the client may be named now."""
        return self.client.received is None and not self.login_attempts and not self.is_tls_missing

    def name_client(
        self, facts: Facts, forwarded: ForwardedFacts, loop_reply: bytes
    ) -> ProtocolGenerator[SessionEnd | None]:
        """Replace what is known about the client; the caller sends the reply to that.

        Args:
            facts: What the client has sent.
            forwarded: Facts that are only sent on.
            loop_reply: The reply to a client that has come through too many proxies.

        Returns:
            ``SessionEnd`` after ``loop_reply``.

        Raises:
            InvalidIdentity: A value is malformed; nothing was replaced.
        """
        try:
            apply_identity(self.client, facts, forwarded)
        except ProxyLoop:
            yield from note(LogNote(PROXY_LOOP, is_ours=True))
            yield from send(loop_reply)
            return SessionEnd(CloseReason.PROTOCOL_ERROR)
        yield from note(ClientNamed())
        return None

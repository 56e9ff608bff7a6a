# SPDX-License-Identifier: Apache-2.0
"""POP3 logins that the upstream decides about (``auth_mode upstream``)."""

from __future__ import annotations

from mailproxy.protocols.pop3 import replies
from mailproxy.protocols.pop3.frontend import Pop3FrontendConfig
from mailproxy.protocols.pop3.tempfail import Pop3TempfailFrontend
from mailproxy.protocols.verdict import VerdictFrontend


class Pop3VerdictFrontend(VerdictFrontend[Pop3FrontendConfig], Pop3TempfailFrontend):
    """The server side of a POP3 session that goes on after a refusal."""

    __slots__ = ()

    def refused_reply(self, reply: bytes = b"") -> bytes:
        """Return the error reply with the code for credentials (RFC 3206 section 5)."""
        return replies.REFUSED

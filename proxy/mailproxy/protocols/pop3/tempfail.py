# SPDX-License-Identifier: Apache-2.0
"""POP3 with ``proxy_tempfail rfc5530``: the response code of temporary failures (RFC 3206 section 4)."""

from __future__ import annotations

from mailproxy.protocols.pop3 import replies
from mailproxy.protocols.pop3.frontend import Pop3Frontend, Pop3FrontendConfig
from mailproxy.protocols.tempfail import TempfailFrontend


class Pop3TempfailFrontend(TempfailFrontend[Pop3FrontendConfig], Pop3Frontend):
    """The server side of a POP3 session that goes on after an outage."""

    __slots__ = ()

    def outage_reply(self, *, is_misconfigured: bool) -> bytes:
        """Return the error reply; the next login begins with USER, APOP or AUTH."""
        return replies.OUTAGE

# SPDX-License-Identifier: Apache-2.0
"""IMAP with ``proxy_tempfail rfc5530``: a tagged NO with a response code (RFC 5530 section 3)."""

from __future__ import annotations

from mailproxy.protocols.imap import replies
from mailproxy.protocols.imap.frontend import ImapFrontend, ImapFrontendConfig
from mailproxy.protocols.tempfail import TempfailFrontend


class ImapTempfailFrontend(TempfailFrontend[ImapFrontendConfig], ImapFrontend):
    """The server side of an IMAP session that goes on after an outage."""

    __slots__ = ()

    def outage_reply(self, *, is_misconfigured: bool) -> bytes:
        """Return NO with the tag of the command, and ``SERVERBUG`` or ``UNAVAILABLE``."""
        return replies.outage(self._tag, b"SERVERBUG" if is_misconfigured else b"UNAVAILABLE")

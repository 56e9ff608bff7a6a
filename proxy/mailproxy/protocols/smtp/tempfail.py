# SPDX-License-Identifier: Apache-2.0
"""SMTP with ``proxy_tempfail rfc5530``: temporary failures of AUTH (RFC 4954 section 6) and RCPT."""

from __future__ import annotations

from typing import Final

from mailproxy.protocols.frontend import CommandHandling
from mailproxy.protocols.sansio import Send
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.frontend import SmtpFrontend, SmtpFrontendConfig
from mailproxy.protocols.tempfail import TempfailFrontend
from mailproxy.protocols.types import AuthRequest, Client, Credentials, Envelope

_NO_RECIPIENT: Final = Send(replies.UNAVAILABLE)


class SmtpTempfailFrontend(TempfailFrontend[SmtpFrontendConfig], SmtpFrontend):
    """The server side of an SMTP session that goes on after an outage.

    Without authentication (``smtp_auth none``) RCPT is the command that fails.  MAIL stays valid: the
    client may send another RCPT, or RSET.  A client that pipelines DATA behind RCPT gets a
    temporary failure for it, too, and not the reply to an unknown command.
    """

    __slots__ = ("_has_envelope",)

    def __init__(self, config: SmtpFrontendConfig, client: Client) -> None:
        super().__init__(config, client)
        self._has_envelope = False

    def auth_request(self, credentials: Credentials, envelope: Envelope | None = None) -> AuthRequest:
        """Make the request to the authentication service for one more login."""
        self._has_envelope = envelope is not None
        return super().auth_request(credentials, envelope)

    def handle_command(self, line: bytes) -> CommandHandling:
        """Handle a command; DATA after a failed RCPT is one."""
        if self._has_envelope and self.mail is not None and line.upper() == b"DATA":
            return _NO_RECIPIENT
        return super().handle_command(line)

    def outage_reply(self, *, is_misconfigured: bool) -> bytes:
        """Return the reply to AUTH, or to RCPT."""
        return replies.UNAVAILABLE if self._has_envelope else replies.TEMPORARY_FAILURE

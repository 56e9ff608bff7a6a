# SPDX-License-Identifier: Apache-2.0
"""BDAT before login, where CHUNKING may be announced (``smtp_capabilities_from upstream``).

A client that pipelines sends the chunk behind the command.  It must not be read as commands, so the
connection is closed (RFC 3030).
"""

from __future__ import annotations

from functools import cache
from typing import Final

from mailproxy.enums import CloseReason, ProtocolErrorKind
from mailproxy.protocols.frontend import CommandHandling, CommandResult
from mailproxy.protocols.sansio import ProtocolGenerator, send
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.frontend import SmtpFrontend
from mailproxy.protocols.types import SessionEnd

_BDAT: Final = (b"BDAT", b"BDAT ")


class BdatFrontend(SmtpFrontend):
    """A frontend that ends the session at BDAT; the first base of a class derived from another one."""

    __slots__ = ()

    def handle_command(self, line: bytes) -> CommandHandling:
        """Refuse BDAT, whatever its arguments."""
        return self._refuse_bdat() if line[:5].upper() in _BDAT else super().handle_command(line)

    def _refuse_bdat(self) -> ProtocolGenerator[CommandResult]:
        yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE, replies.BDAT_REFUSED)
        yield from send(replies.BDAT_CLOSES)
        return SessionEnd(CloseReason.PROTOCOL_ERROR)


@cache
def with_bdat(frontend: type[SmtpFrontend]) -> type[SmtpFrontend]:
    """Return a frontend class that refuses BDAT."""
    return type(f"Bdat{frontend.__name__}", (BdatFrontend, frontend), {"__slots__": ()})

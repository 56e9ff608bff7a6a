# SPDX-License-Identifier: Apache-2.0
"""IMAP logins that the upstream decides about (``auth_mode upstream``)."""

from __future__ import annotations

import re
from typing import Final

from mailproxy.protocols.imap import replies
from mailproxy.protocols.imap.frontend import ImapFrontendConfig
from mailproxy.protocols.imap.tempfail import ImapTempfailFrontend
from mailproxy.protocols.imap.upstream import tagged
from mailproxy.protocols.verdict import REFUSED, VerdictFrontend

MAX_TEXT: Final = 200
"""Bytes of an upstream's text that a client gets."""
_CODED: Final = re.compile(
    rb"[^ ]+ NO \[([A-Z][A-Z0-9-]{0,31})\] ?([ -~]{0,%d})[ -~]*\r?" % MAX_TEXT, re.IGNORECASE
)
"""A refusal with a response code that has no arguments, in printable ASCII."""
_AUTHENTICATIONFAILED: Final = b"AUTHENTICATIONFAILED"
_REPLACED: Final = frozenset({_AUTHENTICATIONFAILED, b"NONEXISTENT"})
"""Codes that depend on whether the user exists."""


class ImapVerdictFrontend(VerdictFrontend[ImapFrontendConfig], ImapTempfailFrontend):
    """The server side of an IMAP session that goes on after a refusal."""

    __slots__ = ()

    def refused_reply(self, reply: bytes = b"") -> bytes:
        """Return NO, with a code and text of the upstream if that is about the user's account (RFC 5530)."""
        coded = _CODED.fullmatch(tagged(reply))
        if coded is None or coded[1].upper() in _REPLACED:
            return replies.refused(self._tag, _AUTHENTICATIONFAILED, REFUSED)
        return replies.refused(self._tag, coded[1].upper(), coded[2].strip() or REFUSED)

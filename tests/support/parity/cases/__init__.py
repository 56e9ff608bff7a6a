# SPDX-License-Identifier: Apache-2.0
"""All written dialogues, and their server blocks."""

from __future__ import annotations

from typing import Final

from support.parity.cases import (
    auth_responses,
    imap,
    logins,
    pop3,
    proxy_protocol,
    quirks,
    resolver,
    resumption,
    services,
    settings,
    smtp,
    timeouts,
    tls,
    upstreams,
)

_TABLES: Final = (
    imap,
    pop3,
    smtp,
    logins,
    auth_responses,
    services,
    upstreams,
    settings,
    tls,
    resumption,
    proxy_protocol,
    resolver,
    timeouts,
    quirks,
)

BLOCKS: Final = tuple(block for table in _TABLES for block in table.BLOCKS)
DIALOGUES: Final = tuple(dialogue for table in _TABLES for dialogue in table.DIALOGUES)

# SPDX-License-Identifier: Apache-2.0
"""IMAP: commands in, replies out, and the two conversations before the relay (RFC 9051, RFC 3501)."""

from __future__ import annotations

from typing import Final

from mailproxy.protocols.imap import replies
from mailproxy.protocols.imap.frontend import ImapFrontendConfig
from mailproxy.protocols.imap.upstream import ImapUpstream
from mailproxy.protocols.registry import MailProtocol
from mailproxy_config.model import Protocol

IMAP: Final = MailProtocol(
    name=Protocol.IMAP,
    ports=frozenset((143, 993)),
    alpn=b"imap",
    frontend=ImapFrontendConfig,
    upstream=ImapUpstream,
    internal_error=replies.INTERNAL_ERROR,
    shutdown=replies.SHUTDOWN,
    busy=replies.BUSY,
)

__all__ = ["IMAP"]

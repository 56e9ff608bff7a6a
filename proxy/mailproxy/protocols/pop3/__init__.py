# SPDX-License-Identifier: Apache-2.0
"""POP3 as nginx's mail proxy speaks it."""

from __future__ import annotations

from typing import Final

from mailproxy.protocols.pop3 import replies
from mailproxy.protocols.pop3.frontend import Pop3FrontendConfig
from mailproxy.protocols.pop3.upstream import Pop3Upstream
from mailproxy.protocols.registry import MailProtocol
from mailproxy_config.model import Protocol

__all__ = ["POP3"]

POP3: Final = MailProtocol(
    name=Protocol.POP3,
    ports=frozenset((110, 995)),
    alpn=b"pop3",
    frontend=Pop3FrontendConfig,
    upstream=Pop3Upstream,
    internal_error=replies.INTERNAL_ERROR,
    shutdown=replies.SHUTDOWN,
    busy=replies.BUSY,
)

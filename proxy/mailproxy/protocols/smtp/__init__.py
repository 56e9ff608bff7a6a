# SPDX-License-Identifier: Apache-2.0
"""SMTP as nginx's mail proxy speaks it: submission and relaying, up to the login or the first recipient."""

from __future__ import annotations

from typing import Final

from mailproxy.protocols.registry import MailProtocol
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.frontend import SmtpFrontendConfig
from mailproxy.protocols.smtp.upstream import SmtpUpstream
from mailproxy_config.model import Protocol

__all__ = ["SMTP"]

SMTP: Final = MailProtocol(
    name=Protocol.SMTP,
    ports=frozenset((25, 465, 587)),
    alpn=b"smtp",
    frontend=SmtpFrontendConfig,
    upstream=SmtpUpstream,
    internal_error=replies.INTERNAL_ERROR,
    shutdown=replies.SHUTDOWN,
    busy=replies.BUSY,
)

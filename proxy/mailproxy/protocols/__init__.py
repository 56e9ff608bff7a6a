# SPDX-License-Identifier: Apache-2.0
"""The conversations in each mail protocol, with clients and with upstreams.  Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mailproxy.protocols.imap import IMAP
from mailproxy.protocols.pop3 import POP3
from mailproxy.protocols.registry import MailProtocol
from mailproxy.protocols.smtp import SMTP
from mailproxy_config.model import Protocol

__all__ = ["PROTOCOLS"]

PROTOCOLS: Final[Mapping[Protocol, MailProtocol]] = MappingProxyType(
    {
        Protocol.IMAP: IMAP,
        Protocol.POP3: POP3,
        Protocol.SMTP: SMTP,
    }
)
"""The three protocols, by nginx's names for them."""

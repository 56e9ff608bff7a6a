# SPDX-License-Identifier: Apache-2.0
"""Which capabilities clients get before login and after it: the part of ``ServerConfig`` about that."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy_config.model import ImapId, Protocol, SendIdentity


class CapabilitiesFrom(StrEnum):
    """``imap_capabilities_from``, ``smtp_capabilities_from``: as configured, or what upstreams have of it."""

    STATIC = "Static"
    UPSTREAM = "Upstream"


class AlpnStrict(StrEnum):
    """``ssl_alpn_strict``: whether an ALPN offer without the protocol of the server is refused.

    ``NGINX`` refuses every one, ``REGISTERED`` those with another registered protocol.
    """

    NGINX = "Nginx"
    REGISTERED = "Registered"


class CapabilityChoice:
    """A part of ``ServerConfig``."""

    __slots__ = ()

    if TYPE_CHECKING:
        protocol: Protocol
        imap_id_command: ImapId | None
        real_ip_command: bool
        proxy_id: SendIdentity
        imap_capabilities_from: CapabilitiesFrom
        smtp_capabilities_from: CapabilitiesFrom

    @property
    def answers_id(self) -> bool:
        """Whether IMAP ID is allowed before login; by default where another directive needs it."""
        if self.imap_id_command is None:
            return self.real_ip_command or self.proxy_id.value != "Disabled"
        return self.imap_id_command.value == "Answer"

    @property
    def asks_capabilities(self) -> bool:
        """Whether upstreams of this server are asked for their capabilities."""
        source = {"imap": self.imap_capabilities_from, "smtp": self.smtp_capabilities_from}
        return source.get(self.protocol.value) is CapabilitiesFrom.UPSTREAM

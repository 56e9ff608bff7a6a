# SPDX-License-Identifier: Apache-2.0
"""What a mail protocol must provide to be served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol as Interface

from mailproxy.protocols.sansio import ProtocolGenerator
from mailproxy.protocols.types import Client, SessionEnd, UpstreamLogin, UpstreamLoginResult
from mailproxy_config.model import Protocol, ServerConfig


class FrontendFactory(Interface):
    """One server's side of the conversation with clients; made once per server, shared by its sessions."""

    def converse(self, client: Client) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Talk to a client from the greeting until it is identified, or gone.

        ``client.tls`` is set already on an ``ssl`` listener; the conversation
        sets it after STARTTLS, and ``client.host`` after the name look-up.
        """
        ...


class Upstream(Interface):
    """One server's side of the conversation with upstreams; made once per server."""

    def log_in(self, client: Client, identified: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in on the client's behalf, the PROXY header to the upstream included.

        Raises:
            UpstreamRefused: The upstream said no.
            UpstreamError: It said nonsense.
        """
        ...


@dataclass(frozen=True, slots=True)
class MailProtocol:
    """A protocol: its name, its usual ports, its two conversations, and its own words for trouble."""

    name: Protocol
    ports: frozenset[int]
    alpn: bytes
    frontend: Callable[[ServerConfig], FrontendFactory]
    upstream: Callable[[ServerConfig], Upstream]
    internal_error: bytes
    """What a client is told when something behind us broke."""
    shutdown: bytes
    """The goodbye to a client that has not logged in when the proxy drains."""
    busy: bytes
    """The refusal above ``worker_connections``."""

# SPDX-License-Identifier: Apache-2.0
"""Connections to upstreams that only ask for their capabilities: what the protocols share.

A probe sends nothing about any client: the PROXY header has no addresses, and there is no ID, XCLIENT or
login.
"""

from __future__ import annotations

from typing import Final

from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.proxy_protocol import local_header
from mailproxy.protocols.sansio import ProtocolGenerator, Receive, Send, UpgradeToTls
from mailproxy.protocols.types import Client
from mailproxy.protocols.upstream_reply import UpstreamLoginBase
from mailproxy_config.model import ProxySsl, SendProxyProtocol

_GOODBYE_BYTES: Final = 512


class CapabilityProbe(UpstreamLoginBase):
    """Asks an upstream for its capabilities; the first base of a protocol's class.

    The ``reply`` of the result of ``log_in`` is not for a client.
    """

    __slots__ = ()

    def preamble(self, _client: Client) -> ProtocolGenerator[None]:
        """Perform what comes before the greeting: a PROXY header without addresses, and implicit TLS."""
        if self.server.proxy_protocol is not SendProxyProtocol.DISABLED:
            yield Send(local_header(self.server.proxy_protocol))
        if self.server.proxy_ssl is ProxySsl.ENABLED:
            yield UpgradeToTls()


def end_session(command: bytes) -> ProtocolGenerator[None]:
    """Send LOGOUT or QUIT, and wait for the response; what it is has no effect."""
    try:
        yield Send(command)
        yield Receive(_GOODBYE_BYTES)
    except PeerDisconnected:
        return

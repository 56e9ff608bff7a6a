# SPDX-License-Identifier: Apache-2.0
"""Clients that trusted webmail or another proxy has named (``real_ip_command``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mailproxy.protocols.frontend import Frontend
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.registry import MailProtocol
from mailproxy.protocols.types import Client
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy_config.model import ServerConfig

FrontendFactory = Callable[[Client], Frontend[Any]]


def frontend_factory(protocol: MailProtocol, config: ServerConfig, peers: TrustedPeers) -> FrontendFactory:
    """Return what makes the frontends of one server.

    Args:
        protocol: The protocol of the server.
        config: Its directives.
        peers: The addresses of ``set_real_ip_from``; with ``real_ip_command`` their clients get another
            frontend.  The address is the one after the PROXY header.
    """
    usual = protocol.frontend_for(config)
    if not config.real_ip_command:
        return usual
    return partial(_by_peer, peers, protocol.trusted_frontend_for(config), usual)


def _by_peer(
    peers: TrustedPeers, trusted: FrontendFactory, usual: FrontendFactory, client: Client
) -> Frontend[Any]:
    return (trusted if peers.trusts(client.address) else usual)(client)


def record_named_client(record: SessionRecord, client: Client) -> None:
    """Put the original client into the session's log line; the trusted one that named it stays there."""
    record.client, record.client_port, record.proxied = client.address, client.port, True
    received = client.received
    if received is not None:
        record.named_by, record.received_session = received.peer, received.session_id

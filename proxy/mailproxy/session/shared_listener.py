# SPDX-License-Identifier: Apache-2.0
"""Listeners with several ``server`` blocks, of which the ClientHello chooses one by server name or ALPN.

Until then a client belongs to the first of them, whose ``timeout``, ``proxy_protocol`` parameter
and ``set_real_ip_from`` apply, and which counts the connections that end before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason
from mailproxy.net.listen_plan import ListenRef, shared_lines
from mailproxy.session.accept import ListenTarget
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.metrics import Counter, Gauge
from mailproxy.tls.choice import AlpnChooser, Chooser, NameChooser
from mailproxy.tls.connection import TlsParams
from mailproxy.tls.context import for_listener
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ALPN_CLOSE, ListenConfig, ProxyConfig
from mailproxy_config.shared_listeners import sni_names


class UndecidedServer(VirtualServer):
    """The first of several servers, for clients that have not entered one of them yet.

    Args:
        first: The server.
        choices: All of them by name.
        chooser: Chooses one of them by the ClientHello.
    """

    __slots__ = ("_first",)

    def __init__(self, first: VirtualServer, choices: Mapping[str, VirtualServer], chooser: Chooser) -> None:
        assert first.tls is not None  # noqa: S101 - it has an ssl listener
        values = {field.name: getattr(first, field.name) for field in fields(first) if field.init}
        values |= {"metrics": copy.copy(first.metrics), "choices": choices}
        values["tls"] = for_listener(first.tls, chooser)
        super().__init__(**values)
        self._first = first
        self.metrics.accepted = Counter()  # not reported: the server that a client enters counts it

    def count_accepted(self) -> None:
        """See ``VirtualServer``."""
        self._first.count_accepted()

    def record_end(
        self, context: WorkerContext, record: SessionRecord, state_gauge: Gauge, reason: CloseReason
    ) -> None:
        """See ``VirtualServer``: the client has not entered any server."""
        self.count_accepted()
        super().record_end(context, record, state_gauge, reason)


def check_choices(config: ProxyConfig, servers: Sequence[VirtualServer]) -> None:
    """Check that a ClientHello can be read, where it chooses a server.

    Raises:
        ConfigError: The OpenSSL of this Python cannot be called.
    """
    shared = shared_lines(config)
    problems = [
        Problem(f"servers[{server.name}].listen[{index}]", "the ClientHello cannot be read on this Python")
        for number, server in enumerate(config.servers)
        for index, listen in enumerate(server.listen)
        if (listen.alpn_servers or ListenRef(number, index) in shared) and not _is_native(servers[number])
    ]
    if problems:
        raise ConfigError(problems)


def _is_native(server: VirtualServer) -> bool:
    return server.tls is not None and server.tls.params.native is not None


def listen_target(
    config: ProxyConfig,
    servers: Sequence[VirtualServer],
    shared: Mapping[ListenRef, tuple[ListenRef, ...]],
    ref: ListenRef,
) -> ListenTarget:
    """Return the target of a ``listen`` line.

    Args:
        config: The configuration.
        servers: Its servers.
        shared: The lines of several servers; see ``shared_lines``.
        ref: The line.
    """
    first, listen = servers[ref.server], config.servers[ref.server].listen[ref.listen]
    if listen.alpn_servers:
        by_name = {server.config.name: server for server in servers}
        names = {name for _, name in listen.alpn_servers} | {listen.alpn_default}
        choices = {name: by_name[name] for name in names if name in by_name}
        return ListenTarget(UndecidedServer(first, choices, _by_alpn(listen, choices)), listen)
    if ref in shared:
        group = [servers[other.server] for other in shared[ref]]
        choices = {server.config.name: server for server in group}
        return ListenTarget(UndecidedServer(first, choices, _by_name(first, group)), listen)
    return ListenTarget(first, listen)


def _by_alpn(listen: ListenConfig, choices: Mapping[str, VirtualServer]) -> AlpnChooser:
    default = None if listen.alpn_default == ALPN_CLOSE else _params(choices[listen.alpn_default])
    servers = {protocol.encode(): _params(choices[name]) for protocol, name in listen.alpn_servers}
    return AlpnChooser(servers, default)


def _by_name(first: VirtualServer, group: Iterable[VirtualServer]) -> NameChooser:
    names: dict[str, TlsParams] = {}
    for server in group:
        for name in sni_names(server.config.server_names, server.config.server_name):
            names.setdefault(name, _params(server))
    return NameChooser(names, _params(first))


def _params(server: VirtualServer) -> TlsParams:
    assert server.tls is not None  # noqa: S101 - the configuration is checked
    return server.tls.params

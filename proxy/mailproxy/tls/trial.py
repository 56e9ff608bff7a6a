# SPDX-License-Identifier: Apache-2.0
"""Puts TLS directives to work once, for ``check``: what OpenSSL refuses is found without running anything."""

from __future__ import annotations

from collections.abc import Iterable

from mailproxy.tls.contexts import TICKET_KEY_OCTETS, build
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ServerConfig


def tls_problems(servers: Iterable[ServerConfig]) -> tuple[Problem, ...]:
    """Tell what is wrong with the TLS of servers, each thing once; certificates and keys are read."""
    found: list[Problem] = []
    for server in servers:
        if server.tls_is_used:
            try:
                build(server, ticket_key=bytes(TICKET_KEY_OCTETS))
            except ConfigError as error:
                found += error.problems
    return tuple(dict.fromkeys(found))

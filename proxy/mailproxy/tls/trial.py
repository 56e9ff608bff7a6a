# SPDX-License-Identifier: Apache-2.0
"""Puts TLS directives to work once: what OpenSSL refuses is found without running anything."""

from __future__ import annotations

from collections.abc import Iterable

from mailproxy.tls.contexts import TICKET_KEY_OCTETS, build
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ServerConfig


def tried(server: ServerConfig) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Put the TLS of a server to work that uses it; certificates and keys are read.

    A server without a certificate, which is reported elsewhere, is looked at for the rest.

    Returns:
        What is wrong, and what is served otherwise than asked.
    """
    try:
        return (), build(server, ticket_key=bytes(TICKET_KEY_OCTETS)).notices
    except ConfigError as error:
        return tuple(filter(_is_news, error.problems)), error.notices


def tls_problems(servers: Iterable[ServerConfig]) -> tuple[Problem, ...]:
    """Tell what is wrong with the TLS of servers, each thing once."""
    return tuple(
        dict.fromkeys(problem for server in servers if server.tls_is_used for problem in tried(server)[0])
    )


def _is_news(problem: Problem) -> bool:
    return not problem.reason.startswith('no "ssl_certificate" is defined')

# SPDX-License-Identifier: Apache-2.0
"""Checks a server's TLS directives and files by building its TLS once, without running it."""

from __future__ import annotations

from mailproxy.tls.context import build
from mailproxy.tls.resumption import TicketKeys
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ServerConfig


def check_tls(server: ServerConfig) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Build the TLS of a server once; certificates and keys are read.

    That a server has no certificate is reported elsewhere and left out.

    Args:
        server: A server with ``tls_is_used``.

    Returns:
        The problems and the notices.
    """
    try:
        return (), build(server, ticket_keys=TicketKeys.random()).notices
    except ConfigError as error:
        known = 'no "ssl_certificate" is defined'
        problems = tuple(problem for problem in error.problems if not problem.reason.startswith(known))
        return problems, error.notices

# SPDX-License-Identifier: Apache-2.0
"""Puts TLS directives to work once: what OpenSSL refuses is found without running anything."""

from __future__ import annotations

from mailproxy.tls.context import build
from mailproxy.tls.ticket_keys import TicketKeys
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ServerConfig


def check_tls(server: ServerConfig) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Put the TLS of a server to work that uses it; certificates and keys are read.

    A server without a certificate, which is reported elsewhere, is looked at for the rest.

    Returns:
        What is wrong, and what is served otherwise than asked.
    """
    try:
        return (), build(server, ticket_keys=TicketKeys.random()).notices
    except ConfigError as error:
        return tuple(filter(_is_news, error.problems)), error.notices


def _is_news(problem: Problem) -> bool:
    return not problem.reason.startswith('no "ssl_certificate" is defined')

# SPDX-License-Identifier: Apache-2.0
"""Checks a server's TLS directives and files by building its TLS once, without running it."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.tls.context import ServerTls, build
from mailproxy.tls.resumption import TicketKeys
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsCheck:
    """The result of ``check_tls``.

    Attributes:
        problems: Errors.
        notices: Directives that have another effect than configured.
        certificates: Certificates that clients choose by name and that are not used, or not for all names.
        tls: What was built; ``None`` where there are errors.
    """

    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()
    certificates: tuple[Problem, ...] = ()
    tls: ServerTls | None = None


def check_tls(server: ServerConfig, previous: ServerTls | None = None) -> TlsCheck:
    """Build the TLS of a server once; certificates and keys are read.

    That a server has no certificate is reported elsewhere and left out.

    Args:
        server: A server with ``tls_is_used``.
        previous: The result of an earlier check; what has not changed is not checked again.
    """
    keys = previous.ticket_keys if previous is not None else TicketKeys.random()
    try:
        tls = build(server, ticket_keys=keys, previous=previous)
    except ConfigError as error:
        known = 'no "ssl_certificate" is defined'
        problems = tuple(problem for problem in error.problems if not problem.reason.startswith(known))
        return TlsCheck(problems=problems, notices=error.notices)
    return TlsCheck(notices=tls.notices, certificates=tls.problems, tls=tls)

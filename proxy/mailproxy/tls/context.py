# SPDX-License-Identifier: Apache-2.0
"""A server's TLS: one ``SSL_CTX`` per ``server`` block, made from its directives and files.

``build`` reports everything that is wrong at once.  A reload that changes
neither directive nor file gives the same object back, so that its sessions
can still be resumed.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Final, TypeGuard

from mailproxy.tls import client_certs, key_pairs, parameters, resumption
from mailproxy.tls.connection import TlsConnection, TlsParams
from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.inputs import fingerprint, session_context
from mailproxy.tls.openssl import OpenSsl, OpenSslUnavailable, load_openssl
from mailproxy.tls.ticket_keys import TicketKeys
from mailproxy_config.errors import Problem
from mailproxy_config.model import SendProxyProtocol, ServerConfig, SessionCache, VerifyClient

__all__ = ["ServerTls", "build", "files", "fingerprint"]

_NGINX_SESSION_TIMEOUT: Final = 300.0


@dataclass(frozen=True, slots=True, eq=False)
class ServerTls:
    """One server's TLS, ready to accept connections.

    Attributes:
        not_after: When each loaded certificate expires, in seconds since 1970,
            in the order of ``ssl_certificate``; ``None`` for a malformed date.
        fingerprint_of_inputs: Changes when a directive or a file does; see ``fingerprint``.
        ticket_keys: What its tickets are sealed with, unless ``ssl_session_ticket_key`` names files.
        notices: What is served otherwise than asked, for the log.
    """

    terms: TlsParams
    not_after: tuple[float | None, ...]
    fingerprint_of_inputs: str
    ticket_keys: TicketKeys
    notices: tuple[Problem, ...]

    def accept(self, sock: socket.SocketType) -> TlsConnection:
        """Put a connected non-blocking socket under TLS, without a handshake yet.

        ``sock`` gives its descriptor away and is not to be used any more,
        unless it was made for this (``TlsConnection.of``): then it is the result.
        What lies unread in it is taken for the beginning of a handshake, so
        whatever a client sent in clear makes the handshake fail.
        """
        taken = sock if isinstance(sock, TlsConnection) else TlsConnection.of(int(sock.family), sock.detach())
        try:
            taken.begin(self.terms)
        except Exception:
            taken.close()
            raise
        return taken


def build(
    server: ServerConfig,
    *,
    ticket_keys: TicketKeys,
    previous: ServerTls | None = None,
    native: OpenSsl | OpenSslUnavailable | None = None,
) -> ServerTls:
    """Put a server's TLS directives to work.

    Args:
        server: A server for which ``tls_is_used`` holds.
        ticket_keys: The same keys in all workers; unused where
            ``ssl_session_ticket_key`` names files.
        previous: What served it before; returned when nothing has changed.
        native: The library; the one of this process where none is given.

    Raises:
        ConfigError: With everything that is wrong.
    """
    inputs = fingerprint(server)
    if _serves_the_same(previous, inputs, ticket_keys):
        return previous
    found = native or load_openssl()
    library = found if isinstance(found, OpenSsl) else None
    draft = ContextBuilder(server, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    parameters.apply(draft)
    not_after = key_pairs.load(draft, library)
    if isinstance(found, OpenSsl):
        parameters.apply_native(draft, found)
        client_certs.apply(draft, found)
        resumption.apply(draft, found, ticket_keys)
        parameters.compress(draft, found)
        parameters.commands(draft, found)
    else:
        _make_do(draft, found)
    draft.problems.raise_if_any()
    return ServerTls(_terms(draft, library), not_after, inputs, ticket_keys, tuple(draft.problems.notices))


def _serves_the_same(
    previous: ServerTls | None, inputs: str, ticket_keys: TicketKeys
) -> TypeGuard[ServerTls]:
    return (
        previous is not None
        and previous.fingerprint_of_inputs == inputs
        and previous.ticket_keys is ticket_keys
    )


def _terms(draft: ContextBuilder, library: OpenSsl | None) -> TlsParams:
    server = draft.server
    return TlsParams(
        context=draft.context,
        native=library,
        verify_client=server.ssl_verify_client,
        tells_upstream=server.proxy_protocol is SendProxyProtocol.V2,
        session_context=session_context(server),
        kept=tuple(draft.kept),
    )


def _make_do(draft: ContextBuilder, why: OpenSslUnavailable) -> None:
    """Serve what ``ssl`` alone can, refuse what was asked for and cannot be, and say so."""
    server = draft.server
    not_to_be_had = {
        "ssl_verify_client": server.ssl_verify_client is not VerifyClient.DISABLED,
        "ssl_session_ticket_key": bool(server.ssl_session_ticket_key),
        "ssl_session_cache": server.ssl_session_cache != SessionCache(),
        "ssl_session_timeout": server.ssl_session_timeout != _NGINX_SESSION_TIMEOUT,
        "ssl_ecdh_curve": ":" in server.ssl_ecdh_curve,
        "ssl_conf_command": bool(server.ssl_conf_command),
    }
    for directive, is_asked_for in not_to_be_had.items():
        if is_asked_for:
            draft.refuse(directive, f"cannot be served on this Python: {why.reason}")
    if server.ssl_ecdh_curve != "auto" and ":" not in server.ssl_ecdh_curve:
        try:
            draft.context.set_ecdh_curve(server.ssl_ecdh_curve)
        except ValueError as error:
            draft.refuse("ssl_ecdh_curve", str(error))
    if not server.ssl_session_tickets:
        draft.context.options |= ssl.OP_NO_TICKET
    draft.context.num_tickets = 1
    draft.context.set_alpn_protocols([server.protocol.value])
    parameters.compress(draft, None)
    draft.notice(
        "ssl_certificate",
        f"{why.reason}: sessions are resumed within one worker only, a client that offers other "
        "application protocols is let in, certificates' dates are not watched, and PROXY version 2 "
        "carries less about TLS",
    )

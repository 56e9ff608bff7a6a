# SPDX-License-Identifier: Apache-2.0
"""A server's TLS: one ``SSL_CTX`` per ``server`` block, built from its directives and files.

``build`` reports all problems together.  After a reload that changes neither
a directive nor a file it returns the previous object, so that TLS sessions can
still be resumed.
"""

from __future__ import annotations

import socket
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from mailproxy.tls import client_certs, key_pairs, resumption, settings
from mailproxy.tls.choice import CertificateChooser, Chooser, OnlyChoice, enable_choice
from mailproxy.tls.connection import TlsConnection, TlsParams
from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.inputs import fingerprint, session_context
from mailproxy.tls.named_pairs import (
    CertificateTable,
    NamedPair,
    PairLoader,
    PairUnusable,
    load_pem,
    read_table,
)
from mailproxy.tls.openssl import OpenSsl, OpenSslUnavailable, load_openssl
from mailproxy.tls.resumption import TicketKeys
from mailproxy_config.errors import Problem
from mailproxy_config.model import SendProxyProtocol, ServerConfig, SessionCache, VerifyClient

_NGINX_SESSION_TIMEOUT: Final = 300.0


@dataclass(frozen=True, slots=True, eq=False)
class ServerTls:
    """The TLS of one server.

    Attributes:
        params: What its connections share.
        not_after: When each default certificate expires, in seconds since 1970,
            in the order of ``ssl_certificate``; ``None`` for a malformed date.
            Then, if there are any, when the first of the certificates expires that clients choose by name.
        fingerprint_of_inputs: Changes when a directive or a file changes; see ``inputs.fingerprint``.
        ticket_keys: Encrypt its tickets, unless ``ssl_session_ticket_key`` names files.
        notices: Directives that have another effect than configured, for the log.
        problems: Certificates that clients choose by name and that are not used, or not for all names.
    """

    params: TlsParams
    not_after: tuple[float | None, ...]
    fingerprint_of_inputs: str
    ticket_keys: TicketKeys
    notices: tuple[Problem, ...]
    problems: tuple[Problem, ...] = ()

    def accept(self, sock: socket.SocketType) -> TlsConnection:
        """Start TLS on a connected non-blocking socket; the handshake is a separate step.

        ``sock`` is detached from its descriptor and must not be used any more,
        unless it comes from ``TlsConnection.from_fd``: then it is the result.
        Unread bytes are parsed as the start of the handshake, so bytes that a
        client sent in clear text make it fail.
        """
        connection = (
            sock
            if isinstance(sock, TlsConnection)
            else TlsConnection.from_fd(int(sock.family), sock.detach())
        )
        try:
            connection.begin(self.params)
        except Exception:
            connection.close()
            raise
        return connection


def build(
    server: ServerConfig,
    *,
    ticket_keys: TicketKeys,
    previous: ServerTls | None = None,
    native: OpenSsl | OpenSslUnavailable | None = None,
    is_checked: bool = False,
) -> ServerTls:
    """Build the TLS of a server from its directives and files.

    Args:
        server: A server with ``tls_is_used``.
        ticket_keys: The same keys in all workers; unused where
            ``ssl_session_ticket_key`` names files.
        previous: The result before a reload; returned if nothing has changed.
        native: The library; that of this process if none is given.
        is_checked: Whether another process has built the same and reported what it cannot load; see
            ``named_pairs.PairLoader``.

    Raises:
        ConfigError: With all problems.
    """
    inputs = fingerprint(server)
    found = native or load_openssl()
    if previous is not None and (previous.fingerprint_of_inputs, previous.ticket_keys) == (
        inputs,
        ticket_keys,
    ):
        default = previous
    else:
        default = _build_default(server, inputs, ticket_keys, found)
    if not server.chooses_certificates or not isinstance(found, OpenSsl):
        return default
    return _with_names(server, default, previous, _pair_loader(server, found, is_checked=is_checked), found)


def _build_default(
    server: ServerConfig, inputs: str, ticket_keys: TicketKeys, found: OpenSsl | OpenSslUnavailable
) -> ServerTls:
    """Build the context with the default certificates."""
    library = found if isinstance(found, OpenSsl) else None
    builder = ContextBuilder(server, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    settings.apply(builder)
    not_after = key_pairs.load(builder, library)
    if isinstance(found, OpenSsl):
        settings.apply_native(builder, found)
        client_certs.apply(builder, found)
        resumption.apply(builder, found, ticket_keys)
        _apply_last(builder, found)
    else:
        _apply_without_openssl(builder, found)
    builder.problems.raise_if_any()
    params = _params(builder, library, session_context(server))
    if params.has_proxy_v2 and library is not None:
        params.chooser = OnlyChoice(params)
        enable_choice(library, library.context(params.context))
    return ServerTls(params, not_after, inputs, ticket_keys, tuple(builder.problems.notices))


def _build_for_names(server: ServerConfig, native: OpenSsl, pairs: Sequence[NamedPair]) -> TlsParams:
    """Build a context with other certificates; resumption stays with the default context.

    Raises:
        ConfigError: They cannot be loaded.
    """
    builder = ContextBuilder(server, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    settings.apply(builder)
    passphrases = key_pairs.read_passphrases(builder, "ssl_password_file", server.ssl_password_file)
    for pair in pairs:
        try:
            load_pem(builder.context, pair.pem, passphrases)
        except PairUnusable as unusable:
            reason = f'cannot load certificate "{pair.files.certificate}": {unusable}'
            builder.add_problem("ssl_certificate", reason)
    settings.apply_native(builder, native)
    client_certs.apply(builder, native)
    _apply_last(builder, native)
    builder.problems.raise_if_any()
    return _params(builder, native, session_context(server, [pair.digest for pair in pairs]))


def _apply_last(builder: ContextBuilder, native: OpenSsl) -> None:
    settings.compress_certificates(builder, native)
    settings.run_conf_commands(
        builder, native, "ssl_conf_command", builder.server.ssl_conf_command, settings.AS_SERVER
    )


def _params(builder: ContextBuilder, native: OpenSsl | None, context: bytes) -> TlsParams:
    server = builder.server
    return TlsParams(
        context=builder.context,
        native=native,
        verify_client=server.ssl_verify_client,
        has_proxy_v2=server.proxy_protocol is SendProxyProtocol.V2 or server.uses_connected_address,
        session_context=context,
        server=server.name,
        references=tuple(builder.references),
    )


def _with_names(
    server: ServerConfig,
    default: ServerTls,
    previous: ServerTls | None,
    loader: PairLoader,
    native: OpenSsl,
) -> ServerTls:
    """Add the certificates that clients choose by name; what has not changed is used again."""
    last = previous.params.chooser if previous is not None else None
    before = last if isinstance(last, CertificateChooser) else None
    table = read_table(server, loader, before.table if before is not None else None)
    is_default_kept = default is previous
    if is_default_kept and before is not None and _is_same(before, table, server):
        return default
    params = replace(default.params, chooser=None)
    contexts = before.contexts if is_default_kept and before is not None else OrderedDict()
    params.chooser = CertificateChooser(
        table,
        params,
        rejects=server.ssl_reject_handshake,
        make=partial(_build_for_names, server, native),
        contexts=contexts,
    )
    enable_choice(native, native.context(params.context))
    not_after = default.not_after[: len(server.default_certificates)]
    if table.first_expiry is not None:
        not_after += (table.first_expiry,)
    return replace(default, params=params, not_after=not_after, problems=table.problems)


def _pair_loader(server: ServerConfig, native: OpenSsl, *, is_checked: bool) -> PairLoader:
    builder = ContextBuilder(server, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    settings.apply(builder)
    passphrases = key_pairs.read_passphrases(builder, "ssl_password_file", server.ssl_password_file)
    return PairLoader(native, builder.context, passphrases, is_checked=is_checked)


def _is_same(before: CertificateChooser, table: CertificateTable, server: ServerConfig) -> bool:
    """Whether neither a certificate nor its names have changed."""
    same_pairs = list(before.table.pairs.items()) == list(
        table.pairs.items()
    )  # pairs are compared by identity
    return (
        same_pairs
        and before.rejects == server.ssl_reject_handshake
        and before.table.problems == table.problems
    )


def for_listener(tls: ServerTls, chooser: Chooser) -> ServerTls:
    """Return the TLS of a listener that begins with a server's context, and then chooses by the ClientHello.

    Args:
        tls: Of the server that the listener belongs to.
        chooser: Chooses a server.

    """
    native = tls.params.native
    assert native is not None  # noqa: S101 - checked when the configuration is applied
    enable_choice(native, native.context(tls.params.context))
    return replace(tls, params=replace(tls.params, chooser=chooser))


def _apply_without_openssl(builder: ContextBuilder, unavailable: OpenSslUnavailable) -> None:
    """Apply what ``ssl`` alone can do; add a problem for each directive that needs OpenSSL."""
    server = builder.server
    needs_openssl = {
        "ssl_verify_client": server.ssl_verify_client is not VerifyClient.DISABLED,
        "ssl_session_ticket_key": bool(server.ssl_session_ticket_key),
        "ssl_session_cache": server.ssl_session_cache != SessionCache(),
        "ssl_session_timeout": server.ssl_session_timeout != _NGINX_SESSION_TIMEOUT,
        "ssl_ecdh_curve": ":" in server.ssl_ecdh_curve,
        "ssl_conf_command": bool(server.ssl_conf_command),
        "ssl_certificate": server.chooses_certificates,
    }
    for directive, is_configured in needs_openssl.items():
        if is_configured:
            builder.add_problem(directive, f"cannot be served on this Python: {unavailable.reason}")
    if server.ssl_ecdh_curve != "auto" and ":" not in server.ssl_ecdh_curve:
        try:
            builder.context.set_ecdh_curve(server.ssl_ecdh_curve)
        except ValueError as error:
            builder.add_problem("ssl_ecdh_curve", str(error))
    if not server.ssl_session_tickets:
        builder.context.options |= ssl.OP_NO_TICKET
    builder.context.num_tickets = 1
    builder.context.set_alpn_protocols([server.protocol.value])
    settings.compress_certificates(builder, None)
    builder.add_notice(
        "ssl_certificate",
        f"{unavailable.reason}: sessions are resumed within one worker only, a client that offers other "
        "application protocols is let in, certificates' dates are not watched, and PROXY version 2 "
        "carries less about TLS",
    )

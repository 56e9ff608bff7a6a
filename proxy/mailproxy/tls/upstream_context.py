# SPDX-License-Identifier: Apache-2.0
"""TLS with the upstreams of a server: one ``SSL_CTX`` per ``server`` block with ``proxy_ssl``.

Certificates are verified against ``proxy_ssl_trusted_certificate``, or the system's authorities, and
for a name (RFC 9525): ``proxy_ssl_name``, or the host name or address in ``Auth-Server``.  The common
name of a certificate is no name.

Sessions are resumed per address and name.  A resumed session is not verified again, so they belong to one
object of ``UpstreamTls``: after a reload with other directives or files there is a new one without sessions.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from typing import Final, NamedTuple

from mailproxy.enums import UpstreamTlsFailure
from mailproxy.tls import settings
from mailproxy.tls.client_certs import check_revocation, trust
from mailproxy.tls.connection import TlsParams
from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.inputs import upstream_fingerprint
from mailproxy.tls.key_pairs import load_pair, read_passphrases
from mailproxy.tls.openssl import CHAIN_CALLBACK, OpenSsl, OpenSslUnavailable, load_openssl
from mailproxy.tls.upstream_session import UpstreamSession
from mailproxy_config.model import ServerConfig, VerifyClient

MAX_SESSIONS: Final = 1024
"""Upstream addresses of which a session is kept."""
MAX_NAMES: Final = 200
"""Characters of the names of a certificate that are logged."""
_SET_READ_AHEAD: Final = 41
_SUBJECT_ALT_NAME: Final = 85
"""NID of the extension."""
_FAILURES: Final = {
    # X509_V_ERR_*: certificate not yet valid, expired; host name, IP address
    9: UpstreamTlsFailure.EXPIRED,
    10: UpstreamTlsFailure.EXPIRED,
    62: UpstreamTlsFailure.NAME,
    64: UpstreamTlsFailure.NAME,
}


class Peer(NamedTuple):
    """An upstream: address, port (0 for a UNIX socket), and its host name in ``Auth-Server``, if any."""

    address: str
    port: int
    name: str = ""


class Verifier:
    """Verifies chains with OpenSSL, and keeps what was wrong with the last one.

    Attributes:
        failure: Why the last chain was rejected; ``None`` if it was not.
        reason: OpenSSL's text for it.
        names: The names of the rejected certificate.
        on_chain: OpenSSL's callback.
    """

    __slots__ = ("_native", "failure", "names", "on_chain", "reason")

    def __init__(self, native: OpenSsl) -> None:
        self._native = native
        self.failure: UpstreamTlsFailure | None = None
        self.reason = ""
        self.names = ""
        self.on_chain = CHAIN_CALLBACK(self._verify)

    def _verify(self, store: int, _own: int) -> int:
        native, lib = self._native, self._native.lib
        if lib.X509_verify_cert(store) == 1:
            self.failure = None
            return 1
        code = lib.X509_STORE_CTX_get_error(store)
        self.failure = _FAILURES.get(code, UpstreamTlsFailure.VERIFY)
        self.reason = lib.X509_verify_cert_error_string(code).decode("ascii", "replace")
        self.names = certificate_names(native, lib.X509_STORE_CTX_get0_cert(store))
        return 0


class UpstreamTls:
    """TLS with the upstreams of one server.

    Attributes:
        params: What its connections share.
        fingerprint_of_inputs: Changes when a directive or a file changes.
        verifier: ``None`` with ``proxy_ssl_verify off``.
        reuses_sessions: ``proxy_ssl_session_reuse``.
    """

    __slots__ = (
        "_name",
        "_sends_name",
        "_sessions",
        "fingerprint_of_inputs",
        "params",
        "reuses_sessions",
        "verifier",
    )

    def __init__(
        self, server: ServerConfig, params: TlsParams, verifier: Verifier | None, fingerprint: str
    ) -> None:
        self.params = params
        self.verifier = verifier
        self.fingerprint_of_inputs = fingerprint
        self.reuses_sessions = server.proxy_ssl_session_reuse
        self._name = server.proxy_ssl_name
        self._sends_name = server.proxy_ssl_server_name
        self._sessions: OrderedDict[Peer, UpstreamSession] = OrderedDict()

    def name_for(self, peer: Peer) -> str | None:
        """Return the name or address that the certificate must have; a name is also that of SNI.

        ``None`` for a UNIX socket without ``proxy_ssl_name``, and for an address that is not verified.
        """
        name = self._name or peer.name
        if name:
            return name
        return peer.address if self.verifier is not None and peer.port else None

    def for_login(self, server: ServerConfig) -> UpstreamTls:
        """Return the same TLS with another ``proxy_ssl_name``; nothing else may differ.

        It has sessions of its own: a resumed one is not verified for the name.
        """
        return UpstreamTls(server, self.params, self.verifier, self.fingerprint_of_inputs)

    def hides_name(self, peer: Peer) -> bool:
        """Whether SNI is not sent although there is a name."""
        return not self._sends_name and bool(self._name or peer.name)

    def session_for(self, peer: Peer) -> UpstreamSession | None:
        """Return the session to resume, if there is one."""
        return self._sessions.get(peer) if self.reuses_sessions else None

    def remember(self, peer: Peer, session: UpstreamSession) -> None:
        """Keep the newest session of an upstream."""
        if not self.reuses_sessions:
            return
        self._sessions[peer] = session
        self._sessions.move_to_end(peer)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def forget(self, peer: Peer) -> None:
        """Drop the session of an upstream: a handshake with it failed."""
        self._sessions.pop(peer, None)


def build(server: ServerConfig, *, previous: UpstreamTls | None = None) -> UpstreamTls:
    """Build the TLS with upstreams of a server from its directives and files.

    Args:
        server: A server with ``proxy_ssl``.
        previous: The result before a reload; returned if nothing has changed, with its sessions.

    Raises:
        ConfigError: With all problems.
    """
    fingerprint = upstream_fingerprint(server)
    if previous is not None and previous.fingerprint_of_inputs == fingerprint:
        return previous
    builder = ContextBuilder(server, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    native = load_openssl()
    if isinstance(native, OpenSslUnavailable):
        builder.add_problem("proxy_ssl", f"cannot be served on this Python: {native.reason}")
        builder.problems.raise_if_any()
        raise AssertionError
    verifier = _apply(builder, native)
    builder.problems.raise_if_any()
    params = TlsParams(
        context=builder.context,
        native=native,
        verify_client=VerifyClient.DISABLED,
        has_proxy_v2=False,
        session_context=b"",
        references=tuple(builder.references),
    )
    return UpstreamTls(server, params, verifier, fingerprint)


def _apply(builder: ContextBuilder, native: OpenSsl) -> Verifier | None:
    server, context = builder.server, builder.context
    pointer = native.context(context)
    native.lib.SSL_CTX_ctrl(pointer, _SET_READ_AHEAD, 1, None)
    # Otherwise the end of the relay, which upstreams often send without close_notify, is an error.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_IGNORE_UNEXPECTED_EOF
    settings.set_versions(builder, "proxy_ssl_protocols", server.proxy_ssl_protocols)
    settings.set_ciphers(builder, "proxy_ssl_ciphers", server.proxy_ssl_ciphers)
    if server.proxy_ssl_alpn:
        context.set_alpn_protocols(list(server.proxy_ssl_alpn))
    verifier = _verify(builder, native, pointer)
    pair = server.proxy_ssl_certificate
    if pair is not None:
        passphrases = read_passphrases(builder, "proxy_ssl_password_file", server.proxy_ssl_password_file)
        load_pair(builder, "proxy_ssl_certificate", pair, passphrases, native)
    settings.run_conf_commands(
        builder, native, "proxy_ssl_conf_command", server.proxy_ssl_conf_command, settings.AS_CLIENT
    )
    return verifier


def _verify(builder: ContextBuilder, native: OpenSsl, pointer: int) -> Verifier | None:
    server, context = builder.server, builder.context
    if not server.proxy_ssl_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return None
    context.hostname_checks_common_name = False
    if server.proxy_ssl_trusted_certificate is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    trust(builder, native, "proxy_ssl_trusted_certificate", server.proxy_ssl_trusted_certificate)
    check_revocation(builder, native, "proxy_ssl_crl", server.proxy_ssl_crl)
    native.lib.SSL_CTX_set_verify_depth(pointer, server.proxy_ssl_verify_depth)
    verifier = Verifier(native)
    builder.references.append(verifier)
    native.lib.SSL_CTX_set_cert_verify_callback(pointer, verifier.on_chain, None)
    return verifier


def certificate_names(native: OpenSsl, x509: int) -> str:
    """Return the names of a certificate for the log: ``DNS:a.example, IP Address:192.0.2.1``."""
    lib = native.lib
    position = lib.X509_get_ext_by_NID(x509, _SUBJECT_ALT_NAME, -1) if x509 else -1
    if position < 0:
        return "none"
    extension = lib.X509_get_ext(x509, position)
    printed = native.printed(lambda bio: lib.X509V3_EXT_print(bio, extension, 0, 0))
    text = printed.decode("utf-8", "replace")
    return text if len(text) <= MAX_NAMES else text[:MAX_NAMES] + "..."

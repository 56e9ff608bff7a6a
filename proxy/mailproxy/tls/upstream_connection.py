# SPDX-License-Identifier: Apache-2.0
"""A TLS connection to an upstream: handshake in steps, verification, resumption."""

from __future__ import annotations

import socket
import ssl
from typing import Final

from mailproxy.enums import UpstreamTlsFailure
from mailproxy.errors import UpstreamTlsError
from mailproxy.tls.connection import HandshakeStep, TlsConnection
from mailproxy.tls.key_pairs import expiry
from mailproxy.tls.openssl import reason_of
from mailproxy.tls.upstream_context import Peer, UpstreamTls
from mailproxy.tls.upstream_session import session_of

_SET_HOST_NAME: Final = 55
"""``SSL_CTRL_SET_TLSEXT_HOSTNAME``."""
_PROTOCOL: Final = frozenset(
    {
        *("WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "UNKNOWN_PROTOCOL", "VERSION_TOO_LOW"),
        *("VERSION_TOO_HIGH", "NO_PROTOCOLS_AVAILABLE", "TLSV1_ALERT_PROTOCOL_VERSION", "BAD_RECORD_TYPE"),
        *("PACKET_LENGTH_TOO_LONG", "NO_SHARED_CIPHER", "NO_CIPHERS_AVAILABLE", "WRONG_CIPHER_RETURNED"),
        *("RECORD_LAYER_FAILURE", "WRONG_SSL_VERSION", "HTTP_REQUEST", "DH_KEY_TOO_SMALL"),
    }
)
"""OpenSSL's reasons for a peer that does not speak TLS, or nothing in common with us."""


class UpstreamTlsConnection(TlsConnection):
    """A non-blocking TLS connection to an upstream, created by ``start``."""

    __slots__ = ("_peer", "_tls")

    server_side = False

    _peer: Peer
    _tls: UpstreamTls

    @classmethod
    def start(cls, sock: socket.SocketType, tls: UpstreamTls, peer: Peer) -> UpstreamTlsConnection:
        """Start TLS on a connected non-blocking socket; the handshake is a separate step.

        ``sock`` is detached from its descriptor and must not be used any more.

        Args:
            sock: The socket.
            tls: The TLS of its server.
            peer: The upstream.

        Raises:
            UpstreamTlsError: There is no name to verify.
        """
        name = tls.name_for(peer)
        if name is None and tls.verifier is not None:
            reason = "a certificate of a UNIX socket cannot be verified without a name: set proxySslName"
            raise UpstreamTlsError(UpstreamTlsFailure.NAME, reason)
        self = cls.__new__(cls)
        self._sslobj = None
        socket.socket.__init__(self, int(sock.family), socket.SOCK_STREAM, 0, sock.detach())
        self.settimeout(0.0)
        self._params, self._tls, self._peer = tls.params, tls, peer
        try:
            self._wrap(name)
        except Exception:
            self.close()
            raise
        return self

    def _wrap(self, name: str | None) -> None:
        tls, params = self._tls, self._params
        native = params.native
        assert native is not None  # noqa: S101 - upstream_context.build demands it
        self._sslobj = params.context._wrap_socket(  # type: ignore[attr-defined]  # noqa: SLF001 - as SSLSocket
            self, False, name
        )
        self._pointer = native.connection(self._sslobj)
        session = tls.session_for(self._peer)
        if session is not None:
            session.resume_with(self._pointer)
        if tls.hides_name(self._peer):
            native.lib.SSL_ctrl(self._pointer, _SET_HOST_NAME, 0, None)

    def handshake(self) -> HandshakeStep:
        """Continue the handshake as far as possible without waiting.

        Raises:
            UpstreamTlsError: It failed.
        """
        try:
            self._sslobj.do_handshake()
        except ssl.SSLWantReadError:
            return HandshakeStep.WANT_READ
        except ssl.SSLWantWriteError:
            return HandshakeStep.WANT_WRITE
        except OSError as error:
            self._tls.forget(self._peer)
            raise self._failed(error) from None
        return HandshakeStep.DONE

    def _failed(self, error: OSError) -> UpstreamTlsError:
        verifier, name = self._tls.verifier, self._tls.name_for(self._peer)
        if isinstance(error, ssl.SSLCertVerificationError) and verifier is not None and verifier.failure:
            text = f"certificate not accepted: {verifier.reason}"
            if verifier.failure is UpstreamTlsFailure.NAME:
                text += f': "{name}" is not among its names ({verifier.names}): set proxySslName'
            elif verifier.failure is UpstreamTlsFailure.VERIFY:
                text += f" (its names: {verifier.names}): set proxySslTrustedCertificate"
            return UpstreamTlsError(verifier.failure, text)
        if isinstance(error, ssl.SSLError) and not isinstance(
            error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
        ):
            reason = reason_of(error)
            failure = UpstreamTlsFailure.PROTOCOL if reason in _PROTOCOL else UpstreamTlsFailure.REFUSED
            return UpstreamTlsError(failure, f"TLS handshake failed: {reason.replace('_', ' ').lower()}")
        return UpstreamTlsError(
            UpstreamTlsFailure.REFUSED, "upstream closed the connection in the TLS handshake"
        )

    @property
    def peer(self) -> Peer:
        """The upstream."""
        return self._peer

    @property
    def is_resumed(self) -> bool:
        """Whether the handshake resumed an earlier session."""
        return bool(self._sslobj.session_reused)

    def certificate_expiry(self) -> float | None:
        """Return when the upstream's certificate expires, in seconds since 1970."""
        native = self._params.native
        assert native is not None  # noqa: S101 - see `_wrap`
        x509 = native.lib.SSL_get0_peer_certificate(self._pointer)
        return expiry(native, x509) if x509 else None

    def remember_session(self) -> None:
        """Keep the session for later connections.

        With TLS 1.3 the upstream sends it after the handshake, so call this after bytes were read.
        """
        native = self._params.native
        if native is None or not self._tls.reuses_sessions:
            return
        session = session_of(native, self._pointer, needs_ticket=self._sslobj.version() == "TLSv1.3")
        if session is not None:
            self._tls.remember(self._peer, session)

# SPDX-License-Identifier: Apache-2.0
"""A connection under TLS: the handshake step by step, then bytes in and out, then the goodbye."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from mailproxy.enums import TlsFailure
from mailproxy.errors import TlsFailed
from mailproxy.protocols.types import TlsInfo
from mailproxy.tls.certificate_facts import client_certificate, key_algorithms
from mailproxy.tls.client_certs import TOLERABLE, is_bad
from mailproxy.tls.openssl import OpenSsl, reason_of
from mailproxy_config.model import VerifyClient

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_RECORD: Final = 16384
"""OpenSSL takes one record at a time."""
PIECE: Final = 64 * 1024
"""Bytes that OpenSSL is given at once; after a write that has to wait, it must be given them again."""
_HOST_NAME: Final = 0
_STREAM: Final = int(socket.SOCK_STREAM)
_TCP, _CORK = int(socket.IPPROTO_TCP), int(socket.TCP_CORK)

_FAILURES: Final = {
    # OpenSSL's reason: what it means to us
    "HTTP_REQUEST": TlsFailure.NOT_TLS,
    "HTTPS_PROXY_REQUEST": TlsFailure.NOT_TLS,
    "WRONG_VERSION_NUMBER": TlsFailure.NOT_TLS,
    "UNKNOWN_PROTOCOL": TlsFailure.NOT_TLS,
    "BAD_RECORD_TYPE": TlsFailure.NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": TlsFailure.NOT_TLS,
    "NO_SHARED_CIPHER": TlsFailure.NO_SHARED_CIPHER,
    "NO_SHARED_GROUPS": TlsFailure.NO_SHARED_CIPHER,
    "NO_SUITABLE_KEY_SHARE": TlsFailure.NO_SHARED_CIPHER,
    "NO_SUITABLE_GROUPS": TlsFailure.NO_SHARED_CIPHER,
    "NO_SUITABLE_SIGNATURE_ALGORITHM": TlsFailure.NO_SHARED_CIPHER,
    "NO_SHARED_SIGNATURE_ALGORITHMS": TlsFailure.NO_SHARED_CIPHER,
    "UNSUPPORTED_PROTOCOL": TlsFailure.UNSUPPORTED_VERSION,
    "VERSION_TOO_LOW": TlsFailure.UNSUPPORTED_VERSION,
    "VERSION_TOO_HIGH": TlsFailure.UNSUPPORTED_VERSION,
    "NO_PROTOCOLS_AVAILABLE": TlsFailure.UNSUPPORTED_VERSION,
    "INAPPROPRIATE_FALLBACK": TlsFailure.UNSUPPORTED_VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": TlsFailure.UNSUPPORTED_VERSION,
    "NO_APPLICATION_PROTOCOL": TlsFailure.ALPN_MISMATCH,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": TlsFailure.CLIENT_CERT_MISSING,
    "BAD_SIGNATURE": TlsFailure.BAD_CLIENT_CERT,
    "WRONG_SIGNATURE_TYPE": TlsFailure.BAD_CLIENT_CERT,
    "CERT_LENGTH_MISMATCH": TlsFailure.BAD_CLIENT_CERT,
    "CERTIFICATE_VERIFY_FAILED": TlsFailure.BAD_CLIENT_CERT,
    "UNABLE_TO_FIND_PUBLIC_KEY_PARAMETERS": TlsFailure.BAD_CLIENT_CERT,
    # the client did not like our certificate
    "TLSV1_ALERT_UNKNOWN_CA": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_BAD_CERTIFICATE": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": TlsFailure.VERIFY_FAILED,
}


_ALL_SAID: Final = 3
"""``SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN``."""


def cork(sock: socket.SocketType, value: int) -> bool:
    """Hold back what does not fill a segment (1), or let it go (0); tell whether that worked (tcp(7))."""
    try:
        sock.setsockopt(_TCP, _CORK, value)
    except OSError:  # a UNIX socket, which has no segments; or one that is closed by now
        return False
    return True


class HandshakeStep(Enum):
    """What a handshake needs to go on."""

    DONE = auto()
    WANT_READ = auto()
    WANT_WRITE = auto()


class TlsHandshakeFailed(TlsFailed):
    """A handshake did not complete; nothing more can be said to this client.

    Attributes:
        failure: Why, in the metric's words.
        detail: Why, in OpenSSL's; for the log.
    """

    def __init__(self, failure: TlsFailure, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure
        self.detail = detail


@dataclass(slots=True, eq=False)
class TlsParams:
    """What all connections of one server share.

    Attributes:
        tells_upstream: Whether PROXY version 2 will ask for SNI and our certificate.
        session_context: What sessions must have in common to be resumed.
        kept: What OpenSSL points at while a connection lives.
        own: What is known about our certificates, by address.
    """

    context: ssl.SSLContext
    native: OpenSsl | None
    verify_client: VerifyClient
    tells_upstream: bool
    session_context: bytes
    kept: tuple[object, ...] = ()
    own: dict[int, tuple[bytes | None, bytes | None]] = field(default_factory=dict)


class TlsConnection(ssl.SSLSocket):
    """A client's non-blocking socket under TLS.

    An ``SSLSocket`` with fewer system calls behind it, made by
    ``ServerTls.accept``.  It has no buffer beside OpenSSL's, which is given
    back whenever nothing lies in it.

    ``recv``, ``recv_into`` and ``send`` raise ``ssl.SSLWantReadError`` or
    ``ssl.SSLWantWriteError`` when they would have to wait, and ``OSError``
    when the connection is broken.

    OpenSSL reads ahead: after a handshake, and after every read, bytes may
    lie above the socket where no readiness event tells of them.  Ask
    ``pending`` before waiting for one.
    """

    __slots__ = ("_pointer", "_sslobj", "_terms")

    # what SSLSocket keeps in every object
    server_side = True
    server_hostname = None
    do_handshake_on_connect = False
    suppress_ragged_eofs = True
    _connected = True
    _session = None

    _error: OSError | None = None
    """What a read ran into that had bytes to give first; the next one raises it."""
    _sslobj: Any
    _terms: TlsParams
    _pointer: int
    """OpenSSL's own object, where it can be reached; it lives as long as ``_sslobj``."""

    @classmethod
    def of(cls, family: int, fd: int) -> TlsConnection:
        """Make one of a connected stream socket's descriptor; until ``begin`` it can only be closed."""
        self = cls.__new__(cls)
        self._sslobj = None
        socket.socket.__init__(self, family, _STREAM, 0, fd)
        self.settimeout(0.0)
        return self

    def begin(self, terms: TlsParams) -> None:
        """Put it under TLS, without a handshake yet."""
        self._terms = terms
        self._sslobj = terms.context._wrap_socket(self, True)  # type: ignore[attr-defined]  # noqa: SLF001 - as SSLSocket
        if (native := terms.native) is not None:
            # some Pythons give every connection their own, so that the context's would not hold
            self._pointer = native.connection(self._sslobj)
            native.lib.SSL_set_session_id_context(self._pointer, terms.session_context, 32)

    @property
    def _context(self) -> ssl.SSLContext:
        return self._terms.context

    def handshake(self) -> HandshakeStep:
        """Go on with the handshake as far as it gets without waiting.

        Raises:
            TlsHandshakeFailed: It has failed; the client has been told by an alert where TLS has one.
        """
        try:
            self._sslobj.do_handshake()
        except ssl.SSLWantReadError:
            return HandshakeStep.WANT_READ
        except ssl.SSLWantWriteError:
            return HandshakeStep.WANT_WRITE
        except OSError as error:
            raise TlsHandshakeFailed(*_failure(error)) from None
        return HandshakeStep.DONE

    def recv(self, buflen: int = _RECORD, flags: int = 0) -> bytes:
        """Read at most ``buflen`` bytes of one record; ``b""`` when the client has ended."""
        del flags
        try:
            return self._sslobj.read(buflen)  # type: ignore[no-any-return]
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Read into a buffer at most one record; 0 when the client has ended."""
        del flags
        try:
            return self._sslobj.read(nbytes or memoryview(buffer).nbytes, buffer)  # type: ignore[no-any-return]
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def fill(self, view: memoryview) -> tuple[int, bool]:
        """Read what there is into a buffer, record by record; tell how much, and whether it was the last.

        Where the connection breaks behind some bytes, those are given first.
        """
        if self._error is not None:
            raise self._error
        filled, size, read = 0, len(view), self._sslobj.read
        try:
            while filled < size:
                count = read(size - filled, view[filled:])
                if not count:
                    return filled, True
                filled += count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return filled, False
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return filled, True
        except OSError as error:
            if not filled:
                raise
            self._error = error.with_traceback(None)
        return filled, False

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """Write as much as the socket takes, however many records that is.

        Returns:
            How many bytes were taken, at least one.  What was not must come first in the next call.
        """
        del flags
        if len(data) <= _RECORD:  # type: ignore[arg-type]  # what is sent has a length
            return self._sslobj.write(data)  # type: ignore[no-any-return]
        is_corked = cork(self, 1)  # records leave in full segments
        try:
            return self._send_records(memoryview(data).cast("B"))
        finally:
            if is_corked:
                cork(self, 0)

    def _send_records(self, view: memoryview) -> int:
        taken: int = self._sslobj.write(view[:PIECE])
        with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while taken < len(view):
                taken += self._sslobj.write(view[taken : taken + PIECE])
        return taken

    def pending(self) -> int:
        """Tell whether bytes lie above the socket: more than 0 when ``recv`` is worth a try.

        It may then still raise ``SSLWantReadError``: half a record is no
        bytes yet, and an event will tell of the other half.
        """
        if self._sslobj is None:
            return 0
        if self._error is not None:
            return 1
        native = self._terms.native
        if native is None:
            return self._sslobj.pending()  # type: ignore[no-any-return]
        return native.lib.SSL_has_pending(self._pointer)  # type: ignore[no-any-return]

    def unwrap(self) -> socket.socket:
        """Say close_notify, without waiting for room or for the client's own; never raises.

        Reading goes on to work (RFC 8446 section 6.1).
        """
        if self._sslobj is None:
            return self
        native = self._terms.native
        if native is None:
            with suppress(OSError):
                self._sslobj.shutdown()
        elif native.lib.SSL_shutdown(self._pointer) < 0:
            native.errors()
        return self

    def close(self) -> None:
        """Close without a word; the session can be resumed, whoever left first.

        OpenSSL forgets a cached session whose connection goes without
        close_notify; nginx tells it likewise that all was said.  A session
        that failed it has forgotten by itself.
        """
        if self._sslobj is not None and (native := self._terms.native) is not None:
            native.lib.SSL_set_shutdown(self._pointer, _ALL_SAID)
        super().close()

    def info(self) -> TlsInfo:
        """Tell what the finished handshake settled.

        The client's certificate is looked at where ``ssl_verify_client`` asks
        for one; SNI and our own certificate where ``proxy_protocol`` is V2.
        """
        connection, terms, native = self._sslobj, self._terms, self._terms.native
        alpn = connection.selected_alpn_protocol()
        info = TlsInfo(
            version=connection.version(),
            cipher=connection.cipher()[0],
            resumed=connection.session_reused,
            alpn=alpn.encode() if alpn is not None else None,
        )
        if native is not None:
            if terms.verify_client is not VerifyClient.DISABLED:
                self._add_client_certificate(info, native)
            if terms.tells_upstream:
                self._add_for_upstream(info, native)
        return info

    def _add_client_certificate(self, info: TlsInfo, native: OpenSsl) -> None:
        lib, pointer = native.lib, self._pointer
        x509 = lib.SSL_get0_peer_certificate(pointer)
        if x509:
            info.certificate = client_certificate(native, x509, self._sslobj.getpeercert(True))
            info.verify_code = lib.SSL_get_verify_result(pointer)
            info.verify_error = lib.X509_verify_cert_error_string(info.verify_code)
            info.verify_is_tolerable = info.verify_code in TOLERABLE
        if is_bad(self._terms.verify_client, info):
            lib.SSL_CTX_remove_session(native.context(self._terms.context), lib.SSL_get_session(pointer))

    def _add_for_upstream(self, info: TlsInfo, native: OpenSsl) -> None:
        lib, pointer, known = native.lib, self._pointer, self._terms.own
        info.server_name = lib.SSL_get_servername(pointer, _HOST_NAME)
        x509 = lib.SSL_get_certificate(pointer)
        if x509 and x509 not in known:
            known[x509] = key_algorithms(native, x509)
        if x509:
            info.own_signature, info.own_key = known[x509]


def _failure(error: OSError) -> tuple[TlsFailure, str]:
    """Translate what ``ssl`` raised into the metric's word and OpenSSL's."""
    if not isinstance(error, ssl.SSLError):
        return TlsFailure.EOF, type(error).__name__
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return TlsFailure.EOF, "the client has gone"
    reason = reason_of(error)
    return _FAILURES.get(reason, TlsFailure.OTHER), reason.replace("_", " ").lower()

# SPDX-License-Identifier: Apache-2.0
"""A client's TLS connection: handshake in steps, reads and writes without waiting, shutdown."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from mailproxy.enums import TlsFailure
from mailproxy.errors import TlsFailed
from mailproxy.protocols.types import TlsInfo, certificate_fault
from mailproxy.tls.choice import Chooser, ClientHello, expect_client_hello, switch_context
from mailproxy.tls.client_certs import TOLERABLE, client_certificate
from mailproxy.tls.inputs import context_of_server
from mailproxy.tls.key_pairs import key_algorithms
from mailproxy.tls.openssl import OpenSsl, reason_of
from mailproxy_config.model import VerifyClient

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_RECORD: Final = 16384
"""Bytes of the largest TLS record."""
PIECE: Final = 64 * 1024
"""Bytes per call of ``SSL_write``; a write that could not complete must be repeated with the same bytes."""
_TLSEXT_NAMETYPE_HOST_NAME: Final = 0
_STREAM: Final = int(socket.SOCK_STREAM)
_TCP, _CORK = int(socket.IPPROTO_TCP), int(socket.TCP_CORK)

_FAILURES: Final = {
    # OpenSSL's reason: the label of the metric
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
    # the client did not accept the server's certificate
    "TLSV1_ALERT_UNKNOWN_CA": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_BAD_CERTIFICATE": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": TlsFailure.VERIFY_FAILED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": TlsFailure.VERIFY_FAILED,
}

_SHUTDOWN_BOTH: Final = 3
"""``SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN``."""


def cork(sock: socket.SocketType, value: int) -> bool:
    """Set ``TCP_CORK`` (tcp(7)): 1 delays incomplete segments, 0 sends them; returns whether that worked."""
    try:
        sock.setsockopt(_TCP, _CORK, value)
    except OSError:  # a UNIX socket, or one that is closed already
        return False
    return True


class HandshakeStep(Enum):
    """What a handshake waits for."""

    DONE = auto()
    WANT_READ = auto()
    WANT_WRITE = auto()


class TlsHandshakeFailed(TlsFailed):
    """A handshake failed; nothing more can be sent to the client.

    Attributes:
        failure: The label of the metric.
        detail: OpenSSL's reason, for the log.
    """

    def __init__(self, failure: TlsFailure, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure
        self.detail = detail


@dataclass(slots=True, eq=False)
class TlsParams:
    """What all connections of one server share.

    Attributes:
        has_proxy_v2: Whether PROXY version 2 or another identity is sent, which needs the server's
            certificate.
        session_context: The context in which sessions may be resumed; see ``inputs``.
        server: The name of the ``server`` block.
        chooser: Chooses other parameters by the ClientHello; ``None``: these are used.
        references: Python objects that OpenSSL has pointers to while a connection exists.
        algorithms: Signature and key algorithms of the server's certificates, by the address of the ``X509``.
    """

    context: ssl.SSLContext
    native: OpenSsl | None
    verify_client: VerifyClient
    has_proxy_v2: bool
    session_context: bytes
    server: str = ""
    chooser: Chooser | None = None
    references: tuple[object, ...] = ()
    algorithms: dict[int, tuple[bytes | None, bytes | None]] = field(default_factory=dict)


class TlsConnection(ssl.SSLSocket):
    """A client's non-blocking socket with TLS.

    An ``SSLSocket`` that makes fewer system calls, created by
    ``ServerTls.accept``.  Its only buffer is OpenSSL's, which is freed whenever
    it is empty.

    ``recv``, ``recv_into`` and ``send`` raise ``ssl.SSLWantReadError`` or
    ``ssl.SSLWantWriteError`` instead of waiting, and ``OSError`` when the
    connection is broken.

    OpenSSL reads ahead: after every read there may be bytes in its buffer,
    for which the socket does not become readable.  Before OpenSSL 3.2, which
    reads ahead only what application keys protect, the same holds after a
    handshake.  Call ``pending`` before waiting for the socket.
    """

    __slots__ = ("_params", "_pointer", "_sslobj")

    # attributes of every SSLSocket
    server_side = True
    server_hostname = None
    do_handshake_on_connect = False
    suppress_ragged_eofs = True
    _connected = True
    _session = None

    _base: TlsParams | None = None
    """The parameters before another context was chosen; its callbacks still encrypt tickets."""
    _rejected: TlsFailure | None = None
    """Why the client was rejected by the choice."""
    _sent_name: bytes | None = None
    """The server name that the choice was made by."""
    _error: OSError | None = None
    """The error after the last bytes that were read; the next read raises it."""
    _sslobj: Any
    _params: TlsParams
    _pointer: int
    """The ``SSL`` object, set only with ``native``; it exists as long as ``_sslobj``."""

    @classmethod
    def from_fd(cls, family: int, fd: int) -> TlsConnection:
        """Take over the descriptor of a connected stream socket; before ``begin`` it can only be closed."""
        self = cls.__new__(cls)
        self._sslobj = None
        socket.socket.__init__(self, family, _STREAM, 0, fd)
        self.settimeout(0.0)
        return self

    def begin(self, params: TlsParams) -> None:
        """Start TLS; the handshake is a separate step."""
        self._params = params
        self._sslobj = params.context._wrap_socket(self, True)  # type: ignore[attr-defined]  # noqa: SLF001 - as SSLSocket
        if (native := params.native) is not None:
            # some versions of Python set it for each connection, which overrides that of the context
            self._pointer = native.connection(self._sslobj)
            native.lib.SSL_set_session_id_context(self._pointer, params.session_context, 32)
            if params.chooser is not None:
                expect_client_hello(self, self._pointer)

    def choose(self, hello: ClientHello) -> None:
        """Continue with the parameters that the chooser returns for a ClientHello.

        Raises:
            Rejected: There are none.
        """
        base, native = self._params, self._params.native
        assert base.chooser is not None and native is not None  # noqa: S101, PT018 - see `begin`
        self._base, self._sent_name = base, hello.sent_name
        self._params = chosen = base.chooser.choose(hello)
        if chosen.context is not base.context:
            switch_context(native, self._pointer, base, chosen)
        sessions = chosen.session_context
        if base.chooser.binds_sessions:
            sessions = context_of_server(sessions, chosen.server)
        native.lib.SSL_set_session_id_context(self._pointer, sessions, 32)

    def rejected_as(self, failure: TlsFailure) -> None:
        """Record why the choice rejects the client; the handshake fails."""
        self._rejected = failure

    @property
    def server(self) -> str:
        """The name of the ``server`` block that was chosen, or the only one."""
        return self._params.server

    @property
    def _context(self) -> ssl.SSLContext:
        return self._params.context

    def handshake(self) -> HandshakeStep:
        """Continue the handshake as far as possible without waiting.

        Raises:
            TlsHandshakeFailed: It failed; the client got an alert where TLS has one.
        """
        try:
            self._sslobj.do_handshake()
        except ssl.SSLWantReadError:
            return HandshakeStep.WANT_READ
        except ssl.SSLWantWriteError:
            return HandshakeStep.WANT_WRITE
        except OSError as error:
            if self._rejected is not None:
                raise TlsHandshakeFailed(self._rejected, self._rejected.replace("_", " ")) from None
            raise TlsHandshakeFailed(*_failure(error)) from None
        return HandshakeStep.DONE

    def recv(self, buflen: int = _RECORD, flags: int = 0) -> bytes:
        """Read at most ``buflen`` bytes of one record; ``b""`` at the end of the stream."""
        del flags
        try:
            return self._sslobj.read(buflen)  # type: ignore[no-any-return]
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Read at most one record into a buffer; 0 at the end of the stream."""
        del flags
        try:
            return self._sslobj.read(nbytes or memoryview(buffer).nbytes, buffer)  # type: ignore[no-any-return]
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def fill(self, view: memoryview) -> tuple[int, bool]:
        """Read all available records into a buffer.

        Returns:
            The number of bytes, and whether the stream has ended.

        Raises:
            OSError: The connection is broken.  If bytes were read before that, the next call raises it.
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
        """Write as many records as the socket accepts.

        Returns:
            The number of bytes written, at least one.  The next call must start with the others.
        """
        del flags
        if len(data) <= _RECORD:  # type: ignore[arg-type]  # all callers pass bytes or a memoryview
            return self._sslobj.write(data)  # type: ignore[no-any-return]
        is_corked = cork(self, 1)  # sends records in full segments
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
        """Return more than 0 if OpenSSL has bytes in its buffer, so that ``recv`` should be called.

        ``recv`` may still raise ``SSLWantReadError`` if these are an incomplete
        record; the socket becomes readable with the rest of it.
        """
        if self._sslobj is None:
            return 0
        if self._error is not None:
            return 1
        native = self._params.native
        if native is None:
            return self._sslobj.pending()  # type: ignore[no-any-return]
        return native.lib.SSL_has_pending(self._pointer)  # type: ignore[no-any-return]

    def unwrap(self) -> socket.socket:
        """Send close_notify without waiting, neither for space nor for the client's; never raises.

        Reading still works (RFC 8446 section 6.1).
        """
        if self._sslobj is None:
            return self
        native = self._params.native
        if native is None:
            with suppress(OSError):
                self._sslobj.shutdown()
        elif native.lib.SSL_shutdown(self._pointer) < 0:
            native.errors()
        return self

    def close(self) -> None:
        """Close the socket without close_notify; the TLS session can be resumed.

        OpenSSL removes the cached session of a connection without
        close_notify unless its shutdown state is set, as nginx does.  OpenSSL
        itself removes the session of a connection that failed.
        """
        if self._sslobj is not None and (native := self._params.native) is not None:
            native.lib.SSL_set_shutdown(self._pointer, _SHUTDOWN_BOTH)
        super().close()

    def info(self) -> TlsInfo:
        """Return the result of the finished handshake.

        It has the client's certificate only with ``ssl_verify_client``, and the
        server's certificate only with ``proxy_protocol`` V2.
        """
        connection, params, native = self._sslobj, self._params, self._params.native
        alpn = connection.selected_alpn_protocol()
        info = TlsInfo(
            version=connection.version(),
            cipher=connection.cipher()[0],
            resumed=connection.session_reused,
            alpn=alpn.encode() if alpn is not None else None,
        )
        if native is not None:
            name = self._sent_name or native.lib.SSL_get_servername(self._pointer, _TLSEXT_NAMETYPE_HOST_NAME)
            info.server_name = name
            if params.verify_client is not VerifyClient.DISABLED:
                self._add_client_certificate(info, native)
            if params.has_proxy_v2:
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
        if (
            certificate_fault(self._params.verify_client, info) is not None
        ):  # as in nginx, it must not be resumed
            caching = (self._base or self._params).context
            lib.SSL_CTX_remove_session(native.context(caching), lib.SSL_get_session(pointer))

    def _add_for_upstream(self, info: TlsInfo, native: OpenSsl) -> None:
        lib, pointer, known = native.lib, self._pointer, self._params.algorithms
        x509 = lib.SSL_get_certificate(pointer)
        if x509 and x509 not in known:
            known[x509] = key_algorithms(native, x509)
        if x509:
            info.own_signature, info.own_key = known[x509]


def _failure(error: OSError) -> tuple[TlsFailure, str]:
    """Return the metric's label and OpenSSL's reason for an exception of ``ssl``."""
    if not isinstance(error, ssl.SSLError):
        return TlsFailure.EOF, type(error).__name__
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return TlsFailure.EOF, "client closed the connection"
    reason = reason_of(error)
    return _FAILURES.get(reason, TlsFailure.OTHER), reason.replace("_", " ").lower()

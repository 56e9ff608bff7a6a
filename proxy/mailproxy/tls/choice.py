# SPDX-License-Identifier: Apache-2.0
"""Chooses certificate and ``server`` block by the ClientHello: by server name (RFC 6066) or ALPN (RFC 7301).

OpenSSL calls back when it has read the ClientHello, before it looks at tickets and cached
sessions.  So a session is resumed only in the context of the block and certificate that were
chosen for this handshake.  Only connections with a chooser call back.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

from mailproxy.enums import TlsFailure
from mailproxy.tls.openssl import CLIENT_HELLO_CALLBACK, OpenSsl
from mailproxy_config.errors import ConfigError
from mailproxy_config.server_names import find_name, parse_sni

if TYPE_CHECKING:
    from mailproxy.tls.connection import TlsConnection, TlsParams
    from mailproxy.tls.named_pairs import CertificateTable, NamedPair

MAX_CONTEXTS: Final = 1000
"""Maximum number of contexts for names that a server keeps; the least recently used one is dropped."""

_SERVER_NAME, _ALPN = 0, 16
"""``TLSEXT_TYPE_server_name`` and ``TLSEXT_TYPE_application_layer_protocol_negotiation``."""
_UNRECOGNIZED_NAME, _NO_APPLICATION_PROTOCOL = 112, 120
_FAILED, _CONTINUE = 0, 1
"""``SSL_CLIENT_HELLO_ERROR`` and ``SSL_CLIENT_HELLO_SUCCESS``."""


class ClientHello:
    """The extensions of a ClientHello that a choice depends on.

    Attributes:
        sent_name: The server name as sent; ``None`` without one.
        name: The same in the form that is compared; ``None`` for addresses and malformed names.
    """

    __slots__ = ("_native", "_pointer", "name", "sent_name")

    def __init__(self, native: OpenSsl, pointer: int) -> None:
        self._native = native
        self._pointer = pointer
        self.sent_name = _host_name(self._extension(_SERVER_NAME))
        self.name = None if self.sent_name is None else parse_sni(self.sent_name)

    def protocols(self) -> list[bytes] | None:
        """Return the ALPN protocols in the client's order; ``None`` without ALPN."""
        data = self._extension(_ALPN)
        return None if data is None else list(_protocol_names(data[2:]))

    def _extension(self, number: int) -> bytes | None:
        start, length = ctypes.c_void_p(), ctypes.c_size_t()
        found = self._native.lib.SSL_client_hello_get0_ext(
            self._pointer, number, ctypes.byref(start), ctypes.byref(length)
        )
        return ctypes.string_at(start, length.value) if found == 1 and start.value else None


def _host_name(data: bytes | None) -> bytes | None:
    """Return the ``HostName`` of a ``ServerNameList`` with one; OpenSSL rejects lists that are malformed."""
    if data is None or len(data) < 5 or data[2] != 0:
        return None
    length = int.from_bytes(data[3:5], "big")
    return data[5:] if length == len(data) - 5 and length else None


def _protocol_names(data: bytes) -> Iterator[bytes]:
    """Yield the names of a ``ProtocolNameList``."""
    while data:
        length = data[0]
        yield data[1 : 1 + length]
        data = data[1 + length :]


class Rejected(Exception):
    """No certificate or server is configured for the client.

    Attributes:
        alert: The number of the TLS alert.
        failure: The label of the metric.
    """

    def __init__(self, alert: int, failure: TlsFailure) -> None:
        super().__init__(failure)
        self.alert = alert
        self.failure = failure


class Chooser(Protocol):
    """Chooses for a connection what it shares with others."""

    @property
    def binds_sessions(self) -> bool:
        """Whether sessions belong to the ``server`` block that was chosen."""
        ...

    def choose(self, hello: ClientHello) -> TlsParams:
        """Return the parameters for a client.

        Raises:
            Rejected: There are none.
        """
        ...


class OnlyChoice:
    """Chooses nothing, so that the server name is noted also where a TLS 1.2 session is resumed.

    OpenSSL keeps the name with a session only if a callback has accepted it.
    """

    binds_sessions = False

    def __init__(self, params: TlsParams) -> None:
        self._params = params

    def choose(self, hello: ClientHello) -> TlsParams:
        """See ``Chooser``."""
        del hello
        return self._params


class CertificateChooser:
    """Chooses a certificate of one server by name.

    Args:
        table: The certificates.
        default: The parameters with the default certificates.
        rejects: Whether other names are rejected.
        make: Makes the parameters with other certificates.
        contexts: What was made before, by the digests of the certificates.

    Attributes:
        report: Called with the reason if a certificate cannot be used after all; the default one is used.
    """

    binds_sessions = False

    def __init__(
        self,
        table: CertificateTable,
        default: TlsParams,
        *,
        rejects: bool,
        make: Callable[[Sequence[NamedPair]], TlsParams],
        contexts: OrderedDict[tuple[bytes, ...], TlsParams],
    ) -> None:
        self.table = table
        self.default = default
        self.rejects = rejects
        self.contexts = contexts
        self.report: Callable[[str], object] = lambda _reason: None
        self._make = make

    def choose(self, hello: ClientHello) -> TlsParams:
        """See ``Chooser``."""
        pairs = find_name(self.table.names, hello.name) if hello.name is not None else None
        if pairs is None:
            if self.rejects:
                raise Rejected(_UNRECOGNIZED_NAME, TlsFailure.UNRECOGNIZED_NAME)
            return self.default
        if pairs == self.table.default:
            return self.default
        key = tuple(pair.digest for pair in pairs)
        params = self.contexts.get(key)
        if params is None:
            params = self.contexts[key] = self._build(pairs)
            if len(self.contexts) > MAX_CONTEXTS:
                self.contexts.popitem(last=False)
        else:
            self.contexts.move_to_end(key)
        return params

    def _build(self, pairs: Sequence[NamedPair]) -> TlsParams:
        try:
            return self._make(pairs)
        except ConfigError as error:  # it was loaded once; another directive may have made it unusable
            self.report(str(error))
            return self.default


def _choose_certificate(params: TlsParams, hello: ClientHello) -> TlsParams:
    return params if params.chooser is None else params.chooser.choose(hello)


class NameChooser:
    """Chooses a server by name, among those with the same listener, and its certificate.

    Args:
        servers: The parameters of each server by its names.
        default: Those of the server for all other names.
    """

    binds_sessions = True

    def __init__(self, servers: Mapping[str, TlsParams], default: TlsParams) -> None:
        self._servers = servers
        self._default = default

    def choose(self, hello: ClientHello) -> TlsParams:
        """See ``Chooser``."""
        found = find_name(self._servers, hello.name) if hello.name is not None else None
        return _choose_certificate(found or self._default, hello)


class AlpnChooser:
    """Chooses a server by ALPN protocol, and its certificate by name.

    Args:
        servers: The parameters of each server by protocol.
        default: Those of the server for clients without ALPN; ``None`` rejects them.
    """

    binds_sessions = True

    def __init__(self, servers: Mapping[bytes, TlsParams], default: TlsParams | None) -> None:
        self._servers = servers
        self._default = default

    def choose(self, hello: ClientHello) -> TlsParams:
        """See ``Chooser``."""
        offered = hello.protocols()
        if offered is None:
            found = self._default
        else:
            found = next((self._servers[name] for name in offered if name in self._servers), None)
        if found is None:
            raise Rejected(_NO_APPLICATION_PROTOCOL, TlsFailure.ALPN_MISMATCH)
        return _choose_certificate(found, hello)


# --- OpenSSL's callback ---------------------------------------------------------------

_UNDECIDED: Final[WeakValueDictionary[int, TlsConnection]] = WeakValueDictionary()
"""Connections whose choice is still to be made, by the address of their ``SSL``."""


def expect_client_hello(connection: TlsConnection, pointer: int) -> None:
    """Choose for this connection when its ClientHello has come."""
    _UNDECIDED[pointer] = connection


def enable_choice(native: OpenSsl, context: int) -> None:
    """Make a context call back for the ClientHello of its connections."""
    native.lib.SSL_CTX_set_client_hello_cb(context, _callback(native), None)


@cache
def _callback(native: OpenSsl) -> object:
    """Make the callback; it exists as long as the process."""

    def on_client_hello(pointer: int, alert: int, _own: int) -> int:
        connection = _UNDECIDED.pop(pointer, None)
        if connection is None:  # without a chooser, or the second ClientHello after HelloRetryRequest
            return _CONTINUE
        hello = ClientHello(native, pointer)
        try:
            connection.choose(hello)
        except Rejected as rejected:
            connection.rejected_as(rejected.failure)
            ctypes.c_int.from_address(alert).value = rejected.alert
            return _FAILED
        return _CONTINUE

    return CLIENT_HELLO_CALLBACK(on_client_hello)


def switch_context(native: OpenSsl, pointer: int, base: TlsParams, chosen: TlsParams) -> None:
    """Continue a handshake with the context that was chosen.

    ``SSL_set_SSL_CTX`` changes certificates, ciphers, ALPN and what clients are verified by; the rest of
    what a server can configure is set here.  Session cache, ticket keys and groups stay those of the first
    context: the configuration demands the same for all servers behind a listener.
    """
    lib = native.lib
    context = native.context(chosen.context)
    lib.SSL_set_SSL_CTX(pointer, context)
    if chosen.server != base.server:
        options = lib.SSL_CTX_get_options(context)
        lib.SSL_clear_options(pointer, lib.SSL_get_options(pointer) & ~options)
        lib.SSL_set_options(pointer, options)
        lib.SSL_set_verify(
            pointer, lib.SSL_CTX_get_verify_mode(context), lib.SSL_CTX_get_verify_callback(context)
        )
        lib.SSL_set_verify_depth(pointer, lib.SSL_CTX_get_verify_depth(context))

# SPDX-License-Identifier: Apache-2.0
"""Directives for the handshake: versions, ciphers, groups, ALPN, ``ssl_conf_command``."""

from __future__ import annotations

import ctypes
import ssl
import warnings
from collections.abc import Sequence, Set
from typing import Final

from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import ALPN_CALLBACK, OpenSsl, reason_of
from mailproxy_config.capability_choice import AlpnStrict
from mailproxy_config.model import Protocol

_VERSIONS: Final = {
    # value of ssl_protocols: the option that disables it, whether this library has it
    "SSLv3": (ssl.OP_NO_SSLv3, ssl.HAS_SSLv3),
    "TLSv1": (ssl.OP_NO_TLSv1, ssl.HAS_TLSv1),
    "TLSv1.1": (ssl.OP_NO_TLSv1_1, ssl.HAS_TLSv1_1),
    "TLSv1.2": (ssl.OP_NO_TLSv1_2, ssl.HAS_TLSv1_2),
    "TLSv1.3": (ssl.OP_NO_TLSv1_3, ssl.HAS_TLSv1_3),
}

_SET_MODE: Final = 33
_SET_READ_AHEAD: Final = 41
_SET_GROUPS_LIST: Final = 92
_NO_AUTO_CHAIN: Final = 0x8
_CONF_FLAGS: Final = 0x2 | 0x10 | 0x20
"""``SSL_CONF_FLAG_FILE | SHOW_ERRORS | CERTIFICATE``, as in nginx."""
AS_CLIENT, AS_SERVER = 0x4, 0x8
"""``SSL_CONF_FLAG_CLIENT`` and ``SSL_CONF_FLAG_SERVER``."""
_SELECTED, _FATAL, _NO_ACKNOWLEDGEMENT = 0, 2, 3
_NEGOTIATED: Final = 1
REGISTERED_ALPN: Final = frozenset(
    {
        *(b"http/0.9", b"http/1.0", b"http/1.1", b"h2", b"h2c", b"h3", b"spdy/1", b"spdy/2", b"spdy/3"),
        *(b"stun.turn", b"stun.nat-discovery", b"webrtc", b"c-webrtc", b"ftp", b"imap", b"pop3", b"smtp"),
        *(b"managesieve", b"coap", b"co", b"xmpp-client", b"xmpp-server", b"acme-tls/1", b"mqtt", b"dot"),
        *(b"doq", b"ntske/1", b"sunrpc", b"smb", b"irc", b"nntp", b"nnsp", b"sip/2", b"tds/8.0", b"dicom"),
        *(b"postgresql", b"radius/1.0", b"radius/1.1"),
    }
)
"""Protocols in IANA's registry of ALPN protocol IDs, and ``smtp``, which nginx uses."""


def apply(builder: ContextBuilder) -> None:
    """Apply what ``ssl`` offers: versions, ciphers, their order, Diffie-Hellman parameters."""
    server, context = builder.server, builder.context
    set_versions(builder, "ssl_protocols", server.ssl_protocols)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # Otherwise OpenSSL 3 sends a fatal alert to a client that closes without close_notify.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    if server.ssl_prefer_server_ciphers:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    set_ciphers(builder, "ssl_ciphers", server.ssl_ciphers)
    if server.ssl_dhparam is not None and builder.read_file("ssl_dhparam", server.ssl_dhparam) is not None:
        try:
            context.load_dh_params(server.ssl_dhparam)
        except ssl.SSLError as error:
            builder.add_problem("ssl_dhparam", f'cannot load "{server.ssl_dhparam}": {_reason(error)}')


def set_ciphers(builder: ContextBuilder, directive: str, ciphers: str) -> None:
    """Set the ciphers for TLS 1.2 and earlier."""
    try:
        builder.context.set_ciphers(ciphers)
    except ssl.SSLError as error:
        builder.add_problem(directive, f'SSL_CTX_set_cipher_list("{ciphers}") failed: {_reason(error)}')


def apply_native(builder: ContextBuilder, native: OpenSsl) -> None:
    """Apply what only OpenSSL offers, except for ``ssl_conf_command``."""
    lib, context = native.lib, native.context(builder.context)
    # one system call reads all available bytes (see `pending` of the connection)
    lib.SSL_CTX_ctrl(context, _SET_READ_AHEAD, 1, None)
    # certificates for the verification of clients must not be sent in the server's chain
    lib.SSL_CTX_ctrl(context, _SET_MODE, _NO_AUTO_CHAIN, None)
    groups = builder.server.ssl_ecdh_curve
    if groups != "auto" and lib.SSL_CTX_ctrl(context, _SET_GROUPS_LIST, 0, groups.encode()) != 1:
        builder.add_problem(
            "ssl_ecdh_curve", f'SSL_CTX_set1_curves_list("{groups}") failed: {native.errors()}'
        )
    strict = builder.server.ssl_alpn_strict
    others = REGISTERED_ALPN if strict is AlpnStrict.REGISTERED else None
    callback = _alpn_callback(native, builder.server.protocol, others)
    builder.references.append(callback)
    lib.SSL_CTX_set_alpn_select_cb(context, callback, None)


def compress_certificates(builder: ContextBuilder, native: OpenSsl | None) -> None:
    """Compress the server's certificates (RFC 8879) if the library can; otherwise, as in nginx, a notice."""
    if not builder.server.ssl_certificate_compression:
        return
    compress = getattr(native.lib, "SSL_CTX_compress_certs", None) if native is not None else None
    if native is None or compress is None:
        builder.add_notice("ssl_certificate_compression", f"{ssl.OPENSSL_VERSION} cannot do it: ignored")
        return
    compress.argtypes, compress.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_int
    if compress(native.context(builder.context), 0) != 1:
        builder.add_notice("ssl_certificate_compression", f"nothing was compressed: {native.errors()}")


def run_conf_commands(
    builder: ContextBuilder, native: OpenSsl, directive: str, commands: Sequence[tuple[str, str]], role: int
) -> None:
    """Apply the commands of a directive such as ``ssl_conf_command``, after everything else.

    Args:
        builder: The context, and its problems.
        native: The library.
        directive: The directive, for problems.
        commands: Names and values.
        role: ``AS_CLIENT`` or ``AS_SERVER``.
    """
    if not commands:
        return
    lib = native.lib
    conf = lib.SSL_CONF_CTX_new()
    try:
        lib.SSL_CONF_CTX_set_flags(conf, _CONF_FLAGS | role)
        lib.SSL_CONF_CTX_set_ssl_ctx(conf, native.context(builder.context))
        for position, (name, value) in enumerate(commands):
            if lib.SSL_CONF_cmd(conf, name.encode(), value.encode()) <= 0:
                builder.add_problem(
                    f"{directive}[{position}]",
                    f'SSL_CONF_cmd("{name}", "{value}") failed: {native.errors()}',
                )
        if lib.SSL_CONF_CTX_finish(conf) != 1:
            builder.add_problem(directive, f"SSL_CONF_CTX_finish() failed: {native.errors()}")
    finally:
        lib.SSL_CONF_CTX_free(conf)


def set_versions(builder: ContextBuilder, directive: str, wanted: Set[str]) -> None:
    """Disable every version that is not named; there may be gaps between them."""
    if not any(available for name, (_, available) in _VERSIONS.items() if name in wanted):
        builder.add_problem(directive, f"{ssl.OPENSSL_VERSION} has none of {', '.join(sorted(wanted))}")
        return
    for name in sorted(wanted):
        if not _VERSIONS.get(name, (0, False))[1]:
            builder.add_notice(directive, f"{ssl.OPENSSL_VERSION} has no {name}: ignored")
    context = builder.context
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # minimum and maximum versions cannot express gaps
        for name, (disable, available) in _VERSIONS.items():
            if name not in wanted or not available:
                context.options |= disable
            else:
                context.options &= ~disable


def _alpn_callback(native: OpenSsl, protocol: Protocol, others: Set[bytes] | None) -> object:
    """Make the callback for a client's ALPN offer: it must contain our protocol (RFC 7301 section 3.2).

    Args:
        native: The library.
        protocol: Our protocol.
        others: Only an offer with one of these is refused instead (RFC 9325 section 3.8); an offer with
            none of them and without ours gets no ALPN.  ``None``: every one is refused.
    """
    ours = bytes([len(protocol.value)]) + protocol.value.encode()
    data = ctypes.create_string_buffer(ours, len(ours))
    start, length, choose = ctypes.addressof(data), len(ours), native.lib.SSL_select_next_proto

    def select(
        _connection: int, out: int, out_length: int, offered: int, offered_length: int, _own: int
    ) -> int:
        chosen = choose(out, out_length, start, length, offered, offered_length)
        if chosen == _NEGOTIATED:
            return _SELECTED
        if others is None or not others.isdisjoint(_names(ctypes.string_at(offered, offered_length))):
            return _FATAL
        return _NO_ACKNOWLEDGEMENT

    select.data = data  # type: ignore[attr-defined]  # exists as long as the callback that points to it
    return ALPN_CALLBACK(select)


def _names(offer: bytes) -> list[bytes]:
    """Return the names of an offer; OpenSSL has checked its lengths."""
    names = []
    while offer:
        names.append(offer[1 : 1 + offer[0]])
        offer = offer[1 + offer[0] :]
    return names


def _reason(error: ssl.SSLError) -> str:
    return reason_of(error).replace("_", " ").lower()

# SPDX-License-Identifier: Apache-2.0
"""What a handshake may agree on: versions, ciphers, groups, the application protocol, raw commands."""

from __future__ import annotations

import ctypes
import ssl
import warnings
from typing import Final

from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import ALPN_CALLBACK, OpenSsl, reason_of
from mailproxy_config.model import Protocol

_VERSIONS: Final = {
    # ssl_protocols: the option that switches it off, whether this library has it
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
_CONF_FLAGS: Final = 0x2 | 0x8 | 0x10 | 0x20
"""As in a file, for a server, with reasons for what fails, certificates allowed: nginx's own."""
_SELECTED, _FATAL = 0, 2
_NEGOTIATED: Final = 1


def apply(draft: ContextBuilder) -> None:
    """Set what ``ssl`` itself can set: versions, ciphers, their order, Diffie-Hellman parameters."""
    server, context = draft.server, draft.context
    _set_versions(draft)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # Else OpenSSL 3 answers a client that leaves without close_notify with a fatal alert.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    if server.ssl_prefer_server_ciphers:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.set_ciphers(server.ssl_ciphers)
    except ssl.SSLError as error:
        draft.refuse(
            "ssl_ciphers", f'SSL_CTX_set_cipher_list("{server.ssl_ciphers}") failed: {_words(error)}'
        )
    if server.ssl_dhparam is not None and draft.contents("ssl_dhparam", server.ssl_dhparam) is not None:
        try:
            context.load_dh_params(server.ssl_dhparam)
        except ssl.SSLError as error:
            draft.refuse("ssl_dhparam", f'cannot load "{server.ssl_dhparam}": {_words(error)}')


def apply_native(draft: ContextBuilder, native: OpenSsl) -> None:
    """Set what OpenSSL alone can set, except for what ``commands`` adds at the end."""
    lib, context = native.lib, native.context(draft.context)
    # one read takes what is there, instead of a header and then a record (the connection's `pending` knows)
    lib.SSL_CTX_ctrl(context, _SET_READ_AHEAD, 1, None)
    # what clients are verified with is not to be sent along with our certificate
    lib.SSL_CTX_ctrl(context, _SET_MODE, _NO_AUTO_CHAIN, None)
    groups = draft.server.ssl_ecdh_curve
    if groups != "auto" and lib.SSL_CTX_ctrl(context, _SET_GROUPS_LIST, 0, groups.encode()) != 1:
        draft.refuse("ssl_ecdh_curve", f'SSL_CTX_set1_curves_list("{groups}") failed: {native.errors()}')
    selector = _selector(native, draft.server.protocol)
    draft.kept.append(selector)
    lib.SSL_CTX_set_alpn_select_cb(context, selector, None)


def compress(draft: ContextBuilder, native: OpenSsl | None) -> None:
    """Compress our certificates (RFC 8879), where the library can; as in nginx, no reason to fail."""
    if not draft.server.ssl_certificate_compression:
        return
    squeeze = getattr(native.lib, "SSL_CTX_compress_certs", None) if native is not None else None
    if native is None or squeeze is None:
        draft.notice("ssl_certificate_compression", f"{ssl.OPENSSL_VERSION} cannot do it: ignored")
        return
    squeeze.argtypes, squeeze.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_int
    if squeeze(native.context(draft.context), 0) != 1:
        draft.notice("ssl_certificate_compression", f"nothing was compressed: {native.errors()}")


def commands(draft: ContextBuilder, native: OpenSsl) -> None:
    """Run ``ssl_conf_command``, after everything else."""
    if not draft.server.ssl_conf_command:
        return
    lib = native.lib
    conf = lib.SSL_CONF_CTX_new()
    try:
        lib.SSL_CONF_CTX_set_flags(conf, _CONF_FLAGS)
        lib.SSL_CONF_CTX_set_ssl_ctx(conf, native.context(draft.context))
        for position, (name, value) in enumerate(draft.server.ssl_conf_command):
            if lib.SSL_CONF_cmd(conf, name.encode(), value.encode()) <= 0:
                draft.refuse(
                    f"ssl_conf_command[{position}]",
                    f'SSL_CONF_cmd("{name}", "{value}") failed: {native.errors()}',
                )
        if lib.SSL_CONF_CTX_finish(conf) != 1:
            draft.refuse("ssl_conf_command", f"SSL_CONF_CTX_finish() failed: {native.errors()}")
    finally:
        lib.SSL_CONF_CTX_free(conf)


def _set_versions(draft: ContextBuilder) -> None:
    """Switch every version off that is not named, however odd the selection."""
    wanted = draft.server.ssl_protocols
    if not any(available for name, (_, available) in _VERSIONS.items() if name in wanted):
        draft.refuse("ssl_protocols", f"{ssl.OPENSSL_VERSION} has none of {', '.join(sorted(wanted))}")
        return
    for name in sorted(wanted):
        if not _VERSIONS.get(name, (0, False))[1]:
            draft.notice("ssl_protocols", f"{ssl.OPENSSL_VERSION} has no {name}: ignored")
    context = draft.context
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # minimum and maximum cannot leave one out
        for name, (switched_off, available) in _VERSIONS.items():
            if name not in wanted or not available:
                context.options |= switched_off
            else:
                context.options &= ~switched_off


def _selector(native: OpenSsl, protocol: Protocol) -> object:
    """Make the callback for a client's ALPN offer: ours must be in it (RFC 7301 section 3.2)."""
    ours = bytes([len(protocol.value)]) + protocol.value.encode()
    data = ctypes.create_string_buffer(ours, len(ours))
    start, length, choose = ctypes.addressof(data), len(ours), native.lib.SSL_select_next_proto

    def select(
        _connection: int, out: int, out_length: int, offered: int, offered_length: int, _own: int
    ) -> int:
        chosen = choose(out, out_length, start, length, offered, offered_length)
        return _SELECTED if chosen == _NEGOTIATED else _FATAL

    select.data = data  # type: ignore[attr-defined]  # lives as long as the callback that points at it
    return ALPN_CALLBACK(select)


def _words(error: ssl.SSLError) -> str:
    return reason_of(error).replace("_", " ").lower()

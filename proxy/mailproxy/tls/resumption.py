# SPDX-License-Identifier: Apache-2.0
"""Session resumption: ``ssl_session_cache``, ``_timeout``, ``_tickets``, ``_ticket_key``.

Tickets are what works across workers: all seal them with the same key, which
the supervisor rotates.  A cache, ``shared`` or not, belongs to one worker.
"""

from __future__ import annotations

import ctypes
import os
import ssl
from collections.abc import Sequence
from typing import Final

from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import TICKET_CALLBACK, OpenSsl
from mailproxy.tls.ticket_keys import KEY_BYTES, SHORT_KEY_BYTES, TicketKey, TicketKeys
from mailproxy_config.model import SessionCache

DEFAULT_ENTRIES: Final = 20480
BYTES_PER_SESSION: Final = 1024
"""What a session of a ``shared`` cache is reckoned at."""

_SET_CACHE_SIZE: Final = 42
_SET_CACHE_MODE: Final = 44
_CACHE_SERVER: Final = 0x2
_NO_AUTO_CLEAR: Final = 0x80
_NO_INTERNAL_STORE: Final = 0x200
_TLS_1_3: Final = 0x0304
_ASK_NO_MORE, _ASK_AGAIN, _UNKNOWN, _BROKEN = 1, 2, 0, -1


class _Parameter(ctypes.Structure):
    """``OSSL_PARAM``."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("kind", ctypes.c_uint),
        ("data", ctypes.c_char_p),
        ("size", ctypes.c_size_t),
        ("returned", ctypes.c_size_t),
    )


def apply(draft: ContextBuilder, native: OpenSsl, ticket_keys: TicketKeys) -> None:
    """Say which sessions may be resumed, for how long, and with which keys."""
    server, lib, context = draft.server, native.lib, native.context(draft.context)
    lib.SSL_CTX_set_timeout(context, int(server.ssl_session_timeout))
    entries = _entries(server.ssl_session_cache)
    lib.SSL_CTX_ctrl(context, _SET_CACHE_MODE, _mode(server.ssl_session_cache, entries), None)
    lib.SSL_CTX_ctrl(context, _SET_CACHE_SIZE, entries or 1, None)
    draft.context.num_tickets = 1
    if not server.ssl_session_tickets:
        draft.context.options |= ssl.OP_NO_TICKET
        draft.context.num_tickets = 1 if entries else 0
    _set_ticket_keys(draft, native, context, ticket_keys)


def _entries(cache: SessionCache) -> int:
    """How many sessions a worker keeps; 0 for none."""
    if cache.off:
        return 0
    builtin = 0 if cache.builtin is None else cache.builtin or DEFAULT_ENTRIES
    return max(builtin, (cache.shared_size or 0) // BYTES_PER_SESSION)


def _mode(cache: SessionCache, entries: int) -> int:
    if cache.off:
        return 0
    return _CACHE_SERVER if entries else _CACHE_SERVER | _NO_AUTO_CLEAR | _NO_INTERNAL_STORE


def _set_ticket_keys(draft: ContextBuilder, native: OpenSsl, context: int, ticket_keys: TicketKeys) -> None:
    files = draft.server.ssl_session_ticket_key
    if files:
        ticket_keys = _from_files(draft, files) or ticket_keys
    callback = _sealer(native, ticket_keys)
    draft.kept.append(callback)
    native.lib.SSL_CTX_set_tlsext_ticket_key_evp_cb(context, callback)


def _from_files(draft: ContextBuilder, files: Sequence[str]) -> TicketKeys | None:
    """Read the keys; ``None``, with the problems noted, where one cannot be read."""
    keys: list[bytes] = []
    for position, path in enumerate(files):
        place = f"ssl_session_ticket_key[{position}]"
        contents = draft.contents(place, path)
        if contents is None:
            continue
        if len(contents) in {KEY_BYTES, SHORT_KEY_BYTES}:
            keys.append(contents)
        else:
            draft.refuse(place, f'"{path}" must be 48 or 80 bytes')
    return TicketKeys(keys) if len(keys) == len(files) else None


def _sealer(native: OpenSsl, ticket_keys: TicketKeys) -> object:
    """Make the callback that gives OpenSSL a ticket's keys: the first to seal, any to open (RFC 5077)."""
    lib = native.lib
    sha256 = (_Parameter * 2)(_Parameter(b"digest", 4, b"SHA256", 6, 0), _Parameter())

    def seal(name: int, vector: int, cipher: int, mac: int) -> int:
        key, fresh = ticket_keys.keys[0], os.urandom(16)
        ctypes.memmove(name, key.name, 16)
        ctypes.memmove(vector, fresh, 16)
        kind = lib.EVP_aes_128_cbc() if len(key.aes) == 16 else lib.EVP_aes_256_cbc()
        sealed = lib.EVP_EncryptInit_ex(cipher, kind, None, key.aes, fresh)
        return _ASK_NO_MORE if sealed and lib.EVP_MAC_init(mac, key.hmac, len(key.hmac), sha256) else _BROKEN

    def open_(key: TicketKey, vector: int, cipher: int, mac: int) -> bool:
        kind = lib.EVP_aes_128_cbc() if len(key.aes) == 16 else lib.EVP_aes_256_cbc()
        opened = lib.EVP_DecryptInit_ex(cipher, kind, None, key.aes, vector)
        return bool(opened and lib.EVP_MAC_init(mac, key.hmac, len(key.hmac), sha256))

    def callback(connection: int, name: int, vector: int, cipher: int, mac: int, sealing: int) -> int:
        if sealing:
            return seal(name, vector, cipher, mac)
        wanted = ctypes.string_at(name, 16)
        for position, key in enumerate(ticket_keys.keys):
            if key.name == wanted:
                if not open_(key, vector, cipher, mac):
                    return _BROKEN
                renewed = position > 0 or lib.SSL_version(connection) == _TLS_1_3
                return _ASK_AGAIN if renewed else _ASK_NO_MORE
        return _UNKNOWN

    return TICKET_CALLBACK(callback)

# SPDX-License-Identifier: Apache-2.0
"""Session resumption: ``ssl_session_cache``, ``_timeout``, ``_tickets``, ``_ticket_key`` (RFC 5077).

Tickets work across workers: all workers encrypt them with the same key, which
the supervisor rotates.  A cache, ``shared`` or not, belongs to one worker.
"""

from __future__ import annotations

import ctypes
import os
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mailproxy.tls.context_builder import ContextBuilder
from mailproxy.tls.openssl import TICKET_CALLBACK, OpenSsl
from mailproxy_config.model import SessionCache

DEFAULT_ENTRIES: Final = 20480
BYTES_PER_SESSION: Final = 1024
"""Size of one session, by which the size of a ``shared`` cache becomes a number of sessions."""
KEY_BYTES: Final = 80
"""Length of a ticket key in OpenSSL and nginx: name 16, HMAC 32, AES 32."""
SHORT_KEY_BYTES: Final = 48
"""Length of nginx's older form: name 16, AES 16, HMAC 16."""

_SET_CACHE_SIZE: Final = 42
_SET_CACHE_MODE: Final = 44
_CACHE_SERVER: Final = 0x2
_NO_AUTO_CLEAR: Final = 0x80
_NO_INTERNAL_STORE: Final = 0x200
_TLS_1_3: Final = 0x0304
_USE, _USE_AND_RENEW, _UNKNOWN_KEY, _FAILED = 1, 2, 0, -1


@dataclass(frozen=True, slots=True)
class TicketKey:
    """A key that encrypts and decrypts session tickets.  A secret."""

    name: bytes
    aes: bytes = field(repr=False)
    hmac: bytes = field(repr=False)

    @classmethod
    def parse(cls, content: bytes) -> TicketKey:
        """Parse the content of an ``ssl_session_ticket_key`` file.

        Raises:
            ValueError: Its length is neither 48 nor 80 bytes.
        """
        if len(content) == KEY_BYTES:
            return cls(content[:16], content[48:], content[16:48])
        if len(content) == SHORT_KEY_BYTES:
            return cls(content[:16], content[16:32], content[32:])
        msg = f"{len(content)} bytes, where a ticket key has 48 or 80"
        raise ValueError(msg)


class TicketKeys:
    """Keys of which the first encrypts tickets and each decrypts them.

    Contexts built with them use the new keys after ``replace``.

    Args:
        keys: One or more; see ``TicketKey.parse``.

    Raises:
        ValueError: There is none, or one has another length.
    """

    __slots__ = ("keys",)

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.keys: tuple[TicketKey, ...]
        self.replace(keys)

    @classmethod
    def random(cls) -> TicketKeys:
        """Make one random key."""
        return cls([new_key()])

    def replace(self, keys: Iterable[bytes]) -> None:
        """Replace all keys.

        Raises:
            ValueError: There is none, or one has another length; the keys stay unchanged.
        """
        parsed = tuple(map(TicketKey.parse, keys))
        if not parsed:
            raise ValueError("no ticket key")
        self.keys = parsed


def new_key() -> bytes:
    """Make a random key."""
    return os.urandom(KEY_BYTES)


class _OsslParam(ctypes.Structure):
    """``OSSL_PARAM``."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("kind", ctypes.c_uint),
        ("data", ctypes.c_char_p),
        ("size", ctypes.c_size_t),
        ("returned", ctypes.c_size_t),
    )


def apply(builder: ContextBuilder, native: OpenSsl, ticket_keys: TicketKeys) -> None:
    """Set which sessions may be resumed, for how long, and with which keys."""
    server, lib, context = builder.server, native.lib, native.context(builder.context)
    lib.SSL_CTX_set_timeout(context, int(server.ssl_session_timeout))
    entries = _cache_size(server.ssl_session_cache)
    if server.ssl_session_cache.off:
        mode = 0
    else:
        mode = _CACHE_SERVER if entries else _CACHE_SERVER | _NO_AUTO_CLEAR | _NO_INTERNAL_STORE
    lib.SSL_CTX_ctrl(context, _SET_CACHE_MODE, mode, None)
    lib.SSL_CTX_ctrl(context, _SET_CACHE_SIZE, entries or 1, None)
    builder.context.num_tickets = 1
    if not server.ssl_session_tickets:
        builder.context.options |= ssl.OP_NO_TICKET
        builder.context.num_tickets = 1 if entries else 0
    if server.ssl_session_ticket_key:
        ticket_keys = _read_ticket_keys(builder, server.ssl_session_ticket_key) or ticket_keys
    callback = _ticket_callback(native, ticket_keys)
    builder.references.append(callback)
    lib.SSL_CTX_set_tlsext_ticket_key_evp_cb(context, callback)


def _cache_size(cache: SessionCache) -> int:
    """Return the number of sessions that a worker caches."""
    if cache.off:
        return 0
    builtin = 0 if cache.builtin is None else cache.builtin or DEFAULT_ENTRIES
    return max(builtin, (cache.shared_size or 0) // BYTES_PER_SESSION)


def _read_ticket_keys(builder: ContextBuilder, files: Sequence[str]) -> TicketKeys | None:
    """Read the key files; if one is bad, add problems and return ``None``."""
    keys: list[bytes] = []
    for position, path in enumerate(files):
        place = f"ssl_session_ticket_key[{position}]"
        contents = builder.read_file(place, path)
        if contents is None:
            continue
        if len(contents) in {KEY_BYTES, SHORT_KEY_BYTES}:
            keys.append(contents)
        else:
            builder.add_problem(place, f'"{path}" must be 48 or 80 bytes')
    return TicketKeys(keys) if len(keys) == len(files) else None


def _ticket_callback(native: OpenSsl, ticket_keys: TicketKeys) -> object:
    """Make the callback with which OpenSSL sets up the ciphers for a ticket."""
    lib = native.lib
    sha256 = (_OsslParam * 2)(_OsslParam(b"digest", 4, b"SHA256", 6, 0), _OsslParam())

    def encrypt(name: int, iv_out: int, cipher: int, mac: int) -> int:
        key, iv = ticket_keys.keys[0], os.urandom(16)
        ctypes.memmove(name, key.name, 16)
        ctypes.memmove(iv_out, iv, 16)
        kind = lib.EVP_aes_128_cbc() if len(key.aes) == 16 else lib.EVP_aes_256_cbc()
        initialized = lib.EVP_EncryptInit_ex(cipher, kind, None, key.aes, iv)
        return _USE if initialized and lib.EVP_MAC_init(mac, key.hmac, len(key.hmac), sha256) else _FAILED

    def decrypt(key: TicketKey, iv_out: int, cipher: int, mac: int) -> bool:
        kind = lib.EVP_aes_128_cbc() if len(key.aes) == 16 else lib.EVP_aes_256_cbc()
        initialized = lib.EVP_DecryptInit_ex(cipher, kind, None, key.aes, iv_out)
        return bool(initialized and lib.EVP_MAC_init(mac, key.hmac, len(key.hmac), sha256))

    def callback(connection: int, name: int, iv_out: int, cipher: int, mac: int, encrypting: int) -> int:
        if encrypting:
            return encrypt(name, iv_out, cipher, mac)
        wanted = ctypes.string_at(name, 16)
        for position, key in enumerate(ticket_keys.keys):
            if key.name == wanted:
                if not decrypt(key, iv_out, cipher, mac):
                    return _FAILED
                renewed = position > 0 or lib.SSL_version(connection) == _TLS_1_3
                return _USE_AND_RENEW if renewed else _USE
        return _UNKNOWN_KEY

    return TICKET_CALLBACK(callback)

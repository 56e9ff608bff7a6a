# SPDX-License-Identifier: Apache-2.0
"""The key of a cached login: a keyed hash of everything that a decision may depend on.

It is HMAC-SHA-256 (RFC 2104) with a key that each process makes at random, so that entries of two processes
cannot be compared.  It is made of two hashes that have read the key already: a third of the time that the
module ``hmac`` takes, which creates them for each message.
"""

from __future__ import annotations

import json
import secrets
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from mailproxy.enums import Method
from mailproxy.protocols.sasl_tokens import TOKEN_METHODS
from mailproxy.protocols.types import AuthRequest, Client
from mailproxy_config.auth_cache import CacheKeyPart
from mailproxy_config.model import ServerConfig, VerifyClient

_WORDS: Final = {
    Method.PASSWORD: b"plain",
    Method.PLAIN: b"plain",
    Method.LOGIN: b"plain",
    Method.XOAUTH2: b"xoauth2",
    Method.OAUTHBEARER: b"oauthbearer",
}
"""The methods whose logins are cached, by ``Auth-Method``.

The others have no credentials (EXTERNAL, none), or some that are for one connection only (APOP, CRAM-MD5).
"""
_BLOCK: Final = 64
"""Bytes of a block of SHA-256."""
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))
_FROM_BASE64URL: Final = bytes.maketrans(b"-_", b"+/")


class CacheKeys:
    """Computes the keys of a server block.

    Args:
        server: The server block.
        secret: The random key of the process, from ``new_secret``.
    """

    __slots__ = ("_inner", "_outer", "_parts", "_prefix", "_verifies")

    def __init__(self, server: ServerConfig, secret: bytes) -> None:
        padded = secret.ljust(_BLOCK, b"\0")
        self._inner = sha256(padded.translate(_INNER_PAD))
        self._outer = sha256(padded.translate(_OUTER_PAD))
        self._prefix = _joined((server.name.encode(), server.protocol.encode()))
        self._parts = server.auth_cache_key
        self._verifies = server.ssl_verify_client is not VerifyClient.DISABLED

    def __repr__(self) -> str:
        return "<CacheKeys>"

    def key(self, request: AuthRequest) -> bytes | None:
        """Return the key of a login; ``None`` if it is not cached."""
        credentials = request.credentials
        word = _WORDS.get(credentials.method)
        password = credentials.password
        if word is None or password is None or request.was_deferred:
            return None
        parts = (word, credentials.user, password.reveal(), request.token_issuer.encode())
        message = self._prefix + _joined(parts) + _joined(self._facts(request.client))
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()

    def _facts(self, client: Client) -> Iterator[bytes]:
        """Yield the facts about the client: always whether it uses TLS, and its certificate."""
        tls = client.tls
        yield b"" if tls is None else b"tls"
        if self._verifies and tls is not None:
            yield b"%d" % tls.verify_code
            yield b"" if tls.certificate is None else tls.certificate.pem
        if not self._parts:
            return
        if CacheKeyPart.ADDRESS in self._parts:
            yield _text(client.address)
        if CacheKeyPart.DESTINATION in self._parts:
            address, port = client.connected
            yield _text(f"{address} {port}")
        if CacheKeyPart.SERVER_NAME in self._parts:
            received = client.received
            yield (b"" if tls is None else tls.server_name) or b""
            yield b"" if received is None else received.server_name


def new_secret() -> bytes:
    """Return a random key for a process."""
    return secrets.token_bytes(32)


def token_expiry(request: AuthRequest) -> float | None:
    """Return when an access token expires, as a Unix time (the claim ``exp``, RFC 7519 section 4.1.4).

    The token is not validated here; the claim only ever shortens the time for which a login is cached.

    Returns:
        ``None`` for a password, and for a token without such a claim.
    """
    credentials = request.credentials
    if credentials.method not in TOKEN_METHODS or credentials.password is None:
        return None
    parts = credentials.password.reveal().split(b".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(a2b_base64(parts[1].translate(_FROM_BASE64URL) + b"=="), parse_constant=_nothing)
    except (ValueError, NotBase64, RecursionError):
        return None
    expiry = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expiry, bool) or not isinstance(expiry, int | float):
        return None
    return float(min(expiry, 1e12))


def _nothing(_: str) -> None:
    """Read NaN and infinity, which JSON does not have, as null."""


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _joined(parts: tuple[bytes, ...] | Iterator[bytes]) -> bytes:
    """Join parts with their lengths, so that no two lists of parts give the same bytes."""
    return b"".join([b"%d:%b," % (len(part), part) for part in parts])

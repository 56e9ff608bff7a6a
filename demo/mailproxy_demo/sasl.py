# SPDX-License-Identifier: Apache-2.0
"""What the demo's servers and its authentication service need to check credentials."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac


def decoded(word: bytes | str) -> bytes:
    """Decode base64; nothing comes out of nonsense."""
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        return b""


def plain_credentials(word: bytes | str) -> tuple[str, str]:
    """Split a SASL PLAIN message into user and password (RFC 4616)."""
    parts = decoded(word).split(b"\0")
    if len(parts) != 3:
        return "", ""
    return parts[1].decode(errors="surrogateescape"), parts[2].decode(errors="surrogateescape")


def cram_md5_digest(salt: str, password: str) -> str:
    """Compute the digest a client sends for a CRAM-MD5 challenge (RFC 2195)."""
    return hmac.new(password.encode(), salt.encode(), hashlib.md5).hexdigest()


def apop_digest(salt: str, password: str) -> str:
    """Compute the digest a client sends with APOP (RFC 1939 section 7)."""
    return hashlib.md5((salt + password).encode()).hexdigest()  # noqa: S324  the protocol demands MD5

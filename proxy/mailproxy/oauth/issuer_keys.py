# SPDX-License-Identifier: Apache-2.0
"""The public keys of an issuer, from a JSON Web Key Set (RFC 7517), and signatures that they verify.

PyJWT imports the keys and verifies the signatures.  The algorithm comes from the key: a token only
confirms it, so that a token cannot choose another one (RFC 8725 section 3.1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

from mailproxy.enums import TokenFinding
from mailproxy.oauth.access_token import MAX_KID, ParsedToken, TokenRefused
from mailproxy_config.oauth_issuer import TokenAlgorithm

MAX_JWKS: Final = 256 * 1024
"""Bytes of a key set."""
MAX_KEYS: Final = 64
"""Keys of an issuer that are used; more are ignored."""
MIN_RSA_BITS: Final = 2048
"""RFC 7518 section 3.3."""
MAX_RSA_BITS: Final = 8192

_MAX_MEMBER: Final = 1400
"""Characters of a member of a key; the modulus of ``MAX_RSA_BITS`` has 1366."""
_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
"""The members of a public key; others, a private exponent among them, are not used."""
_RSA_ALGORITHMS: Final = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
_BY_CURVE: Final = {
    "P-256": TokenAlgorithm.ES256,
    "P-384": TokenAlgorithm.ES384,
    "P-521": TokenAlgorithm.ES512,
    "Ed25519": TokenAlgorithm.EDDSA,
}
_ED25519: Final = "Ed25519"
"""The newer name of the algorithm EdDSA with this curve (RFC 9864)."""


class InvalidJwks(Exception):
    """A key set has no usable key.

    Attributes:
        is_empty: Whether it is a key set, without a key for signatures.
    """

    def __init__(self, message: str, *, is_empty: bool = False) -> None:
        super().__init__(message)
        self.is_empty = is_empty


class IssuerKey:
    """A public key, and the only algorithm that it is used with."""

    __slots__ = ("_jwk", "algorithm")

    def __init__(self, jwk: PyJWK, algorithm: TokenAlgorithm) -> None:
        self._jwk = jwk
        self.algorithm = algorithm

    def verify(self, token: ParsedToken, allowed: tuple[TokenAlgorithm, ...]) -> None:
        """Verify the signature of a token.

        Args:
            token: The token.
            allowed: The algorithms that the issuer may use.

        Raises:
            TokenRefused: The algorithm is another one, or not allowed, or the signature is wrong.
        """
        named = TokenAlgorithm.EDDSA if token.algorithm == _ED25519 else token.algorithm
        if named != self.algorithm or self.algorithm not in allowed:
            raise TokenRefused(TokenFinding.ALGORITHM)
        try:
            is_valid = self._jwk.Algorithm.verify(token.signed, self._jwk.key, token.signature)
        except (PyJWTError, ValueError, TypeError):
            is_valid = False
        if not is_valid:
            raise TokenRefused(TokenFinding.SIGNATURE)


def parse_jwks(body: bytes) -> dict[str, IssuerKey]:
    """Read a key set.  Keys for encryption, of unknown types, or without ``kid`` are ignored.

    Returns:
        The keys for signatures, by their ``kid``; of two with the same one, the first.

    Raises:
        InvalidJwks: It is no key set, or has no such key.
    """
    try:
        listed = json.loads(body.decode())["keys"]
    except (ValueError, RecursionError, LookupError, TypeError):
        raise InvalidJwks("the response is not a JSON Web Key Set") from None
    if not isinstance(listed, list):
        raise InvalidJwks("the response is not a JSON Web Key Set")
    found: dict[str, IssuerKey] = {}
    for entry in listed[:MAX_KEYS]:
        key = _key(entry) if isinstance(entry, dict) else None
        if key is not None:
            found.setdefault(entry["kid"], key)
    if not found:
        raise InvalidJwks("the key set has no key for signatures", is_empty=True)
    return found


def _key(entry: Mapping[str, Any]) -> IssuerKey | None:
    kid, algorithm = entry.get("kid"), _algorithm(entry)
    if algorithm is None or not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID or not _is_for_us(entry):
        return None
    members = {name: entry.get(name) for name in _MEMBERS[entry["kty"]]}
    if not all(isinstance(value, str) and len(value) <= _MAX_MEMBER for value in members.values()):
        return None
    try:
        jwk = PyJWK({"kty": entry["kty"], **members}, str(algorithm))
    except (PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    key = jwk.key
    if isinstance(key, RSAPublicKey) and not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return None
    return IssuerKey(jwk, algorithm)


def _is_for_us(entry: Mapping[str, Any]) -> bool:
    """Whether a key is one to verify signatures with (RFC 7517 sections 4.2 and 4.3)."""
    operations = entry.get("key_ops")
    can_verify = operations is None or (isinstance(operations, list) and "verify" in operations)
    return entry.get("use") in (None, "sig") and can_verify


def _algorithm(entry: Mapping[str, Any]) -> TokenAlgorithm | None:
    """Return the algorithm of a key: the one that it names, if that fits its type, else the usual one."""
    kty, named = entry.get("kty"), entry.get("alg")
    if kty == "RSA":
        name = "RS256" if named is None else named
        return TokenAlgorithm(name) if isinstance(name, str) and name in _RSA_ALGORITHMS else None
    curve = entry.get("crv")
    if kty not in ("EC", "OKP") or not isinstance(curve, str) or (kty == "OKP") != (curve == _ED25519):
        return None
    algorithm = _BY_CURVE.get(curve)
    is_its_name = named is None or named == algorithm or (named == _ED25519 == curve)
    return algorithm if is_its_name else None

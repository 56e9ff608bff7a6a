# SPDX-License-Identifier: Apache-2.0
"""The content of an access token: its parts, and what its claims must be (RFC 7515, RFC 7519, RFC 9068).

Nothing of a token is believed before its signature is verified, except which issuer and key it names.
"""

from __future__ import annotations

import json
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from mailproxy.enums import TokenFinding
from mailproxy_config.oauth_issuer import OAuthIssuer, TokenType

MAX_KID: Final = 256
"""Characters of a key identifier."""
MAX_IDENTITY: Final = 255
"""Bytes of a user name."""

_FROM_BASE64URL: Final = bytes.maketrans(b"-_+/=", b"+/!!!")  # "!" is invalid in both alphabets
_PADDING: Final = (b"", b"!", b"==", b"=")
_CONTROLS: Final = bytes((*range(0x20), 0x7F))
_ACCESS_TOKEN_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
_CLIENT_CLAIMS: Final = ("azp", "client_id", "appid")
"""Names of the claim with the client: OpenID Connect's, RFC 9068's, and that of Entra ID version 1."""
_SCOPE_CLAIMS: Final = ("scope", "scp")

_END: Final = 1e12
"""A Unix time of the year 33658; NaN and infinity are on neither side of it."""

Json = Mapping[str, Any]


class TokenRefused(Exception):
    """A token does not log in.

    Attributes:
        result: Why; the label of the metric.
    """

    def __init__(self, result: TokenFinding) -> None:
        super().__init__(result.value)
        self.result = result


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """The parts of a token that is not verified yet."""

    header: Json
    claims: Json
    algorithm: str
    key_id: str
    issuer: str
    signed: bytes
    """What the signature is over."""
    signature: bytes


def parse_token(token: bytes) -> ParsedToken:
    """Parse the compact form of a signed token (RFC 7515 section 7.1).

    Raises:
        TokenRefused: It is none, or it has extensions that must be understood (``crit``).
    """
    parts = token.split(b".", 3)
    if len(parts) != 3:
        raise TokenRefused(TokenFinding.MALFORMED)
    header, claims = _json(parts[0]), _json(parts[1])
    algorithm, key_id, issuer = header.get("alg"), header.get("kid"), claims.get("iss")
    if "crit" in header or "b64" in header or not isinstance(algorithm, str):
        raise TokenRefused(TokenFinding.MALFORMED)
    if not isinstance(issuer, str):
        raise TokenRefused(TokenFinding.ISSUER)
    if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KID:
        raise TokenRefused(TokenFinding.UNKNOWN_KEY)
    return ParsedToken(
        header, claims, algorithm, key_id, issuer, b"%b.%b" % (parts[0], parts[1]), _decoded(parts[2])
    )


def _decoded(text: bytes) -> bytes:
    """Decode base64url without padding (RFC 7515 section 2)."""
    try:
        return a2b_base64(text.translate(_FROM_BASE64URL) + _PADDING[len(text) & 3], strict_mode=True)
    except NotBase64:
        raise TokenRefused(TokenFinding.MALFORMED) from None


def _json(text: bytes) -> Json:
    try:
        found = json.loads(_decoded(text).decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise TokenRefused(TokenFinding.MALFORMED) from None
    if not isinstance(found, dict):
        raise TokenRefused(TokenFinding.MALFORMED)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def check_claims(token: ParsedToken, issuer: OAuthIssuer, user: bytes, now: float) -> bytes:
    """Check a token whose signature is verified.

    Args:
        token: The token; its ``iss`` is that of the issuer.
        issuer: What its tokens must have.
        user: The user name that the client sent; empty if it sent none.
        now: The time, as a Unix time.

    Returns:
        The user name of the token.

    Raises:
        TokenRefused: It does not have that.
    """
    claims = token.claims
    _check_time(claims, issuer.leeway, now)
    audience = claims.get("aud")
    if not _is_one_of(audience if isinstance(audience, list) else [audience], issuer.audiences):
        raise TokenRefused(TokenFinding.AUDIENCE)
    if not _is_access_token(token, issuer.token_type):
        raise TokenRefused(TokenFinding.TYPE)
    clients = [claims[name] for name in _CLIENT_CLAIMS if name in claims]
    allowed = issuer.allowed_clients
    if allowed and not (clients and all(_is_one_of([client], allowed) for client in clients)):
        raise TokenRefused(TokenFinding.CLIENT)
    if not set(issuer.scope.split()) <= _scopes(claims):
        raise TokenRefused(TokenFinding.SCOPE)
    return _identity(claims, issuer, user)


def _is_one_of(values: list[Any], allowed: tuple[str, ...]) -> bool:
    return any(isinstance(value, str) and value in allowed for value in values)


def _check_time(claims: Json, leeway: int, now: float) -> None:
    """Check ``exp``, which is required, and ``nbf``."""
    if now >= _number(claims.get("exp"), TokenFinding.EXPIRED) + leeway:
        raise TokenRefused(TokenFinding.EXPIRED)
    if "nbf" in claims and now < _number(claims["nbf"], TokenFinding.NOT_YET_VALID) - leeway:
        raise TokenRefused(TokenFinding.NOT_YET_VALID)


def _number(value: object, otherwise: TokenFinding) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_END < value < _END:
        raise TokenRefused(otherwise)
    return value


def _is_access_token(token: ParsedToken, kind: TokenType) -> bool:
    """Whether the token is no ID token, refresh token or the like, as far as the issuer marks that.

    A token that is bound to a key of the client (``cnf``: RFC 9449, RFC 8705) is none that a bearer may use.
    """
    if "cnf" in token.claims:
        return False
    if kind is TokenType.KEYCLOAK:
        return token.claims.get("typ") == "Bearer"
    if kind is TokenType.RFC9068:
        marked = token.header.get("typ")
        return isinstance(marked, str) and marked.lower() in _ACCESS_TOKEN_TYPES
    return True


def _scopes(claims: Json) -> set[str]:
    found: set[str] = set()
    for value in (claims.get(name) for name in _SCOPE_CLAIMS):
        items = value.split() if isinstance(value, str) else value
        if isinstance(items, list):
            found |= {item for item in items if isinstance(item, str)}
    return found


def _identity(claims: Json, issuer: OAuthIssuer, user: bytes) -> bytes:
    value = claims.get(issuer.identity_claim)
    identity = value.encode("utf-8", "replace") if isinstance(value, str) else b""
    is_name = 0 < len(identity) <= MAX_IDENTITY and identity.translate(None, _CONTROLS) == identity
    if not is_name or identity.count(b"@") > 1:
        raise TokenRefused(TokenFinding.IDENTITY)
    if (
        issuer.identity_claim == "email"
        and issuer.require_email_verified
        and claims.get("email_verified") is not True
    ):
        raise TokenRefused(TokenFinding.UNVERIFIED)
    if issuer.identity_domains and _domain(identity) not in issuer.identity_domains:
        raise TokenRefused(TokenFinding.DOMAIN)
    if user and _comparable(user) != _comparable(identity):
        raise TokenRefused(TokenFinding.USER)
    return identity


def _domain(name: bytes) -> str:
    """Return the domain of a user name in lower case, as A-labels; empty if it has none."""
    domain = name.rpartition(b"@")[2] if b"@" in name else b""
    if domain.isascii():
        return domain.decode().lower()
    try:
        return domain.decode().encode("idna").decode().lower()
    except UnicodeError:
        return ""


def _comparable(name: bytes) -> bytes:
    """Return a user name with its domain in lower case."""
    local, at, domain = name.rpartition(b"@")
    return local + at + domain.lower() if at else domain

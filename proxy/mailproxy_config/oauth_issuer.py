# SPDX-License-Identifier: Apache-2.0
"""The value of ``oauth_issuer``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TokenType(StrEnum):
    """How an issuer marks its access tokens: Keycloak's claim ``typ``, RFC 9068, or not at all."""

    KEYCLOAK = "Keycloak"
    RFC9068 = "Rfc9068"
    ANY = "Any"


class TokenAlgorithm(StrEnum):
    """A signature algorithm of tokens (RFC 7518, RFC 8037): with public keys only."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    EDDSA = "EdDSA"


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthIssuer:
    """One item of ``oauth_issuer``: an issuer of access tokens, and what its tokens must have.

    ``identity_domains`` are in lower case; empty allows every identity, with one issuer only.
    An empty ``allowed_clients`` allows every client.  ``leeway`` is in seconds.
    """

    issuer: str
    jwks_uri: str
    audiences: tuple[str, ...]
    token_type: TokenType = TokenType.ANY
    identity_claim: str = "email"
    require_email_verified: bool = True
    identity_domains: tuple[str, ...] = ()
    allowed_clients: tuple[str, ...] = ()
    allowed_algorithms: tuple[TokenAlgorithm, ...] = tuple(TokenAlgorithm)
    scope: str = ""
    openid_configuration: str = ""
    leeway: int = 60

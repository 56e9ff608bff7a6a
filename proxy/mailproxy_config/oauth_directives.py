# SPDX-License-Identifier: Apache-2.0
"""Directives about logins with OAuth 2.0 access tokens, which nginx does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mailproxy_config.addresses import check_host, parse_host_port
from mailproxy_config.model import AuthMode
from mailproxy_config.oauth_issuer import OAuthIssuer, TokenAlgorithm, TokenType
from mailproxy_config.schema import Array, Boolean, Integer, Object, Schema, String
from mailproxy_config.static_directives import STATIC_DIRECTIVES
from mailproxy_config.value_types import (
    FLAG,
    INVALID_ITEM,
    Directive,
    ErrorPath,
    Inheritance,
    Raw,
    ValueType,
    choice,
    read_items,
)

TOKEN_METHODS: Final = ("xoauth2", "oauthbearer")
"""Methods of ``imap_auth``, ``pop3_auth`` and ``smtp_auth`` with an access token."""
MAX_ISSUERS: Final = 8
MAX_LEEWAY: Final = 300
"""Seconds by which the clocks of issuer and proxy may differ."""

_MAX_URL: Final = 512
_MAX_ISSUER: Final = 448
"""With the path of ``openidConfiguration`` behind it, a URL has at most ``_MAX_URL`` characters."""
_URL: Final = String(max_length=_MAX_URL, pattern=r"^https?://[!-~]+$", hint="an https:// URL")
_JWKS_URL: Final = String(
    max_length=_MAX_URL,
    pattern=r"^(https://[!-~]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?/[!-~]*)$",
    hint="an https:// URL, or an http:// URL of localhost, 127.0.0.1 or [::1]",
)
_NAME: Final = String(max_length=255, pattern=r"^[!-~]+$", hint="printable ASCII without spaces")
_TYPES: Final = tuple(map(str, TokenType))
_ALGORITHMS: Final = tuple(map(str, TokenAlgorithm))

_FIELDS: Final[Mapping[str, Schema]] = {
    "issuer": String(max_length=_MAX_ISSUER, pattern=_URL.pattern, hint=_URL.hint),
    "jwksUri": _JWKS_URL,
    "audiences": Array(items=_NAME, max_items=16, min_items=1),
    "tokenType": String(max_length=16, enum=_TYPES),
    "identityClaim": String(max_length=64, pattern=r"^[!-~]+$", hint="the name of a claim"),
    "requireEmailVerified": Boolean(),
    "identityDomains": Array(
        items=String(max_length=253, pattern=r"^[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?$", hint="a domain"),
        max_items=64,
    ),
    "allowedClients": Array(items=_NAME, max_items=64),
    "allowedAlgorithms": Array(
        items=String(max_length=8, enum=_ALGORITHMS), max_items=len(_ALGORITHMS), min_items=1
    ),
    "scope": String(
        max_length=512, pattern=r"^([!#-\[\]-~]+( [!#-\[\]-~]+)*)?$", hint="scopes with single spaces between"
    ),
    "openidConfiguration": _URL,
    "leeway": Integer(maximum=MAX_LEEWAY),
}
_MEANINGS: Final = {
    "issuer": "URL of the issuer, as in the claim iss.",
    "jwksUri": "URL of the issuer's keys (JWKS). http:// only on loopback. Redirects are not followed.",
    "audiences": "The claim aud must contain one of these.",
    "tokenType": "Keycloak: the claim typ is Bearer. Rfc9068: the header typ is at+jwt. Any: no check.",
    "identityClaim": "Claim with the user name. Default: email.",
    "requireEmailVerified": "With identityClaim email: the claim email_verified must be true. Default: true.",
    "identityDomains": "Domains of user names that this issuer may log in. Required with several issuers.",
    "allowedClients": "The claim azp, client_id or appid must be one of these. Empty: any client.",
    "allowedAlgorithms": "Signature algorithms. Default: all of them.",
    "scope": "Scopes that a token must have, with spaces between. Sent to clients in errors.",
    "openidConfiguration": "URL that is sent to clients in errors. Default: that of the issuer.",
    "leeway": "Seconds by which clocks may differ, at most 300. Default: 60.",
}
_PARAMETERS: Final = {
    "jwks_uri": "jwksUri",
    "audience": "audiences",
    "token_type": "tokenType",
    "identity_claim": "identityClaim",
    "require_email_verified": "requireEmailVerified",
    "identity_domain": "identityDomains",
    "allowed_client": "allowedClients",
    "allowed_algorithm": "allowedAlgorithms",
    "scope": "scope",
    "openid_configuration": "openidConfiguration",
    "leeway": "leeway",
}
"""Parameters in an ``nginx.conf``, and their fields.  Those of lists are repeated."""


def _check_jwks_uri(url: str) -> None:
    """Check the host and port, without the path."""
    rest = url.partition("://")[2]
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    if "@" in rest[:end]:
        raise ValueError("user and password are not accepted in the URL")
    parse_host_port(rest[:end])


def _read_issuer(value: Mapping[str, Any], path: ErrorPath) -> OAuthIssuer:
    path.field("jwksUri").try_read(lambda: _check_jwks_uri(value["jwksUri"]))
    domains = path.field("identityDomains")
    for index, domain in enumerate(value.get("identityDomains", ())):
        domains.item(index).try_read(lambda domain=domain: check_host(domain))  # type: ignore[misc]
    found: dict[str, Any] = {
        name: value[field]
        for name, field in (
            ("identity_claim", "identityClaim"),
            ("require_email_verified", "requireEmailVerified"),
            ("scope", "scope"),
            ("leeway", "leeway"),
        )
        if field in value
    }
    if "allowedAlgorithms" in value:
        listed = set(value["allowedAlgorithms"])
        found["allowed_algorithms"] = tuple(one for one in TokenAlgorithm if str(one) in listed)
    return OAuthIssuer(
        issuer=value["issuer"],
        jwks_uri=value["jwksUri"],
        audiences=tuple(value["audiences"]),
        token_type=TokenType(value.get("tokenType", TokenType.ANY)),
        identity_domains=tuple(str(domain).lower() for domain in value.get("identityDomains", ())),
        allowed_clients=tuple(value.get("allowedClients", ())),
        openid_configuration=value.get("openidConfiguration") or _openid_configuration(value["issuer"]),
        **found,
    )


def _openid_configuration(issuer: str) -> str:
    """The URL of OpenID Connect Discovery 1.0, section 4."""
    return issuer.removesuffix("/") + "/.well-known/openid-configuration"


def _read_issuers(values: Sequence[Any], path: ErrorPath) -> tuple[OAuthIssuer, ...]:
    found = read_items(values, path, _read_issuer)
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value is INVALID_ITEM:
            continue
        here = path.item(index)
        if value["issuer"] in seen:
            path.problems.add(here.field("issuer").text, f"{value['issuer']} is there twice")
        seen.add(value["issuer"])
        if len(values) > 1 and not value.get("identityDomains"):
            reason = (
                "is required with several issuers: else each of them could log in the users of the others"
            )
            path.problems.add(here.field("identityDomains").text, reason)
    return found


def _format_issuer(value: OAuthIssuer) -> Raw:
    found: dict[str, Raw] = {
        "issuer": value.issuer,
        "jwksUri": value.jwks_uri,
        "audiences": list(value.audiences),
        "tokenType": str(value.token_type),
        "identityClaim": value.identity_claim,
        "requireEmailVerified": value.require_email_verified,
        "allowedAlgorithms": [str(one) for one in value.allowed_algorithms],
        "openidConfiguration": value.openid_configuration,
        "leeway": value.leeway,
    }
    lists = {"identityDomains": value.identity_domains, "allowedClients": value.allowed_clients}
    found |= {name: list(items) for name, items in lists.items() if items}
    return found | ({"scope": value.scope} if value.scope else {})


def _parse_nginx_issuer(arguments: Sequence[str]) -> Raw:
    """``oauth_issuer ISSUER jwks_uri=URL audience=NAME ...``."""
    found: dict[str, Any] = {"issuer": arguments[0]}
    for word in arguments[1:]:
        name, equals, value = word.partition("=")
        field = _PARAMETERS.get(name)
        if field is None or not equals:
            raise ValueError(f"invalid parameter: {word}")
        if isinstance(_FIELDS[field], Array):
            found.setdefault(field, []).append(value)
        elif field in found:
            raise ValueError(f"duplicate parameter: {name}")
        else:
            found[field] = _parameter(field, value)
    return [found]


def _parameter(field: str, value: str) -> Raw:
    schema = _FIELDS[field]
    if isinstance(schema, Boolean):
        if value not in {"on", "off"}:
            raise ValueError(f'invalid value "{value}", it must be "on" or "off"')
        return value == "on"
    if isinstance(schema, Integer):
        if not (value.isascii() and value.isdecimal()) or len(value) > 4:
            raise ValueError(f'invalid number "{value[:40]}"')
        return int(value)
    return next((word for word in _TYPES if word.lower() == value.lower()), value)


_ISSUERS: Final = ValueType(
    syntax="list of {issuer, jwksUri, audiences, tokenType, identityClaim, requireEmailVerified, "
    "identityDomains, allowedClients, allowedAlgorithms, scope, openidConfiguration, leeway}",
    schema=Array(
        max_items=MAX_ISSUERS,
        items=Object(
            example="{issuer: URL, jwksUri: URL, audiences: [NAME]}",
            fields=_FIELDS,
            required=("issuer", "jwksUri", "audiences"),
            descriptions=_MEANINGS,
        ),
    ),
    read=_read_issuers,
    write=lambda value: list(map(_format_issuer, value)),
    nginx=_parse_nginx_issuer,
    arity=(3, None),
    appends=True,
    itemwise=True,
)

OAUTH_DIRECTIVES: Final = (
    Directive(
        name="oauth_strict",
        module="mail_core",
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "With OAUTHBEARER: refuses channel binding, and a host= that is not the server name of the "
            "client's TLS handshake."
        ),
    ),
    Directive(
        name="auth_mode",
        module="mail_auth_http",
        type=choice({"http": "Http", "jwt": "Jwt", "upstream": "Upstream", "static": "Static"}, AuthMode),
        default="Http",
        is_ours=True,
        meaning=(
            "Http: a service decides about logins; Jwt: it gets only valid tokens. Upstream: the mail server "
            "decides; Static: authUserFile."
        ),
    ),
    *STATIC_DIRECTIVES,
    Directive(
        name="oauth_issuer",
        field="oauthIssuers",
        module="mail_auth_http",
        type=_ISSUERS,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="With authMode Jwt: the issuers of access tokens, and what their tokens must have.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""

# SPDX-License-Identifier: Apache-2.0
"""``auth_mode`` and ``oauth_issuer``: values, defaults, and what is refused."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.errors import Problem, Problems
from mailproxy_config.load import load
from mailproxy_config.manifest import read_manifest
from mailproxy_config.model import AuthMode, ServerConfig
from mailproxy_config.oauth_directives import MAX_ISSUERS, OAUTH_DIRECTIVES
from mailproxy_config.oauth_issuer import OAuthIssuer, TokenAlgorithm, TokenType
from mailproxy_config.rendered import dump
from mailproxy_config.schema import matches
from support.config_bodies import body, server

ISSUER: Final = {
    "issuer": "https://id.example/realms/mail",
    "jwksUri": "https://id.example/certs",
    "audiences": ["mail"],
}


def problems_of(*issuers: Any, **mail: Any) -> list[Problem]:
    problems = Problems()
    level = {"authHttp": "a", "authMode": "Jwt", "oauthIssuers": list(issuers), **mail}
    read_manifest(body(mail=level), problems)
    return problems.found


def from_nginx(*directives: str) -> ServerConfig:
    text = "mail { auth_http a; server { listen 143; " + " ".join(directives) + " } }\nevents {}\n"
    return load(text.encode(), source="nginx.conf").config.servers[0]


def test_default_mode_is_http_without_issuers() -> None:
    found = from_nginx()
    assert (found.auth_mode, found.oauth_issuer) == (AuthMode.HTTP, ())


def test_issuer_has_defaults() -> None:
    [issuer] = from_nginx(
        "oauth_issuer https://id.example jwks_uri=https://id.example/k audience=mail;"
    ).oauth_issuer
    assert issuer == OAuthIssuer(
        issuer="https://id.example",
        jwks_uri="https://id.example/k",
        audiences=("mail",),
        token_type=TokenType.ANY,
        identity_claim="email",
        require_email_verified=True,
        allowed_algorithms=tuple(TokenAlgorithm),
        openid_configuration="https://id.example/.well-known/openid-configuration",
        leeway=60,
    )


def test_nginx_parameters_set_every_field() -> None:
    found = from_nginx(
        "auth_mode jwt;",
        "oauth_issuer https://a.example jwks_uri=https://a.example/k audience=mail audience=imap",
        "token_type=keycloak identity_claim=sub require_email_verified=off identity_domain=Example.org",
        "allowed_client=tb allowed_algorithm=ES256 allowed_algorithm=RS256 'scope=a b' leeway=5",
        "openid_configuration=https://a.example/c;",
        "oauth_issuer https://b.example jwks_uri=https://b.example/k audience=x identity_domain=b.example;",
    )
    assert found.auth_mode is AuthMode.JWT
    assert found.oauth_issuer[0] == OAuthIssuer(
        issuer="https://a.example",
        jwks_uri="https://a.example/k",
        audiences=("mail", "imap"),
        token_type=TokenType.KEYCLOAK,
        identity_claim="sub",
        require_email_verified=False,
        identity_domains=("example.org",),
        allowed_clients=("tb",),
        allowed_algorithms=(TokenAlgorithm.RS256, TokenAlgorithm.ES256),
        scope="a b",
        openid_configuration="https://a.example/c",
        leeway=5,
    )
    assert [one.issuer for one in found.oauth_issuer] == ["https://a.example", "https://b.example"]


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("nonsense=1", "invalid parameter: nonsense=1"),
        ("audience", "invalid parameter: audience"),
        ("leeway=1 leeway=2", "duplicate parameter: leeway"),
        ("leeway=x", 'invalid number "x"'),
        ("leeway=99999", 'invalid number "99999"'),
        ("require_email_verified=yes", 'invalid value "yes", it must be "on" or "off"'),
    ],
)
def test_bad_nginx_parameter_is_refused(parameter: str, reason: str) -> None:
    with pytest.raises(Exception, match=reason.replace("(", "\\(")):
        from_nginx(f"oauth_issuer https://a.example jwks_uri=https://a.example/k audience=x {parameter};")


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"jwksUri": "http://id.example/certs"}, "jwksUri", "must be an https:// URL, or an http:// URL of"),
        ({"jwksUri": "http://127.0.0.1.example/certs"}, "jwksUri", "must be an https:// URL"),
        ({"jwksUri": "http://127.0.0.1@example/certs"}, "jwksUri", "must be an https:// URL"),
        ({"jwksUri": "file:///etc/keys"}, "jwksUri", "must be an https:// URL"),
        ({"jwksUri": "https://bob:secret@id.example/certs"}, "jwksUri", "user and password are not accepted"),
        ({"jwksUri": "https://id.example:0/certs"}, "jwksUri", "out of range"),
        ({"jwksUri": "https:///certs"}, "jwksUri", "no host"),
        ({"issuer": "id.example"}, "issuer", "must be an https:// URL"),
        ({"issuer": "https://id.example/\r\nX: y"}, "issuer", "must be an https:// URL"),
        ({"audiences": []}, "audiences", "has 0 items"),
        ({"allowedAlgorithms": ["HS256"]}, "allowedAlgorithms[0]", "is not one of"),
        ({"allowedAlgorithms": ["none"]}, "allowedAlgorithms[0]", "is not one of"),
        ({"allowedAlgorithms": []}, "allowedAlgorithms", "has 0 items"),
        ({"tokenType": "keycloak"}, "tokenType", "is not one of Keycloak, Rfc9068, Any"),
        ({"identityDomains": ["a..b"]}, "identityDomains[0]", "invalid host"),
        ({"leeway": 301}, "leeway", "out of range 0 to 300"),
        ({"scope": 'a"b'}, "scope", "scopes with single spaces"),
    ],
)
def test_bad_issuer_is_refused(fields: dict[str, Any], path: str, reason: str) -> None:
    found = problems_of({**ISSUER, **fields})
    assert [problem.path for problem in found] == [f"spec.mail.oauthIssuers[0].{path}"]
    assert reason in found[0].reason
    assert "secret" not in found[0].reason


@pytest.mark.parametrize("missing", ["issuer", "jwksUri", "audiences"])
def test_required_field_is_reported(missing: str) -> None:
    [problem] = problems_of({name: value for name, value in ISSUER.items() if name != missing})
    assert problem.path == f"spec.mail.oauthIssuers[0].{missing}"


def test_jwks_uri_on_loopback_may_be_http() -> None:
    for host in ("localhost", "127.0.0.1:8080", "[::1]"):
        assert problems_of({**ISSUER, "jwksUri": f"http://{host}/certs"}) == []


def test_several_issuers_need_identity_domains() -> None:
    other = {**ISSUER, "issuer": "https://other.example", "identityDomains": ["other.example"]}
    [problem] = problems_of(ISSUER, other)
    assert problem.path == "spec.mail.oauthIssuers[0].identityDomains"
    assert problems_of({**ISSUER, "identityDomains": ["example.org"]}, other) == []


def test_issuer_may_be_there_once() -> None:
    one = {**ISSUER, "identityDomains": ["example.org"]}
    assert [problem.path for problem in problems_of(one, one)] == ["spec.mail.oauthIssuers[1].issuer"]


def test_mode_jwt_needs_issuers() -> None:
    assert [problem.path for problem in problems_of()] == ["spec.servers[0].oauthIssuers"]


def test_server_inherits_issuers() -> None:
    problems = Problems()
    read_manifest(body(server(authMode="Jwt"), mail={"authHttp": "a", "oauthIssuers": [ISSUER]}), problems)
    assert problems.found == []


def test_issuers_survive_rendering() -> None:
    found = load(
        b"mail { auth_http a; server { listen 143; auth_mode jwt; oauth_issuer https://a.example "
        b"jwks_uri=https://a.example/k audience=x; } } events {}",
        source="nginx.conf",
    ).config
    again = load(dump(found), source="mailproxy.json").config
    assert again.servers[0].oauth_issuer == found.servers[0].oauth_issuer


def test_longest_issuer_has_room_for_its_configuration_url() -> None:
    issuer = "https://id.example/".ljust(448, "x")
    [row] = [row for row in OAUTH_DIRECTIVES if row.name == "oauth_issuer"]
    assert problems_of({**ISSUER, "issuer": issuer}) == []
    read = row.type.read([{**ISSUER, "issuer": issuer}], _path())
    problems = Problems()
    row.type.schema.check(row.type.write(read), "x", problems)
    assert problems.found == []


def _path() -> Any:
    from mailproxy_config.value_types import ErrorPath

    return ErrorPath("oauthIssuers", Problems())


def test_url_pattern_excludes_line_ends() -> None:
    pattern = r"^https?://[!-~]+$"
    assert matches(pattern, "https://a")
    assert not matches(pattern, "https://a\n")


def test_number_of_issuers_has_limit() -> None:
    many = [
        {**ISSUER, "issuer": f"https://{number}.example", "identityDomains": [f"{number}.example"]}
        for number in range(MAX_ISSUERS + 1)
    ]
    assert problems_of(*many[:-1]) == []
    [problem] = problems_of(*many)
    assert problem.path == "spec.mail.oauthIssuers"

# SPDX-License-Identifier: Apache-2.0
"""Access tokens: which are refused, and why; each is in order except for one thing."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import TokenFinding
from mailproxy.oauth.access_token import ParsedToken, TokenRefused, check_claims, parse_token
from mailproxy_config.oauth_issuer import OAuthIssuer, TokenType
from support.token_issuer import Issuer, encoded

NOW: Final = 1_800_000_000.0
ISSUER: Final = Issuer()
DEEP: Final = b"[" * 5000 + b"]" * 5000


def refusal(token: bytes) -> TokenFinding | None:
    try:
        parse_token(token)
    except TokenRefused as refused:
        return refused.result
    return None


def checked(
    claims: dict[str, Any], user: bytes = b"", header: Any = None, **fields: Any
) -> bytes | TokenFinding:
    """Return the user name of claims that are otherwise in order, or why they are refused."""
    valid = ISSUER.claims(**{"exp": NOW + 300, "iat": NOW, **claims})
    token = ParsedToken(header or {"typ": "JWT"}, valid, "RS256", "rsa", ISSUER.name, b"", b"")
    try:
        return check_claims(token, ISSUER.config(**fields), user, NOW)
    except TokenRefused as refused:
        return refused.result


def test_token_is_parsed() -> None:
    token = ISSUER.token()
    parsed = parse_token(token)
    assert (parsed.algorithm, parsed.key_id, parsed.issuer) == ("RS256", "rsa", ISSUER.name)
    assert parsed.claims["email"] == "bob@example.org"
    assert parsed.signed == token.rpartition(b".")[0]


@pytest.mark.parametrize(
    ("token", "result"),
    [
        (b"", "malformed"),
        (b"opaque", "malformed"),
        (b"a.b", "malformed"),
        (b"a.b.c", "malformed"),
        (b"..", "malformed"),
        (b"a.b.c.d.e", "malformed"),
        (ISSUER.token() + b".", "malformed"),
        (ISSUER.token() + b"=", "malformed"),
        (ISSUER.token().replace(b".", b"=.", 1), "malformed"),
        (b"+" + ISSUER.token(), "malformed"),
        (b"\xff" + ISSUER.token(), "malformed"),
        (ISSUER.signed("RS256", None, encoded(b"not json")), "malformed"),
        (ISSUER.signed("RS256", None, encoded(b"[]")), "malformed"),
        (ISSUER.signed("RS256", None, encoded(b"null")), "malformed"),
        (ISSUER.signed("RS256", None, encoded(DEEP)), "malformed"),
        (ISSUER.signed("RS256", None, encoded(b'{"exp":' + b"9" * 5000 + b"}")), "malformed"),
        (ISSUER.signed("RS256", None, encoded(b'{"iss":"x","exp":NaN}')), "malformed"),
        (ISSUER.signed("RS256", None, encoded(b'{"iss":"x","exp":Infinity}')), "malformed"),
        (ISSUER.signed("RS256", None, encoded('{"iss":"x"}'.encode("utf-16"))), "malformed"),
        (ISSUER.signed("RS256", None, encoded(b'{"iss":"\xff"}')), "malformed"),
        (encoded(b"[]") + b"." + encoded(b"{}") + b".", "malformed"),
        (ISSUER.token(header={"crit": ["exp"]}), "malformed"),
        (ISSUER.token(header={"crit": []}), "malformed"),
        (ISSUER.token(header={"crit": None, "b64": False}), "malformed"),
        (ISSUER.token(header={"alg": 1}), "malformed"),
        (ISSUER.token(header={"alg": None}), "malformed"),
        (ISSUER.token(header={"kid": None}), "unknown_key"),
        (ISSUER.token(header={"kid": ""}), "unknown_key"),
        (ISSUER.token(header={"kid": 1}), "unknown_key"),
        (ISSUER.token(header={"kid": ["rsa"]}), "unknown_key"),
        (ISSUER.token(header={"kid": "k" * 257}), "unknown_key"),
        (ISSUER.token(iss=None), "issuer"),
        (ISSUER.token(iss=[ISSUER.name]), "issuer"),
        (ISSUER.token(iss=1), "issuer"),
    ],
)  # fmt: skip
def test_malformed_token_is_refused(token: bytes, result: str) -> None:
    assert refusal(token) == result


@pytest.mark.parametrize(
    ("claims", "result"),
    [
        ({"exp": None}, "expired"),
        ({"exp": str(NOW + 300)}, "expired"),
        ({"exp": True}, "expired"),
        ({"exp": [NOW + 300]}, "expired"),
        ({"exp": float("nan")}, "expired"),
        ({"exp": float("inf")}, "expired"),
        ({"exp": NOW - 60}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": -(10**400)}, "expired"),
        ({"exp": 10**400}, "expired"),
        ({"nbf": NOW + 61}, "not_yet_valid"),
        ({"nbf": "0"}, "not_yet_valid"),
        ({"nbf": float("nan")}, "not_yet_valid"),
        ({"aud": None}, "audience"),
        ({"aud": "other"}, "audience"),
        ({"aud": ["other", 1, None]}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": {"mail": 1}}, "audience"),
        ({"aud": "MAIL"}, "audience"),
        ({"aud": [["mail"]]}, "audience"),
        ({"email": None}, "identity"),
        ({"email": ""}, "identity"),
        ({"email": ["bob@example.org"]}, "identity"),
        ({"email": 1}, "identity"),
        ({"email": "bob@example.org\r\nX: y"}, "identity"),
        ({"email": "bob\0@example.org"}, "identity"),
        ({"email": "bob\x7f"}, "identity"),
        ({"email": "a@b@example.org"}, "identity"),
        ({"email": "b" * 256}, "identity"),
        ({"email_verified": False}, "unverified"),
        ({"email_verified": None}, "unverified"),
        ({"email_verified": "true"}, "unverified"),
        ({"email_verified": 1}, "unverified"),
    ],
)
def test_claim_that_is_not_in_order_is_refused(claims: dict[str, Any], result: str) -> None:
    assert checked(claims) == result


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"exp": NOW - 59},
        {"exp": NOW + 0.5},
        {"exp": 10**11},
        {"nbf": NOW + 60},
        {"nbf": None},
        {"aud": "mail"},
        {"azp": None},
        {"scope": None},
        {"typ": "ID"},
    ],
)
def test_claims_in_order_have_user_name(claims: dict[str, Any]) -> None:
    assert checked(claims) == b"bob@example.org"


def test_leeway_is_that_of_the_issuer() -> None:
    assert checked({"exp": NOW - 299}, leeway=300) == b"bob@example.org"
    assert checked({"exp": NOW - 300}, leeway=300) == TokenFinding.EXPIRED
    assert checked({"exp": NOW}, leeway=0) == TokenFinding.EXPIRED
    assert checked({"nbf": NOW + 1}, leeway=0) == TokenFinding.NOT_YET_VALID


@pytest.mark.parametrize(
    ("kind", "header", "claims", "is_accepted"),
    [
        (TokenType.KEYCLOAK, {"typ": "JWT"}, {"typ": "Bearer"}, True),
        (TokenType.KEYCLOAK, {"typ": "JWT"}, {"typ": "ID"}, False),
        (TokenType.KEYCLOAK, {"typ": "JWT"}, {"typ": "Refresh"}, False),
        (TokenType.KEYCLOAK, {"typ": "JWT"}, {"typ": "Offline"}, False),
        (TokenType.KEYCLOAK, {"typ": "at+jwt"}, {"typ": None}, False),
        (TokenType.KEYCLOAK, {"typ": "JWT"}, {"typ": ["Bearer"]}, False),
        (TokenType.RFC9068, {"typ": "at+jwt"}, {"typ": None}, True),
        (TokenType.RFC9068, {"typ": "application/at+JWT"}, {"typ": None}, True),
        (TokenType.RFC9068, {"typ": "JWT"}, {"typ": "Bearer"}, False),
        (TokenType.RFC9068, {"alg": "RS256"}, {}, False),
        (TokenType.RFC9068, {"typ": ["at+jwt"]}, {}, False),
        (TokenType.ANY, {"typ": "JWT"}, {"typ": None}, True),
        (
            TokenType.ANY,
            {"typ": "JWT"},
            {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
            False,
        ),
        (TokenType.KEYCLOAK, {"typ": "JWT"}, {"typ": "DPoP"}, False),
    ],
)
def test_token_type_is_checked(
    kind: TokenType, header: dict[str, Any], claims: dict[str, Any], is_accepted: bool
) -> None:
    expected = b"bob@example.org" if is_accepted else TokenFinding.TYPE
    assert checked(claims, header=header, token_type=kind) == expected


@pytest.mark.parametrize(
    ("claims", "is_accepted"),
    [
        ({"azp": "thunderbird"}, True),
        ({"azp": "k9"}, True),
        ({"azp": "other"}, False),
        ({"azp": None}, False),
        ({"azp": ["thunderbird"]}, False),
        ({"azp": None, "client_id": "thunderbird"}, True),
        ({"azp": None, "appid": "thunderbird"}, True),
        ({"azp": "thunderbird", "client_id": "other"}, False),
    ],
)
def test_allowed_clients_are_checked(claims: dict[str, Any], is_accepted: bool) -> None:
    expected = b"bob@example.org" if is_accepted else TokenFinding.CLIENT
    assert checked(claims, allowed_clients=("thunderbird", "k9")) == expected


@pytest.mark.parametrize(
    ("claims", "is_accepted"),
    [
        ({"scope": "openid mail imap"}, True),
        ({"scope": ["mail", "imap"]}, True),
        ({"scope": None, "scp": "imap mail"}, True),
        ({"scope": "mail", "scp": ["imap"]}, True),
        ({"scope": "mail"}, False),
        ({"scope": "email imap"}, False),
        ({"scope": None}, False),
        ({"scope": {"mail": 1, "imap": 1}}, False),
        ({"scope": 1}, False),
    ],
)
def test_scope_is_checked(claims: dict[str, Any], is_accepted: bool) -> None:
    expected = b"bob@example.org" if is_accepted else TokenFinding.SCOPE
    assert checked(claims, scope="mail imap") == expected


@pytest.mark.parametrize(
    ("email", "is_accepted"),
    [
        ("bob@example.org", True),
        ("bob@Example.ORG", True),
        ("bob@bücher.example", True),
        ("bob@xn--bcher-kva.example", True),
        ("bob@sub.example.org", False),
        ("bob@notexample.org", False),
        ("bob@example.org.evil.example", False),
        ("bob@example.com", False),
        ("example.org", False),
        ("bob@", False),
        ("bob@ex\ud800ample.org", False),
        ("bob@" + "ü" * 100, False),
    ],
)
def test_identity_domains_are_checked(email: str, is_accepted: bool) -> None:
    domains = ("example.org", "xn--bcher-kva.example")
    found = checked({"email": email}, identity_domains=domains)
    assert found == (email.encode() if is_accepted else TokenFinding.DOMAIN)


@pytest.mark.parametrize(
    ("user", "is_accepted"),
    [
        (b"", True),
        (b"bob@example.org", True),
        (b"bob@EXAMPLE.org", True),
        (b"Bob@example.org", False),
        (b"bob", False),
        (b"ceo@example.org", False),
        (b"bob@example.org ", False),
    ],
)
def test_user_name_of_client_must_be_that_of_the_token(user: bytes, is_accepted: bool) -> None:
    assert checked({}, user) == (b"bob@example.org" if is_accepted else TokenFinding.USER)


def test_identity_claim_may_be_another() -> None:
    claims = {"preferred_username": "bob", "email": None, "email_verified": None}
    assert checked(claims, identity_claim="preferred_username") == b"bob"
    assert checked(claims, b"BOB", identity_claim="preferred_username") == TokenFinding.USER


def test_unverified_address_may_be_allowed() -> None:
    assert checked({"email_verified": False}, require_email_verified=False) == b"bob@example.org"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    refusal(data)
    refusal(encoded(data) + b"." + encoded(data) + b"." + encoded(data))


@given(st.dictionaries(st.sampled_from([*ISSUER.claims(), "nbf", "scp", "client_id"]), _JSON, max_size=4))
def test_any_claims_are_checked_without_crash(claims: dict[str, Any]) -> None:
    strict = {"scope": "mail", "allowed_clients": ("a",), "identity_domains": ("example.org",)}
    for fields in ({}, strict):
        found = checked(claims, **fields)
        if isinstance(found, bytes):
            assert found == ISSUER.claims(**claims)["email"].encode("utf-8", "replace")


@given(
    st.dictionaries(st.text(max_size=5), _JSON, max_size=3),
    st.dictionaries(st.text(max_size=5), _JSON, max_size=3),
)
def test_parsed_token_has_the_json_that_was_encoded(header: dict[str, Any], claims: dict[str, Any]) -> None:
    header |= {"alg": "RS256", "kid": "k"}
    for member in ("crit", "b64"):
        header.pop(member, None)
    claims |= {"iss": "x"}
    text = encoded(header) + b"." + encoded(claims) + b".c2ln"
    try:
        parsed = parse_token(text)
    except TokenRefused:
        assert any(
            word in urlsafe_b64decode(part + b"==")
            for part in text.split(b".")[:2]
            for word in (b"NaN", b"Infinity")
        )
        return
    assert json.dumps([parsed.header, parsed.claims]) == json.dumps([header, claims])


def test_refusal_has_no_part_of_the_token() -> None:
    with pytest.raises(TokenRefused) as caught:
        parse_token(ISSUER.token(header={"crit": ["secret"]}))
    assert str(caught.value) == "malformed"


def test_issuer_is_a_value() -> None:
    assert isinstance(ISSUER.config(), OAuthIssuer)

# SPDX-License-Identifier: Apache-2.0
"""Key sets of issuers, and signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import TokenFinding
from mailproxy.oauth.access_token import TokenRefused, parse_token
from mailproxy.oauth.issuer_keys import MAX_KEYS, InvalidJwks, parse_jwks
from mailproxy_config.oauth_issuer import TokenAlgorithm
from support.token_issuer import KEY_IDS, Issuer, encoded

ISSUER: Final = Issuer()
ALL: Final = tuple(TokenAlgorithm)


def keys(*entries: Any) -> set[str]:
    try:
        return set(parse_jwks(json.dumps({"keys": list(entries)}).encode()))
    except InvalidJwks:
        return set()


def verify(token: bytes, jwks: bytes = b"", allowed: tuple[TokenAlgorithm, ...] = ALL) -> TokenFinding | None:
    parsed = parse_token(token)
    try:
        parse_jwks(jwks or ISSUER.jwks())[parsed.key_id].verify(parsed, allowed)
    except TokenRefused as refused:
        return refused.result
    return None


@pytest.mark.parametrize("algorithm", KEY_IDS)
def test_signature_of_each_algorithm_is_verified(algorithm: str) -> None:
    assert verify(ISSUER.token(algorithm)) is None


@pytest.mark.parametrize("algorithm", KEY_IDS)
def test_changed_token_has_wrong_signature(algorithm: str) -> None:
    header, _, signature = ISSUER.token(algorithm).split(b".")
    payload = encoded(ISSUER.claims(email="ceo@example.org"))
    assert verify(b".".join((header, payload, signature))) is TokenFinding.SIGNATURE


@pytest.mark.parametrize("signature", [b"", b"AA", b"A" * 4000])
@pytest.mark.parametrize("algorithm", KEY_IDS)
def test_signature_of_wrong_size_is_refused(algorithm: str, signature: bytes) -> None:
    message = ISSUER.token(algorithm).rpartition(b".")[0]
    assert verify(message + b"." + signature) is TokenFinding.SIGNATURE


def test_all_zero_signature_of_ecdsa_is_refused() -> None:
    message = ISSUER.token("ES256").rpartition(b".")[0]
    assert verify(message + b"." + encoded(bytes(64))) is TokenFinding.SIGNATURE


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", "HS256", "RS384", "ES256", "PS256", "rs256"])
def test_algorithm_of_header_must_be_that_of_the_key(name: str) -> None:
    message = encoded({"alg": name, "kid": "rsa"}) + b"." + encoded(ISSUER.claims())
    for signature in (b"", ISSUER.token().rpartition(b".")[2]):
        assert verify(message + b"." + signature) is TokenFinding.ALGORITHM


def test_hmac_with_the_public_key_is_refused() -> None:
    public = ISSUER.private("RS256").public_key()
    message = encoded({"alg": "HS256", "kid": "rsa"}) + b"." + encoded(ISSUER.claims())
    for secret in (
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        json.dumps(ISSUER.jwk("RS256")).encode(),
    ):
        signature = hmac.digest(secret, message, hashlib.sha256)
        assert verify(message + b"." + encoded(signature)) is TokenFinding.ALGORITHM


def test_key_in_header_is_not_used() -> None:
    other = Issuer("https://attacker.example")
    header = {"jwk": other.jwk("RS256"), "jku": "https://attacker.example/certs"}
    assert verify(other.token("RS256", header)) is TokenFinding.SIGNATURE


def test_algorithm_must_be_allowed() -> None:
    assert verify(ISSUER.token("RS256"), allowed=(TokenAlgorithm.ES256,)) is TokenFinding.ALGORITHM
    assert verify(ISSUER.token("ES256"), allowed=(TokenAlgorithm.ES256,)) is None


def test_ed25519_has_two_names() -> None:
    jwks = json.dumps({"keys": [ISSUER.jwk("EdDSA", alg="Ed25519")]}).encode()
    for header in ({}, {"alg": "Ed25519"}):
        assert verify(ISSUER.token("EdDSA", header), jwks) is None


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384", "ES512", "EdDSA"])
def test_key_without_algorithm_has_the_usual_one(algorithm: str) -> None:
    jwks = json.dumps({"keys": [ISSUER.jwk(algorithm, alg=None, use=None)]}).encode()
    assert verify(ISSUER.token(algorithm), jwks) is None


@pytest.mark.parametrize(
    "members",
    [
        {"kid": None},
        {"kid": ""},
        {"kid": 1},
        {"kid": ["rsa"]},
        {"kid": "k" * 257},
        {"use": "enc"},
        {"use": ["sig"]},
        {"use": {}},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "RSA-OAEP"},
        {"alg": "HS256"},
        {"alg": "none"},
        {"alg": "ES256"},
        {"alg": ["RS256"]},
        {"alg": {}},
        {"kty": None},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "EC"},
        {"kty": ["RSA"]},
        {"n": None},
        {"n": 5},
        {"n": ""},
        {"n": "!!!!"},
        {"n": "A" * 1401},
        {"n": "AQAB"},
        {"e": ""},
        {"e": "AA"},
        {"e": "AQ"},
        {"e": "AQ" * 700},
    ],
)
def test_unusable_key_is_ignored(members: dict[str, Any]) -> None:
    assert keys(ISSUER.jwk("RS256", **members)) == set()
    assert keys(ISSUER.jwk("RS256", **members), ISSUER.jwk("ES256")) == {"p256"}


@pytest.mark.parametrize(
    "members",
    [
        {"crv": "P-384"},
        {"crv": "secp256k1"},
        {"crv": "Ed25519"},
        {"crv": ["P-256"]},
        {"crv": None},
        {"alg": "ES384"},
        {"alg": "Ed25519"},
        {"kty": "OKP"},
        {"x": "AAAA"},
        {"y": "AAAA"},
        {"y": None},
    ],
)
def test_unusable_key_of_a_curve_is_ignored(members: dict[str, Any]) -> None:
    assert keys(ISSUER.jwk("ES256", **members)) == set()


@pytest.mark.parametrize("entry", [None, 1, "key", [], {}])
def test_item_that_is_no_key_is_ignored(entry: Any) -> None:
    assert keys(entry, ISSUER.jwk("RS256")) == {"rsa"}


def test_short_rsa_key_is_ignored() -> None:
    numbers = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    modulus = encoded(numbers.n.to_bytes(128, "big")).decode()
    assert keys(ISSUER.jwk("RS256", n=modulus)) == set()


def test_private_members_are_not_used() -> None:
    assert keys(ISSUER.jwk("RS256", d="AQAB", p="AQAB"), ISSUER.jwk("ES256", d="AQAB")) == {"rsa", "p256"}


def test_first_of_two_keys_with_one_name_is_used() -> None:
    other = Issuer("https://other.example")
    jwks = json.dumps({"keys": [ISSUER.jwk("RS256"), other.jwk("RS256")]}).encode()
    assert verify(ISSUER.token(), jwks) is None
    assert verify(other.token(), jwks) is TokenFinding.SIGNATURE


def test_number_of_keys_has_limit() -> None:
    many = [ISSUER.jwk("ES256", kid=f"k{number}") for number in range(MAX_KEYS + 1)]
    assert len(keys(*many)) == MAX_KEYS


@pytest.mark.parametrize(
    ("body", "is_empty"),
    [
        (b"", False),
        (b"<html>", False),
        (b"null", False),
        (b"[]", False),
        (b"{}", False),
        (b'{"keys":null}', False),
        (b'{"keys":{}}', False),
        (b'{"keys":[]}', True),
        (b'{"keys":[{"kty":"oct"}]}', True),
        (b"\xff\xfe", False),
        (b"[" * 100_000, False),
        (b'{"keys":' + b"[" * 100_000, False),
        (b"9" * 5000, False),
    ],
)
def test_invalid_key_set_is_refused(body: bytes, is_empty: bool) -> None:
    with pytest.raises(InvalidJwks) as caught:
        parse_jwks(body)
    assert caught.value.is_empty is is_empty


_VALUE = st.none() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=2)


@given(
    st.sampled_from(list(KEY_IDS)),
    st.dictionaries(
        st.sampled_from(["kty", "kid", "use", "alg", "n", "e", "crv", "x", "y", "key_ops"]),
        _VALUE,
        max_size=3,
    ),
)
def test_any_key_is_read_or_ignored(algorithm: str, members: dict[str, Any]) -> None:
    assert len(keys(ISSUER.jwk(algorithm) | members)) <= 1


@given(st.binary(max_size=60))
def test_any_bytes_are_a_key_set_or_refused(body: bytes) -> None:
    with pytest.raises(InvalidJwks):
        parse_jwks(body)

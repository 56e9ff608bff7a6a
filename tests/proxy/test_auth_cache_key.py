# SPDX-License-Identifier: Apache-2.0
"""Which logins have the same key, and which have none."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from dataclasses import replace
from typing import Any

import pytest

from mailproxy.auth_cache.cache_key import CacheKeys, new_secret, token_expiry
from mailproxy.enums import Method
from mailproxy.protocols.types import AuthRequest, Client, ClientCertificate, Credentials, Secret, TlsInfo
from mailproxy_config.auth_cache import CacheKeyPart
from mailproxy_config.model import Protocol, VerifyClient
from support.configs import server

SECRET = bytes(32)


def request(
    method: Method = Method.PLAIN, user: bytes = b"bob", password: bytes | None = b"pw", **client: Any
) -> AuthRequest:
    secret = None if password is None else Secret(password)
    return AuthRequest(Credentials(method, user, secret), 1, Client("192.0.2.1", **client))


def keys(
    *parts: CacheKeyPart, secret: bytes = SECRET, protocol: Protocol = Protocol.IMAP, **directives: Any
) -> Any:
    return CacheKeys(server(protocol, auth_cache_key=frozenset(parts), **directives), secret).key


def test_same_credentials_have_same_key_whatever_the_command() -> None:
    key = keys()
    assert key(request(Method.PASSWORD)) == key(request(Method.PLAIN)) == key(request(Method.LOGIN))


@pytest.mark.parametrize("method", [Method.APOP, Method.CRAM_MD5, Method.EXTERNAL, Method.NONE])
def test_methods_without_reusable_credentials_have_no_key(method: Method) -> None:
    assert keys()(request(method)) is None


def test_request_without_password_and_repeated_request_have_no_key() -> None:
    assert keys()(request(password=None)) is None
    deferred = request()
    deferred.was_deferred = True
    assert keys()(deferred) is None


def test_all_of_these_have_different_keys() -> None:
    certificate = ClientCertificate(b"CN=bob", b"CN=ca", b"01", b"00", b"PEM", b"bob")
    tls = TlsInfo("TLSv1.3", "AES")
    plain = [
        request(),
        request(user=b"Bob"),
        request(user=b"bobp", password=b"w"),
        request(password=b"pw "),
        request(password=b""),
        request(Method.XOAUTH2),
        request(Method.OAUTHBEARER),
        replace(request(Method.OAUTHBEARER), token_issuer="https://id.example"),
        request(tls=tls),
    ]
    found = [keys()(one) for one in plain]
    found += [keys(protocol=Protocol.POP3)(request()), keys(name="other")(request())]
    found.append(keys(secret=new_secret())(request()))
    assert len(set(found)) == len(found)
    verifying = keys(ssl_verify_client=VerifyClient.OPTIONAL)
    handshakes = (
        tls,
        replace(tls, certificate=certificate),
        replace(tls, certificate=certificate, verify_code=18),
    )
    assert len({verifying(request(tls=each)) for each in handshakes}) == 3


def test_address_and_destination_count_only_if_configured() -> None:
    here = request(local_address="192.0.2.9", local_port=143)
    there = request(local_address="192.0.2.8", local_port=143)
    elsewhere = replace(here, client=replace(here.client, address="192.0.2.2"))
    assert keys()(here) == keys()(there) == keys()(elsewhere)
    by_address = keys(CacheKeyPart.ADDRESS)
    assert by_address(here) == by_address(there) != by_address(elsewhere)
    by_destination = keys(CacheKeyPart.DESTINATION)
    assert by_destination(here) == by_destination(elsewhere) != by_destination(there)


def test_server_name_counts_only_if_configured() -> None:
    one, other = (
        request(tls=TlsInfo("TLSv1.3", "AES", server_name=name)) for name in (b"a.example", b"b.example")
    )
    assert keys()(one) == keys()(other)
    by_name = keys(CacheKeyPart.SERVER_NAME)
    assert by_name(one) != by_name(other)


def test_key_is_the_hmac_of_rfc_2104() -> None:
    one = request()
    prefix = b"4:%b,4:imap," % server(Protocol.IMAP).name.encode()
    message = prefix + b"5:plain,3:bob,2:pw,0:,0:,"
    assert keys(secret=b"k" * 32)(one) == hmac.digest(b"k" * 32, message, "sha256")


def test_key_is_a_hash_and_repr_has_no_secret() -> None:
    key = keys()(request(user=b"bobsname", password=b"bobspassword"))
    assert len(key) == 32
    assert repr(CacheKeys(server(Protocol.IMAP), b"topsecret")) == "<CacheKeys>"


def token(claims: object) -> bytes:
    body = urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    return b"e30." + body + b".c2ln"


@pytest.mark.parametrize(
    ("data", "expiry"),
    [
        (token({"exp": 1_900_000_000}), 1.9e9),
        (token({"exp": 1_900_000_000.5, "sub": "ü?>~"}), 1_900_000_000.5),
        (token({"exp": 10**400}), 1e12),
        (token({"exp": "tomorrow"}), None),
        (token({"exp": True}), None),
        (token({"exp": float("nan")}), None),
        (token({}), None),
        (token([1]), None),
        (b"opaque", None),
        (b"a.b.c", None),
        (b"a.%.c", None),
        (b"a." + b"W1tb" * 50_000 + b".c", None),
    ],
)
def test_expiry_of_a_token(data: bytes, expiry: float | None) -> None:
    assert token_expiry(request(Method.XOAUTH2, password=data)) == expiry
    assert token_expiry(request(Method.PLAIN, password=data)) is None

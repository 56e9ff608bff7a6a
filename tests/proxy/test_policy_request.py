# SPDX-License-Identifier: Apache-2.0
"""What a policy server gets about a login."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailproxy.enums import CLEAR_PASSWORD_METHODS, Method
from mailproxy.policy.policy_request import (
    is_asked_about,
    password_hash,
    render_policy_report,
    render_policy_request,
)
from mailproxy.protocols.types import (
    AuthRequest,
    Client,
    Credentials,
    PolicyFacts,
    ReceivedIdentity,
    Secret,
    TlsInfo,
)
from mailproxy_config.model import Protocol
from mailproxy_config.policy_server import HashMech

NONCE = Secret(b"a nonce")


def credentials(user: bytes, password: bytes, method: Method = Method.PLAIN) -> Credentials:
    return Credentials(method, user, Secret(password))


def rendered(user: bytes = b"bob", **client: Any) -> dict[str, Any]:
    request = AuthRequest(
        Credentials(Method.PLAIN, user),
        1,
        Client(**({"address": "192.0.2.1", "session_id": "k3Xp0vY"} | client)),
    )
    found: dict[str, Any] = json.loads(
        render_policy_request(Protocol.IMAP, request, PolicyFacts(user, "04d2"))
    )
    return found


@pytest.mark.parametrize(
    ("bits", "expected"),
    # The table of buffer_truncate_rshift_bits in Dovecot's buffer.h, for a hash that begins with ones.
    [(1, "01"), (7, "7f"), (8, "ff"), (9, "01ff"), (12, "0fff"), (15, "7fff"), (16, "ffff")],
)
def test_truncated_hash_is_a_number_as_in_dovecot(
    bits: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ones:
        def __init__(self, _: bytes) -> None: ...

        def digest(self) -> bytes:
            return b"\xff" * 32

    monkeypatch.setattr("mailproxy.policy.policy_request._DIGESTS", {HashMech.SHA256: Ones})
    assert password_hash(NONCE, credentials(b"u", b"p"), bits=bits) == expected


@settings(max_examples=50, deadline=None)
@given(user=st.binary(max_size=20), password=st.binary(max_size=20), bits=st.integers(1, 256))
def test_hash_is_the_first_bits_of_the_digest(user: bytes, password: bytes, bits: int) -> None:
    for mech, digest in ((HashMech.SHA256, hashlib.sha256), (HashMech.SHA512, hashlib.sha512)):
        whole = digest(b"a nonce" + user + b"\0" + password).hexdigest()
        found = password_hash(NONCE, credentials(user, password), mech, bits)
        assert len(found) == 2 * -(-bits // 8)
        binary = f"{int(found, 16):b}".zfill(bits)
        assert f"{int(whole, 16):b}".zfill(4 * len(whole)).startswith(binary)
        assert password_hash(NONCE, credentials(user, password), mech, 0) == whole


def test_hash_of_a_known_login() -> None:
    # printf 'a noncebob\0secret' | sha256sum
    whole = password_hash(NONCE, credentials(b"bob", b"secret"), bits=0)
    assert whole == "5def3be813a7e7439b62b593a0ae495c2c49db23795d412874f8f3fda837106a"
    assert password_hash(NONCE, credentials(b"bob", b"secret")) == "0" + whole[:3]


@pytest.mark.parametrize("method", sorted(set(Method) - CLEAR_PASSWORD_METHODS))
def test_tokens_and_digests_are_not_hashed(method: Method) -> None:
    found = password_hash(NONCE, credentials(b"bob", b"a token", method), bits=0)
    assert found == hashlib.sha256(b"a noncebob\0").hexdigest()


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ({"address": "2001:db8::1"}, {"remote": "2001:db8::1"}),
        ({"address": "::ffff:192.0.2.1"}, {"remote": "192.0.2.1"}),
        ({"tls": TlsInfo("TLSv1.3", "x")}, {"tls": True}),
        ({"received": ReceivedIdentity("10.0.0.1", transport=b"TLS")}, {"tls": True}),
        (
            {"received": ReceivedIdentity("10.0.0.1", transport=b"insecure"), "tls": TlsInfo("TLSv1.3", "x")},
            {"tls": False},
        ),
        ({"user": b'\xffb\xc3\xbcb"\r\n\x00'}, {"login": '\\xffbüb"\r\n\0'}),
    ],
)
def test_fields_of_a_client(client: dict[str, Any], expected: dict[str, Any]) -> None:
    found = rendered(**client)
    assert {name: found[name] for name in expected} == expected


def test_report_has_the_user_of_a_validated_token() -> None:
    request = AuthRequest(Credentials(Method.XOAUTH2, b"bob@example.org"), 1, Client("192.0.2.1"))
    report = render_policy_report(Protocol.SMTP, request, PolicyFacts(b"", "0abc"), success=True)
    assert json.loads(report)["login"] == "bob@example.org"


def test_client_of_a_unix_socket_and_mail_without_a_login_are_not_asked_about() -> None:
    plain, none = Credentials(Method.PLAIN, b"bob"), Credentials(Method.NONE)
    assert is_asked_about(AuthRequest(plain, 1, Client("192.0.2.1")))
    assert not is_asked_about(AuthRequest(plain, 1, Client("unix:")))
    assert not is_asked_about(AuthRequest(none, 1, Client("192.0.2.1")))

# SPDX-License-Identifier: Apache-2.0
"""Certificates that an operator issues itself."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mailproxy_operator.sidecar.certificate import (
    LIFETIME,
    MAX_AUTHORITIES,
    Identity,
    add_to_bundle,
    has_authorities,
    issue,
    server_context,
    use,
)

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


def subjects(bundle: bytes) -> list[str]:
    return [
        one.subject.rfc4514_string().removeprefix("CN=") for one in x509.load_pem_x509_certificates(bundle)
    ]


def authority(holder: str, now: datetime = NOW) -> str:
    return issue(["localhost"], holder, now).authority


def test_key_is_not_in_repr() -> None:
    assert "PRIVATE" not in repr(issue(["localhost"], "pod-0", NOW))


def test_certificate_has_hosts_and_lifetime() -> None:
    made = issue(["mailproxy-operator-webhook.mail.svc", "127.0.0.1", "::1"], "pod-0", NOW)
    found = x509.load_pem_x509_certificate(made.certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mailproxy-operator-webhook.mail.svc"]
    assert sorted(map(str, names.get_values_for_type(x509.IPAddress))) == ["127.0.0.1", "::1"]
    assert found.not_valid_before_utc < NOW < made.renew_at < found.not_valid_after_utc == NOW + LIFETIME


def test_only_ca_can_sign() -> None:
    made = issue(["localhost"], "pod-0", NOW)
    signer = x509.load_pem_x509_certificate(made.authority.encode())
    found = x509.load_pem_x509_certificate(made.certificate)
    found.verify_directly_issued_by(signer)
    constraints = [one.extensions.get_extension_for_class(x509.BasicConstraints) for one in (signer, found)]
    assert [one.value.ca for one in constraints] == [True, False]
    assert signer.public_key() != found.public_key()


async def test_server_uses_last_certificate() -> None:
    context = server_context()

    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    now = datetime.now(UTC)
    first, second = issue(["localhost"], "a", now), issue(["localhost"], "b", now)
    use(context, first.certificate, first.key)
    server = await asyncio.start_server(respond, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await connect(port, first)
        use(context, second.certificate, second.key)
        await connect(port, second)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(port, first)
        with pytest.raises(ssl.SSLError):
            use(context, first.certificate, second.key)
        await connect(port, second)


def strict_context(authority: str) -> ssl.SSLContext:
    """Return a context that verifies as strictly as Python 3.13 and Go do."""
    context = ssl.create_default_context(cadata=authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


async def connect(port: int, identity: Identity) -> None:
    trusting = strict_context(identity.authority)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname="localhost")
    writer.close()
    await writer.wait_closed()


# --- the bundle ----------------------------------------------------------------


def test_bundle_has_one_ca_per_holder() -> None:
    bundle = add_to_bundle(b"", authority("pod-0"), NOW)
    bundle = add_to_bundle(bundle, authority("pod-1", NOW + timedelta(hours=2)), NOW)
    again = authority("pod-0", NOW + timedelta(hours=3))
    bundle = add_to_bundle(bundle, again, NOW)
    assert subjects(bundle) == ["pod-1", "pod-0"]
    assert has_authorities(bundle, again)


def test_ca_in_use_is_kept_during_renewal() -> None:
    old = authority("pod-0")
    new = authority("pod-0", NOW + timedelta(days=20))
    bundle = add_to_bundle(add_to_bundle(b"", old, NOW), new, NOW + timedelta(days=20), in_use=old)
    assert has_authorities(bundle, old)
    assert has_authorities(bundle, new)
    newest = authority("pod-0", NOW + timedelta(days=25))
    assert not has_authorities(add_to_bundle(bundle, newest, NOW + timedelta(days=25), in_use=new), old)


def test_expired_cas_are_removed() -> None:
    bundle = add_to_bundle(b"", authority("pod-0"), NOW)
    later = NOW + LIFETIME + timedelta(seconds=1)
    assert subjects(add_to_bundle(bundle, authority("pod-1", later), later)) == ["pod-1"]


def test_oldest_cas_are_removed_above_limit() -> None:
    bundle = b""
    for number in range(MAX_AUTHORITIES + 2):
        bundle = add_to_bundle(bundle, authority(f"pod-{number}", NOW + timedelta(minutes=number)), NOW)
    assert subjects(bundle) == [f"pod-{number}" for number in range(2, MAX_AUTHORITIES + 2)]


@pytest.mark.parametrize("rubbish", [b"", b"\n", b"not a certificate", b"-----BEGIN CERTIFICATE-----\n"])
def test_unreadable_bundle_is_replaced(rubbish: bytes) -> None:
    added = authority("pod-0")
    assert not has_authorities(rubbish, added)
    assert subjects(add_to_bundle(rubbish, added, NOW)) == ["pod-0"]


def test_long_holder_name_is_cut() -> None:
    assert subjects(add_to_bundle(b"", authority("x" * 80 + "-7"), NOW)) == ["x" * 62 + "-7"]


def test_key_can_be_loaded() -> None:
    made = issue(["localhost"], "pod-0", NOW)
    key = serialization.load_pem_private_key(made.key, None)
    assert key.public_key() == x509.load_pem_x509_certificate(made.certificate).public_key()

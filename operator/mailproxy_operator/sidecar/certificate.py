# SPDX-License-Identifier: Apache-2.0
"""Certificates of the webhook that the operator issues for itself.

Every operator process creates its own key in memory, and a CA that signs this one
certificate; the key of the CA is then discarded.  Only the CA certificate is stored
outside of the process, in the ``caBundle`` of the webhook's configuration: there is
no Secret, no key on a disk, and no permission for Secrets.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=30)
RENEW_BEFORE_EXPIRY = timedelta(days=10)
_CLOCKS_DIFFER = timedelta(hours=1)
MAX_AUTHORITIES = 16
"""Maximum number of CAs, for all processes that serve or have served the webhook."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key and its CA.

    Attributes:
        authority: The CA certificate, as PEM.
        certificate: The certificate, as PEM.
        key: The private key, as PEM.
        hosts: The names and addresses in the certificate.
        renew_at: When to renew it.
    """

    authority: str
    certificate: bytes
    key: bytes = field(repr=False)
    hosts: frozenset[str]
    renew_at: datetime


def issue(hosts: Iterable[str], holder: str, now: datetime) -> Identity:
    """Create a key and a certificate.

    Args:
        hosts: Names and addresses by which the webhook is called.
        holder: The identity of the process that serves it.
        now: The time.
    """
    names = frozenset(hosts)
    name = _name(holder)
    signer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    signer_key_id = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer_key_id)
    authority = (
        _builder(name, name, signer.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
        .add_extension(signer_key_id, critical=False)
        .sign(signer, hashes.SHA256())
    )
    certificate = (
        _builder(_name("mailproxy-operator"), name, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_authority=False), critical=True)
        .add_extension(signer_id, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in sorted(names)]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(
        authority.public_bytes(pem).decode(),
        certificate.public_bytes(pem),
        plain,
        names,
        now + LIFETIME - RENEW_BEFORE_EXPIRY,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + LIFETIME)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[-64:])])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- the bundle ----------------------------------------------------------------


def add_to_bundle(bundle: bytes, authorities: str, now: datetime, *, in_use: str = "") -> bytes:
    """Add CAs to a bundle.

    Expired CAs are removed, and those of the same holder, except for the ones that it still uses.
    A bundle that cannot be parsed is dropped: the API server cannot parse it either.  CAs that were not
    issued by an operator are kept while ``in_use`` is empty, because a rollout that replaces them may be
    in progress.

    Args:
        bundle: The current CAs, as PEM.
        authorities: The CAs to add, as PEM.
        now: The time.
        in_use: The CAs that the holder added before and still uses; empty after its start.
    """
    added, used = _parse(authorities.encode()), _parse(in_use.encode())
    subjects = {one.subject for one in added}
    kept = [
        one
        for one in _parse(bundle)
        if one.not_valid_after_utc > now
        and one not in added
        and (one in used or (one.subject not in subjects and (_is_issued_by_operator(one) or not used)))
    ]
    kept.sort(key=lambda one: one.not_valid_before_utc)
    remaining = max(MAX_AUTHORITIES - len(added), 0)
    return _to_pem([*kept[max(len(kept) - remaining, 0) :], *added])


def has_authorities(bundle: bytes, authorities: str) -> bool:
    """Return whether all given CAs, at least one, are in a bundle."""
    given, trusted = _parse(authorities.encode()), _parse(bundle)
    return bool(given) and all(one in trusted for one in given)


def _is_issued_by_operator(one: x509.Certificate) -> bool:
    """Return whether an operator issued the certificate, by its lifetime: other CAs are valid for longer."""
    return one.not_valid_after_utc - one.not_valid_before_utc <= LIFETIME + _CLOCKS_DIFFER


def _parse(bundle: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(bundle)
    except ValueError:
        return []


def _to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


# --- TLS -----------------------------------------------------------------------


def server_context() -> ssl.SSLContext:
    """Create the TLS context of the webhook, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def use(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Use this certificate from the next handshake on; the key is never stored on a disk.

    Args:
        context: The TLS context.
        certificate: The certificate with its chain, as PEM.
        key: The private key, as PEM.

    Raises:
        ssl.SSLError: They cannot be used; the context is not changed.
    """
    # Load into a new context first: after a failure, a context can have the new certificate without its key.
    for target in (server_context(), context):
        _load(target, certificate.rstrip() + b"\n" + key)


def _load(context: ssl.SSLContext, content: bytes) -> None:
    with os.fdopen(os.memfd_create("webhook", os.MFD_CLOEXEC), "wb") as file:
        file.write(content)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")

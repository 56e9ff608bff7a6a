# SPDX-License-Identifier: Apache-2.0
"""A certification authority for tests: valid and invalid certificates, keys, revocation lists, as files."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailproxy_config.model import CertificateFiles

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
NOW: Final = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY: Final = dt.timedelta(days=1)


def name(text: str) -> x509.Name:
    """A distinguished name, least specific first: ``O=Ex/CN=client``."""
    kinds = {"CN": NameOID.COMMON_NAME, "O": NameOID.ORGANIZATION_NAME, "C": NameOID.COUNTRY_NAME}
    parts = [part.partition("=") for part in text.split("/")]
    return x509.Name([x509.NameAttribute(kinds[kind], value) for kind, _, value in parts])


def private_key(kind: str = "ec") -> PrivateKey:
    """Make a key: ``ec`` (P-256) or ``rsa`` (2048 bits)."""
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return a key in PEM form, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, in memory and as files."""

    certificate: x509.Certificate
    key: PrivateKey
    files: CertificateFiles


class Authority:
    """Issues certificates and writes everything under one folder.

    ``signer`` makes it an intermediate authority of another.
    """

    def __init__(self, folder: Path, subject: str = "CN=Test CA", *, signer: Authority | None = None) -> None:
        self.folder = folder
        self.key = private_key()
        self.name = name(subject)
        issuer, key = (signer.name, signer.key) if signer is not None else (self.name, self.key)
        builder = (
            _builder(self.name, self.key, issuer, expires=NOW + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_CA_USAGE, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        )
        if signer is not None:
            builder = _identify(builder, signer.key)
        self.certificate = builder.sign(key, hashes.SHA256())
        self._count = 0
        self.file = self.write("ca", self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        subject: str = "CN=localhost",
        *,
        key: str = "ec",
        expires: dt.datetime = NOW + 30 * DAY,
        purpose: x509.ObjectIdentifier | None = None,
        serial: int | None = None,
        passphrase: bytes | None = None,
        names: Sequence[str] = ("localhost",),
    ) -> Issued:
        """Issue a certificate for host names or IP addresses; ``passphrase`` encrypts its key."""
        own = private_key(key)
        builder = _identify(_builder(name(subject), own, self.name, expires=expires, serial=serial), self.key)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(each) for each in names]), critical=False
            )
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        return self._issued(builder.sign(self.key, hashes.SHA256()), own, passphrase)

    def self_signed(self, subject: str = "CN=nobody") -> Issued:
        """Make a self-signed certificate."""
        own = private_key()
        builder = _builder(name(subject), own, name(subject), expires=NOW + DAY)
        return self._issued(builder.sign(own, hashes.SHA256()), own, None)

    def revocations(self, *revoked: Issued) -> str:
        """Write a list of revoked certificates."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.name, last_update=NOW - DAY, next_update=NOW + 30 * DAY
        )
        for issued in revoked:
            entry = x509.RevokedCertificateBuilder(issued.certificate.serial_number, NOW - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        # Strictly verified, a list of revoked certificates names the key that signed it, and has a number.
        builder = builder.add_extension(x509.CRLNumber(1), critical=False).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        listed = builder.sign(self.key, hashes.SHA256())
        return self.write("crl", listed.public_bytes(serialization.Encoding.PEM))

    def write(self, kind: str, data: bytes) -> str:
        """Write a file with a unique name and return its path."""
        self._count += 1
        path = self.folder / f"{self.name.rfc4514_string()}-{self._count}-{kind}.pem"
        path.write_bytes(data)
        return str(path)

    def _issued(self, certificate: x509.Certificate, key: PrivateKey, passphrase: bytes | None) -> Issued:
        text = certificate.public_bytes(serialization.Encoding.PEM)
        files = CertificateFiles(
            certificate=self.write("cert", text), key=self.write("key", pem(key, passphrase))
        )
        return Issued(certificate, key, files)


SERVER_ONLY: Final = ExtendedKeyUsageOID.SERVER_AUTH


_CA_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def _identify(builder: x509.CertificateBuilder, signer: PrivateKey) -> x509.CertificateBuilder:
    """Add the identifier of the signing key, which strict clients (Python 3.13, Go) require."""
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return builder.add_extension(identifier, critical=False)


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(
    subject: x509.Name, key: PrivateKey, issuer: x509.Name, *, expires: dt.datetime, serial: int | None = None
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        serial_number=serial or x509.random_serial_number(),
        not_valid_before=min(NOW, expires) - 10 * DAY,
        not_valid_after=expires,
    )

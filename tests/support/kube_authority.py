# SPDX-License-Identifier: Apache-2.0
"""Certificate authorities as in many clusters: without key usage and without key identifiers."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY: Final = dt.timedelta(days=1)
_PEM: Final = serialization.Encoding.PEM


class PlainAuthority:
    """A CA whose certificates have no extension except the basic constraints.

    ``VERIFY_X509_STRICT``, which Python sets since 3.13, refuses them.

    Attributes:
        certificate: The CA certificate, as PEM.
    """

    def __init__(self, name: str = "kubernetes") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        made = _builder(self._name, self._name, self._key).add_extension(constraints, critical=True)
        self.certificate = made.sign(self._key, hashes.SHA256()).public_bytes(_PEM)

    def issue(self, *hosts: str) -> tuple[bytes, bytes]:
        """Create a certificate for this machine's loopback addresses, and its key, as PEM.

        Args:
            hosts: Further addresses and DNS names of the certificate.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [_general_name(one) for one in ("localhost", "127.0.0.1", *hosts)]
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
        made = _builder(subject, self._name, key).add_extension(names, critical=False)
        certificate = made.sign(self._key, hashes.SHA256()).public_bytes(_PEM)
        private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return certificate, private

    def server_context(self, folder: Path) -> ssl.SSLContext:
        """Create the TLS context of a server with such a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.load(context, folder)
        return context

    def load(self, context: ssl.SSLContext, folder: Path) -> None:
        """Load a new certificate of this CA into a server's context; new connections use it."""
        path = folder / "server.pem"
        path.write_bytes(b"".join(self.issue()))
        context.load_cert_chain(path)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
    )

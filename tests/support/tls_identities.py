# SPDX-License-Identifier: Apache-2.0
"""Certificates of a proxy and its clients, for transcripts and attacks."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509

from mailproxy_config.model import CertificateFiles
from support.tls_authority import DAY, NOW, Authority, Issued
from support.tls_peers import client_context


class Identities:
    """The certificate of a server, and valid and invalid certificates of clients.

    Attributes:
        server: The files of the server's certificate and key.
        authority: The file of the authority that signs clients' certificates.
    """

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        self.server: CertificateFiles = authority.issue().files
        self.authority = authority.file
        self._clients: dict[str, Issued] = {
            "": authority.issue("CN=client"),
            "certificate has expired": authority.issue("CN=client", expires=NOW - DAY),
            "self-signed certificate": authority.self_signed("CN=client"),
            "whatever": authority.self_signed("CN=client"),
        }

    def client(self, description: str = "none") -> ssl.SSLContext:
        """Make a client's context; ``description`` is the value of ``certificate:`` in a transcript."""
        kind, _, verify_error = description.partition(" ")
        return client_context(certificate=None if kind == "none" else self._clients[verify_error])

    def certificate(self, kind: str, verify_error: str) -> x509.Certificate | None:
        """Make the certificate of such a client."""
        return None if kind == "none" else self._clients[verify_error].certificate

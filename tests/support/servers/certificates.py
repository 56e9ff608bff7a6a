# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys of the proxy and its clients, as files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from mailproxy_config.model import CertificateFiles
from support.tls_authority import Authority


@dataclass(frozen=True)
class Certificates:
    """A CA, certificates of the proxy and of alice signed by it, and a self-signed certificate."""

    authority: str
    proxy: CertificateFiles
    alice: CertificateFiles
    stranger: CertificateFiles

    def client(self, own: CertificateFiles | None = None) -> ssl.SSLContext:
        """Return a client's context, which trusts the CA and may have a certificate."""
        context = ssl.create_default_context(cafile=self.authority)
        context.check_hostname = False  # the name is localhost; tests connect to 127.0.0.1
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        return context


def certificates(folder: Path) -> Certificates:
    """Create all certificates."""
    authority = Authority(folder)
    return Certificates(
        authority=authority.file,
        proxy=authority.issue("CN=localhost").files,
        alice=authority.issue("O=Example/CN=alice").files,
        stranger=authority.self_signed("CN=mallory").files,
    )

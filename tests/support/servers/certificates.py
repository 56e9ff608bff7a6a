# SPDX-License-Identifier: Apache-2.0
"""What the proxy and its clients need for TLS, as files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from mailproxy_config.model import CertificateFiles
from support.tls_authority import Authority


@dataclass(frozen=True)
class Certificates:
    """An authority; the proxy's certificate by it; alice's by it, and one that nobody vouches for."""

    authority: str
    proxy: CertificateFiles
    alice: CertificateFiles
    stranger: CertificateFiles

    def client(self, own: CertificateFiles | None = None) -> ssl.SSLContext:
        """A client's context: trusts the authority, and shows a certificate if it has one."""
        context = ssl.create_default_context(cafile=self.authority)
        context.check_hostname = False  # it is called localhost; tests connect to 127.0.0.1
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        return context


def certificates(folder: Path) -> Certificates:
    """Issue them all."""
    authority = Authority(folder)
    return Certificates(
        authority=authority.file,
        proxy=authority.issue("CN=localhost").files,
        alice=authority.issue("O=Example/CN=alice").files,
        stranger=authority.self_signed("CN=mallory").files,
    )

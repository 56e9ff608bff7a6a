# SPDX-License-Identifier: Apache-2.0
"""A private certification authority, made with OpenSSL's command line as administrators do.

Neither of its certificates has all the extensions of RFC 5280: the authority's
has no key usage, the service's no authority key identifier.  OpenSSL and nginx
accept both; by default, Python does not from 3.13 on.
"""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class PrivateAuthority:
    """Files, as PEM.

    Attributes:
        file: The authority's certificate.
        certificate: That of a service on 127.0.0.1.
        key: The service's key.
    """

    file: Path
    certificate: Path
    key: Path


def openssl_authority(openssl: str, folder: Path) -> PrivateAuthority:
    """Make them with ``openssl req -x509`` and ``openssl x509 -req``."""
    made = PrivateAuthority(folder / "ca.pem", folder / "service.pem", folder / "service.key")
    names, request, ca_key = folder / "names", folder / "request.pem", folder / "ca.key"
    names.write_text("subjectAltName = IP:127.0.0.1\n")
    new = ["-newkey", "rsa:2048", "-nodes"]
    commands: tuple[list[str | Path], ...] = (
        ["req", "-x509", *new, "-keyout", ca_key, "-out", made.file, "-days", "9", "-subj", "/CN=Private CA"],
        ["req", *new, "-keyout", made.key, "-out", request, "-subj", "/CN=auth"],
        ["x509", "-req", "-in", request, "-CA", made.file, "-CAkey", ca_key, "-CAcreateserial", "-days", "9",
         "-extfile", names, "-out", made.certificate],
    )  # fmt: skip
    for words in commands:
        subprocess.run([openssl, *words], capture_output=True, check=True)
    return made


def verify_strictly_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any version of Python verify as 3.13 does by default."""
    usual = ssl.create_default_context

    def strict(*, cafile: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
        context = usual(cafile=cafile, cadata=cadata)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)

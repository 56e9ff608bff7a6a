# SPDX-License-Identifier: Apache-2.0
"""Certificates are renewed while the proxy runs, as by cert-manager and certbot."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from mailproxy_config.model import CertificateFiles
from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.clients import HOST, RawClient
from support.servers.programs import TIMEOUT_SECONDS, Ports, eventually
from support.servers.proxy import Proxy, manifest
from support.servers.shared_proxy import ServerPlan, certificate_element

pytestmark = pytest.mark.interop


def served_certificate(port: int) -> bytes:
    """Return the certificate that a listener presents."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((HOST, port), timeout=TIMEOUT_SECONDS) as plain,
        context.wrap_socket(plain) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def der(file: str) -> bytes:
    """Return the first certificate of a file."""
    return ssl.PEM_cert_to_DER_cert(Path(file).read_text())


def test_renewed_certificate_is_used_without_a_signal(
    tls: Certificates,
    service: AuthService,
    ports: Ports,
    new_folder: Callable[[str], Path],
    new_proxy: Callable[..., Proxy],
) -> None:
    """Sessions that use the old certificate continue."""
    folder = new_folder("renewed")
    own = CertificateFiles(certificate=str(folder / "tls.crt"), key=str(folder / "tls.key"))
    install(tls.proxy, own)
    plan = ServerPlan(service, ports)
    plan.add("renewing", "imap", implicit="renewing-tls")
    new_proxy(manifest(plan.servers, {"sslCertificate": [certificate_element(own)]}))
    assert served_certificate(plan.ports["renewing-tls"]) == der(tls.proxy.certificate)
    with RawClient(plan.ports["renewing-tls"], tls.client()) as raw:
        raw.read_until(b"* OK")
        install(tls.alice, own)
        renewed = der(tls.alice.certificate)
        eventually(lambda: served_certificate(plan.ports["renewing-tls"]) == renewed, "the new certificate")
        assert raw.exchange(b"a NOOP") == b"a OK completed"


def install(source: CertificateFiles, target: CertificateFiles) -> None:
    """Replace the configured key and certificate files, one after the other, as renewal tools do."""
    for old, new in ((source.key, target.key), (source.certificate, target.certificate)):
        shutil.copy(old, f"{new}.new")
        Path(f"{new}.new").replace(new)

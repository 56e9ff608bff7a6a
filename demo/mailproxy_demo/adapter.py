# SPDX-License-Identifier: Apache-2.0
"""Adapts a manifest to this machine: ports that are free, the demo's mail servers, certificates."""

from __future__ import annotations

import copy
import errno
import ipaddress
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mailproxy_config.compile import collect_references
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.secret_refs import ReferenceKind
from mailproxy_demo.upstreams import use_mail_servers
from mailproxy_operator.api.kinds import Manifest

_PAIR = ("tls.crt", "tls.key")
_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)
"""Required by clients that verify strictly: the certificate signs itself, and handshakes."""


class ManifestAdapter:
    """Replaces ports that cannot be opened, and what is behind the proxy by what the demo runs.

    A port gets the same replacement each time the file is read.

    Args:
        auth_url: The URL of the demo's authentication service; empty when it runs none.
        mail_ports: The port of each mail server of the demo, by protocol.
        report: Receives a line for each replacement.
    """

    def __init__(self, auth_url: str, mail_ports: Mapping[str, int], report: Callable[[str], None]) -> None:
        self._auth_url = auth_url
        self._mail_ports = mail_ports
        self._report = report
        self._replaced: dict[tuple[str, int], int] = {}

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return an adapted copy.  What has the wrong type is left alone: the parser reports it."""
        manifest = copy.deepcopy(manifest)
        spec = manifest.get("spec")
        if not isinstance(spec, dict):
            return manifest
        use_mail_servers(manifest, self._mail_ports)
        if self._auth_url:
            self._set_auth_service(spec)
        for server in _servers(spec):
            self._adapt_listeners(server.get("listen"))
        return manifest

    def _set_auth_service(self, spec: Manifest) -> None:
        mail = spec.setdefault("mail", {})
        if isinstance(mail, dict):
            mail["authHttp"] = self._auth_url
        for server in _servers(spec):
            server.pop("authHttp", None)

    def _adapt_listeners(self, listen: object) -> None:
        for one in listen if isinstance(listen, list) else []:
            if not isinstance(one, dict) or not isinstance(one.get("port"), int):
                continue
            address, port = str(one.get("address", "*")), one["port"]
            if (address, port) not in self._replaced:
                error = bind_error(address, port)
                self._replaced[address, port] = free_port() if error else port
                if error:
                    self._report(f"port {port} {error}; using {self._replaced[address, port]} instead")
            one["port"] = self._replaced[address, port]


def _servers(spec: Manifest) -> list[Manifest]:
    servers = spec.get("servers")
    return [one for one in servers if isinstance(one, dict)] if isinstance(servers, list) else []


def bind_error(address: str, port: int) -> str:
    """Return why a port cannot be opened; empty when it can."""
    host = {"*": "0.0.0.0", "localhost": "127.0.0.1"}.get(address, address).strip("[]")  # noqa: S104
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return {errno.EADDRINUSE: "is taken", errno.EACCES: "needs root"}.get(error.errno or 0, "")
    return ""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def auth_port(manifest: Mapping[str, Any]) -> int:
    """Return the port of the manifest's ``authHttp``; 0 when it has none or the port cannot be opened."""
    try:
        url = parse_manifest(manifest).mail.values.get("auth_http")
        port = getattr(url, "port", 0)
    except Exception:
        return 0
    return usable(int(port))


def usable(port: int) -> int:
    """Return the port, or 0 when it cannot be opened."""
    return 0 if bind_error("127.0.0.1", port) else port


def create_certificates(manifest: Mapping[str, Any], directory: Path) -> bytes:
    """Create each TLS Secret that the manifest refers to and that is missing, as ``DIRECTORY/NAME/KEY``.

    Returns:
        The certificate, PEM, for clients to trust.

    Raises:
        ConfigError: The manifest is not valid.
    """
    certificate, key = self_signed()
    for reference in collect_references(parse_manifest(manifest)):
        secret = directory / reference.name
        is_tls = reference.kind is ReferenceKind.SECRET and set(reference.keys) <= set(_PAIR)
        if is_tls and not secret.exists():
            secret.mkdir(parents=True)
            for name, content in zip(_PAIR, (certificate, key), strict=True):
                (secret / name).write_bytes(content)
                (secret / name).chmod(0o600)
    return certificate


def self_signed(host: str = "localhost") -> tuple[bytes, bytes]:
    """Create a certificate for a host name and 127.0.0.1, valid for 30 days.

    Returns:
        Certificate and private key, both PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    names = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), secret

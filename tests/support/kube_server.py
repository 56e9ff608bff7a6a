# SPDX-License-Identifier: Apache-2.0
"""A real API server with its etcd on loopback, if their programs are installed.

The programs are searched where ``envtest`` searches them: in ``$KUBEBUILDER_ASSETS``,
else in ``/usr/local/kubebuilder/bin``.  There are no controllers and no nodes;
tests do their work.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from support.kube_api import Api, ApiUser
from support.kube_authority import PlainAuthority
from support.servers.programs import Ports, Running, eventually

ASSETS: Final = "KUBEBUILDER_ASSETS"
USUAL_ASSETS: Final = "/usr/local/kubebuilder/bin"
ABSENT: Final = (
    f"needs kube-apiserver and etcd, in ${ASSETS} or {USUAL_ASSETS}: "
    "https://book.kubebuilder.io/reference/envtest.html"
)
"""The reason for skipping a test against a real API server."""
STARTUP_SECONDS: Final = 90.0
"""Timeout in seconds until the API server is ready; on an idle machine it takes about five."""

_ISSUER: Final = "https://kubernetes.default.svc"
_ADMIN: Final = "admin-token-of-a-test"
_USERS: Final = f'{_ADMIN},admin,admin,"system:masters"\n'
_NOT_LOGGED: Final = {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*"]}
_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [_NOT_LOGGED, {"level": "Metadata"}],
}


@dataclass(frozen=True)
class Programs:
    """The paths of the two programs."""

    etcd: Path
    apiserver: Path


def programs() -> Programs | None:
    """Find the two programs; return ``None`` if one of them is missing."""
    folder = Path(os.environ.get(ASSETS) or USUAL_ASSETS)
    found = Programs(folder / "etcd", folder / "kube-apiserver")
    are_executable = all(os.access(path, os.X_OK) for path in (found.etcd, found.apiserver))
    return found if are_executable else None


@dataclass(frozen=True)
class Request:
    """One request from the API server's audit log.

    Attributes:
        verb: The verb as in RBAC: ``patch`` is ``patch``, whatever its content.
        created: Whether a patch created the object, which requires the right to create it too.
    """

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    path: str
    code: int
    created: bool


class KubeServer:
    """A running API server.

    Attributes:
        url: The URL of the API server.
        authority: The file with the CA certificate of the API server.
        arguments: The arguments of its command line.
        admin: Sends requests as a user with all rights.
    """

    def __init__(self, folder: Path, url: str, key: rsa.RSAPrivateKey) -> None:
        self.url = url
        self.authority = folder / "ca.crt"
        self.arguments: list[str] = []
        self._running: Running | None = None
        self._folder = folder
        self._audit = folder / "audit.log"
        self._key = key
        self.admin = Api(self.as_bearer(_ADMIN))

    def start(self) -> None:
        """Start it, or start it again with all objects it had."""
        running = Running(self.arguments, output=self._folder / "apiserver.log")
        self._running = running
        eventually(lambda: _is_ready(running, self), "the API server", timeout=STARTUP_SECONDS)

    def stop(self) -> None:
        """Stop it; its etcd continues to run."""
        if self._running is not None:
            self._running.stop()

    def as_bearer(self, token: str) -> ApiUser:
        """Return a sender of requests with a token."""
        return ApiUser(self.url, token=token, authority=self.authority)

    def token(self, namespace: str, account: str) -> str:
        """Request a token of a service account from the API server."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str(self.admin.post(path, request).checked_body["status"]["token"])

    def expired_token(self, namespace: str, account: str) -> str:
        """Create a token of a service account that expired an hour ago."""
        found = self.admin.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}").checked_body
        now = int(time.time())
        identity = {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": found["metadata"]["uid"]},
        }
        return self._signed(
            {
                "iss": _ISSUER,
                "aud": [_ISSUER],
                "sub": f"system:serviceaccount:{namespace}:{account}",
                "iat": now - 7200,
                "nbf": now - 7200,
                "exp": now - 3600,
                "kubernetes.io": identity,
            }
        )

    def _signed(self, claims: dict[str, Any]) -> str:
        """Return a JSON Web Token (RFC 7519), signed as the API server signs its own."""
        text = f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part(claims)}"
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_base64(signature)}"

    def requests(self, user: str = "") -> list[Request]:
        """Return all requests so far, or those of one user."""
        with self._audit.open(encoding="utf-8") as log:
            found = [_request(json.loads(line)) for line in log if line.endswith("\n")]
        return [one for one in found if user in {"", one.user}]


def _part(claims: dict[str, Any]) -> str:
    return _base64(json.dumps(claims).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _request(event: dict[str, Any]) -> Request:
    reference = event.get("objectRef") or {}
    resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
    code = int((event.get("responseStatus") or {}).get("code") or 0)
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        group=reference.get("apiGroup", ""),
        resource=resource,
        namespace=reference.get("namespace", ""),
        name=reference.get("name", ""),
        path=event["requestURI"],
        code=code,
        created=event["verb"] == "patch" and code == 201,
    )


@contextmanager
def kube_server(found: Programs, folder: Path, hosts: Sequence[str] = ()) -> Iterator[KubeServer]:
    """Run both programs until the context ends.

    Args:
        found: The programs.
        folder: The folder for their files.
        hosts: Further addresses and names of the certificate. With them, the API server listens on all
            addresses of the machine, and advertises the first one to pods.
    """
    ports = Ports()
    etcd_port, peer_port, port = ports.take(), ports.take(), ports.take()
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    server = KubeServer(folder, f"https://127.0.0.1:{port}", _identity(folder, hosts))
    with ExitStack() as stack:
        etcd = Running(_etcd(found.etcd, folder, etcd_url, peer_port), output=folder / "etcd.log")
        stack.callback(etcd.stop)
        etcd.wait_for_ports(etcd_port)
        stack.callback(server.stop)  # the API server first: without etcd it would not exit
        server.arguments = _apiserver(found.apiserver, folder, etcd_url, port)
        if hosts:
            server.arguments += ["--bind-address=0.0.0.0", f"--advertise-address={hosts[0]}"]
        server.start()
        yield server


def _is_ready(running: Running, server: KubeServer) -> bool:
    assert running.process.poll() is None, f"the API server has ended:\n{running.output_text()}"
    with suppress(OSError, HTTPException):
        return server.admin.get("/readyz").status == 200
    return False


def _etcd(program: Path, folder: Path, url: str, peer_port: int) -> list[str]:
    return [
        str(program),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(program: Path, folder: Path, etcd: str, port: int) -> list[str]:
    return [
        str(program),
        f"--etcd-servers={etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder}",
        f"--tls-cert-file={folder / 'server.crt'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--token-auth-file={folder / 'users.csv'}",
        "--authorization-mode=RBAC",
        # OpenShift enables this: a user who writes owner references needs a right to do so.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        f"--service-account-issuer={_ISSUER}",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        f"--service-account-key-file={folder / 'accounts.pub'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        f"--audit-policy-file={folder / 'audit.json'}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--audit-log-mode=blocking-strict",
        "--v=0",
    ]


def _identity(folder: Path, hosts: Sequence[str]) -> rsa.RSAPrivateKey:
    """Write its certificate, the key that signs tokens, its users and its audit policy."""
    authority = PlainAuthority()  # as in many clusters: no key usage, no key identifiers
    certificate, private_key = authority.issue(*hosts)
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "server.crt").write_bytes(certificate)
    (folder / "server.key").write_bytes(private_key)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "accounts.key").write_bytes(private)
    (folder / "accounts.pub").write_bytes(public)
    (folder / "users.csv").write_text(_USERS)
    (folder / "audit.json").write_text(json.dumps(_POLICY))
    return key

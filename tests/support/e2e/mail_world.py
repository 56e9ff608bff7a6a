# SPDX-License-Identifier: Apache-2.0
"""Mail servers and mail clients in a cluster, and the certificates of the proxy.

The clients run in a pod.  So they reach the proxy by the DNS name of its Service, through
the cluster's own load balancing, and the proxy gets their address.  With
``kubectl port-forward`` the kubelet would connect to one pod chosen at the start: the
proxy would get the address 127.0.0.1, no Service would take part, and all sessions would end
with that pod.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.e2e.live_cluster import MAIL, ROOT, LiveCluster
from support.helm import Object

CLIENT: Final = "client"
SERVERS: Final = "mail-servers"
IMAGE: Final = "docker.io/library/python:3.14-slim-trixie"
USER: Final = {"user": "alice", "password": "wonderland"}
"""The user of ``deploy/examples/auth-service/secret.yaml``."""
_PROGRAMS: Final = ROOT / "tests/e2e/pods"
_SERVICES: Final = {"imap": (143, 1143), "pop3": (110, 1110), "smtp": (25, 1025)}


def program_map(name: str, *files: Path, namespace: str = MAIL) -> Object:
    """Return a ConfigMap with programs."""
    data = {one.name: one.read_text(encoding="utf-8") for one in files}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def python_container(name: str, program: str, *, is_probed: bool = True) -> Object:
    """Return a container that runs a program of the ConfigMap ``e2e-programs``."""
    made: Object = {
        "name": name,
        "image": IMAGE,
        "command": ["python", "-u", f"/opt/e2e/{program}"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "programs", "mountPath": "/opt/e2e", "readOnly": True}],
    }
    if is_probed:
        made["readinessProbe"] = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    return made


def pod_spec(*containers: Object) -> Object:
    """Return the specification of a pod for such containers."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": list(containers),
        "volumes": [{"name": "programs", "configMap": {"name": "e2e-programs"}}],
    }


def pod(name: str, *containers: Object, labels: dict[str, str]) -> Object:
    """Return a pod."""
    metadata = {"name": name, "namespace": MAIL, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(*containers)}


def service(name: str, selector: dict[str, str], port: int, target: int) -> Object:
    """Return a Service."""
    spec = {"selector": selector, "ports": [{"port": port, "targetPort": target}]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": MAIL},
        "spec": spec,
    }


def mail_objects() -> list[Object]:
    """Return the pods with the mail servers and the mail clients, and the Services of the servers."""
    labels = {"app": SERVERS}
    programs = program_map("e2e-programs", *sorted(_PROGRAMS.glob("*.py")))
    services = [service(name, labels, *ports) for name, ports in _SERVICES.items()]
    servers = pod(SERVERS, python_container("servers", "mail_servers.py"), labels=labels)
    client = pod(CLIENT, python_container("client", "mail_client.py"), labels={"app": CLIENT})
    return [programs, *services, servers, client]


class FailedRequestError(AssertionError):
    """A mail client got no success."""


@dataclass(frozen=True)
class OpenSession:
    """A session of a mail client in the cluster.

    Attributes:
        address: The client's address.
        greeting: What the proxy sent first.
        fingerprint: Of the certificate in the handshake; empty without TLS.
    """

    world: MailWorld
    id: str
    address: str
    greeting: str
    fingerprint: str

    def command(self, line: str) -> str:
        """Send a command, and return the reply, which must be a success."""
        return str(self.world.act("command", id=self.id, line=line)["reply"])

    def send(self, data: str) -> None:
        """Send text as it is."""
        self.world.act("send", id=self.id, data=data)

    def read_to_end(self, seconds: float) -> str:
        """Read until the proxy closes the connection."""
        return str(self.world.act("read_to_end", id=self.id, seconds=seconds)["data"])

    def close(self) -> None:
        """Close the connection."""
        self.world.act("close", id=self.id)


class MailWorld:
    """The mail servers and clients, driven through the API server."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.cluster = cluster

    def act(self, action: str, **request: Any) -> Object:
        """Let the clients' pod do something.

        Raises:
            FailedRequestError: It failed.
        """
        answer: Object = self.cluster.request_pod(CLIENT, action, request)
        if "error" in answer:
            raise FailedRequestError(f"{action} {request}: {answer['error']}")
        return answer

    def open(
        self, protocol: str, port: int, tls: str, *, host: str = "edge", login: bool = True
    ) -> OpenSession:
        """Open a session through a Service, and log in."""
        wanted = {"protocol": protocol, "host": f"{host}.{MAIL}.svc", "port": port, "tls": tls}
        answer = self.act("open", **wanted, **(USER if login else {}))
        return OpenSession(self, answer["id"], answer["address"], answer["greeting"], answer["fingerprint"])

    def connects(self, host: str, port: int, seconds: float = 3.0) -> bool:
        """Whether a client can connect to an address."""
        answer = self.cluster.request_pod(CLIENT, "connect", {"host": host, "port": port, "seconds": seconds})
        return "error" not in answer

    def received(self) -> Object:
        """Return the logins and messages that the mail servers have received."""
        found: Object = self.cluster.request_pod(SERVERS, "")
        return found


def issue_certificate(name: str) -> tuple[bytes, bytes, str]:
    """Create a self-signed certificate: certificate and key as PEM, and the certificate's fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    digest = hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()
    return made.public_bytes(pem), private, digest


def tls_secret(name: str) -> tuple[Object, str]:
    """Return a Secret with a new certificate, and the certificate's fingerprint."""
    certificate, key, fingerprint = issue_certificate("mail.example.com")
    data = {"tls.crt": base64.b64encode(certificate).decode(), "tls.key": base64.b64encode(key).decode()}
    metadata = {"name": name, "namespace": MAIL}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "kubernetes.io/tls",
        "data": data,
    }
    return secret, fingerprint


# -- the proxy ``edge`` -----------------------------------------------------------


def set_spec(world: MailWorld, /, **spec: Any) -> None:
    """Merge a change into the spec of the MailProxy ``edge``."""
    patch = json.dumps({"spec": spec})
    world.cluster.kubectl("-n", MAIL, "patch", "mailp", "edge", "--type=merge", "-p", patch)


def proxy_pods(cluster: LiveCluster, name: str = "edge") -> list[Object]:
    """Return the pods of a MailProxy."""
    return cluster.list("pods", "-l", f"mailproxy.dev/proxy={name}")


def pod_uids(cluster: LiveCluster, name: str = "edge") -> set[str]:
    """Return the identities of the pods of a MailProxy."""
    return {one["metadata"]["uid"] for one in proxy_pods(cluster, name)}


def settle(world: MailWorld) -> None:
    """Wait until the operator has applied the newest spec, and the pods of ``edge`` are the newest ones."""
    cluster = world.cluster
    cluster.wait_ready("edge")
    cluster.kubectl("-n", MAIL, "rollout", "status", "deployment/edge", "--timeout=170s")
    cluster.eventually(
        lambda: not any("deletionTimestamp" in one["metadata"] for one in proxy_pods(cluster)),
        "the old pods to be gone",
    )
    cluster.wait_ready("edge")

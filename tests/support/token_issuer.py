# SPDX-License-Identifier: Apache-2.0
"""An issuer of access tokens: its keys, tokens in order or broken in any way, and a server for its keys."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from mailproxy_config.oauth_issuer import OAuthIssuer

ISSUER: Final = "https://id.example/realms/mail"
KEY_IDS: Final = {
    "RS256": "rsa",
    "PS512": "pss",
    "ES256": "p256",
    "ES384": "p384",
    "ES512": "p521",
    "EdDSA": "ed",
}
"""The algorithms of the keys that an issuer has, and their ``kid``."""


@cache
def private_key(kind: str, name: str = "") -> Any:
    """Return a private key; the same one for the same arguments.

    Args:
        kind: ``RSA``, a curve of NIST, or ``Ed25519``.
        name: Makes another key.
    """
    del name
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    return ec.generate_private_key(curves[kind])


_KINDS: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


def encoded(data: bytes | Mapping[str, Any]) -> bytes:
    """Return base64url of bytes, or of an object as JSON."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return urlsafe_b64encode(raw).rstrip(b"=")


@dataclass
class Issuer:
    """An issuer with a key for each algorithm of ``KEY_IDS``.

    Attributes:
        name: Its URL, the claim ``iss``; another name has other keys.
    """

    name: str = ISSUER

    def private(self, algorithm: str) -> Any:
        """Return the private key for an algorithm."""
        return private_key(_KINDS.get(algorithm, "RSA"), f"{self.name} {algorithm}")

    def jwk(self, algorithm: str, **members: Any) -> dict[str, Any]:
        """Return a public key as a JSON Web Key; members that are ``None`` are left out."""
        found = jwt.get_algorithm_by_name(algorithm).to_jwk(
            self.private(algorithm).public_key(), as_dict=True
        )
        found.pop("key_ops", None)
        found |= {"kid": KEY_IDS[algorithm], "alg": algorithm, "use": "sig", **members}
        return {name: value for name, value in found.items() if value is not None}

    def jwks(self, *algorithms: str) -> bytes:
        """Return the key set, with the keys for these algorithms only where some are given."""
        return json.dumps({"keys": [self.jwk(one) for one in algorithms or KEY_IDS]}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return claims that are in order, with changes; those that are ``None`` are left out."""
        now = int(time.time())
        found = {
            "iss": self.name,
            "aud": ["account", "mail"],
            "exp": now + 86_400,  # tables of tokens are made long before a test uses them
            "iat": now,
            "sub": "f2a",
            "azp": "thunderbird",
            "scope": "openid email",
            "typ": "Bearer",
            "email": "bob@example.org",
            "email_verified": True,
            **changes,
        }
        return {name: value for name, value in found.items() if value is not None}

    def token(
        self, algorithm: str = "RS256", header: Mapping[str, Any] | None = None, **claims: Any
    ) -> bytes:
        """Return a signed token.

        Args:
            algorithm: Of the key, and of the signature.
            header: Changes of the header; members that are ``None`` are left out.
            claims: Changes of the claims.
        """
        return self.signed(algorithm, header, encoded(self.claims(**claims)))

    def signed(self, algorithm: str, header: Mapping[str, Any] | None, payload: bytes) -> bytes:
        """Return a token with this payload, which is base64url."""
        head = {"alg": algorithm, "kid": KEY_IDS[algorithm], "typ": "JWT", **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        message = encoded(head) + b"." + payload
        signature = jwt.get_algorithm_by_name(algorithm).sign(message, self.private(algorithm))
        return message + b"." + encoded(signature)

    def config(self, jwks_uri: str = "https://id.example/certs", **fields: Any) -> OAuthIssuer:
        """Return the issuer as it is configured."""
        known: dict[str, Any] = {
            "issuer": self.name,
            "jwks_uri": jwks_uri,
            "audiences": ("mail",),
            "openid_configuration": f"{self.name}/.well-known/openid-configuration",
        }
        return OAuthIssuer(**(known | fields))


def http_response(
    body: bytes, status: str = "200 OK", headers: str = "Content-Type: application/json\r\n"
) -> bytes:
    """Return an HTTP response, after which the connection is closed."""
    head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@dataclass
class JwksServer:
    """A server for key sets, in threads.

    Attributes:
        responses: What to send: bytes, or a function of the socket; the last one for ever.
        requests: The requests that it got.
    """

    responses: list[bytes | Callable[[socket.socket], object]]
    port: int = 0
    is_tls: bool = False
    requests: list[bytes] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end, for functions that wait."""

    @property
    def uri(self) -> str:
        """The URL of the key set."""
        return f"{'https://localhost' if self.is_tls else 'http://127.0.0.1'}:{self.port}/certs"

    def serve(self, body: bytes) -> None:
        """Send this key set from now on."""
        self.responses[:] = [http_response(body)]

    def wait_for_requests(self, count: int) -> None:
        """Wait until there were so many requests."""
        ends_at = time.monotonic() + 20
        while len(self.requests) < count:
            assert time.monotonic() < ends_at, self.requests
            time.sleep(0.01)

    def handle(self, sock: socket.socket) -> None:
        """Serve one connection."""
        request = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in request:
                data = sock.recv(4096)
                if not data:
                    return
                request += data
            response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
            self.requests.append(request)
            if callable(response):
                response(sock)
            else:
                sock.sendall(response)


@contextlib.contextmanager
def jwks_server(
    *responses: bytes | Callable[[socket.socket], object], tls: ssl.SSLContext | None = None
) -> Iterator[JwksServer]:
    """Run a server for key sets."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = JwksServer(list(responses), listener.getsockname()[1], is_tls=tls is not None)

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # an SSLError is one
            wrapped = sock if tls is None else tls.wrap_socket(sock, server_side=True)
            with wrapped:
                server.handle(wrapped)
        sock.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                thread = threading.Thread(target=serve, args=(sock,), daemon=True)
                thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        server.released.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(5)

# SPDX-License-Identifier: Apache-2.0
"""An authentication service for ``auth_http``: a table of users, and the upstream of each path."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class AuthRule:
    """The upstream for one path, and how the service responds to requests for it.

    Attributes:
        port: The port of the upstream.
        delay: Seconds before each response.
        wait: ``Auth-Wait`` of a response that denies the login, if any.
        extra: Additional headers of a response that allows the login.
        address: The address of the upstream.
    """

    port: int
    delay: float = 0.0
    wait: int = 0
    extra: tuple[tuple[str, str], ...] = ()
    address: str = "127.0.0.1"


@dataclass(frozen=True)
class AuthRequest:
    """A request to the service: its path, and its headers by lower-case name."""

    path: str
    headers: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.headers[name]

    @property
    def user(self) -> str:
        """The user name."""
        return unquote(self.headers["auth-user"])


@dataclass
class AuthService:
    """The running service; ``requests`` holds the requests in order of arrival."""

    passwords: dict[str, str]
    rules: dict[str, AuthRule] = field(default_factory=dict)
    requests: list[AuthRequest] = field(default_factory=list)
    port: int = 0

    def url(self, path: str) -> str:
        """Return the value of ``auth_http`` for a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    def latest_request(self, path: str) -> AuthRequest:
        """Return the latest request for a path."""
        return [request for request in self.requests if request.path == path][-1]

    def response_headers(self, request: AuthRequest) -> Headers:
        """Return the headers of the response."""
        rule = self.rules[request.path]
        time.sleep(rule.delay)
        user = self.authenticated_user(request)
        if user is None:
            wait = [("Auth-Wait", str(rule.wait))] if rule.wait else []
            return [("Auth-Status", "Invalid login or password"), *wait]
        allowed = [("Auth-Status", "OK"), ("Auth-Server", rule.address), ("Auth-Port", str(rule.port))]
        if request["auth-method"] not in {"plain", "none"}:
            allowed += [("Auth-User", user), ("Auth-Pass", self.passwords[user])]
        return [*allowed, *rule.extra]

    def authenticated_user(self, request: AuthRequest) -> str | None:
        """Return the authenticated user, by the rules of each method; an empty string for ``none``."""
        method = request["auth-method"]
        if method == "none":
            return ""
        if method == "external":
            subject = request.headers.get("auth-ssl-subject", "")
            user = subject.partition(",")[0].removeprefix("CN=")
            return (
                user
                if request.headers.get("auth-ssl-verify") == "SUCCESS" and user in self.passwords
                else None
            )
        password = self.passwords.get(request.user)
        if password is None:
            return None
        proof = unquote(request["auth-pass"])
        expected = _expected(method, password, request.headers.get("auth-salt", ""))
        return request.user if hmac.compare_digest(proof, expected) else None


def _expected(method: str, password: str, salt: str) -> str:
    """Return the digest of a password (RFC 1939 section 7, RFC 2195)."""
    if method == "apop":
        return hashlib.md5(f"{salt}{password}".encode()).hexdigest()
    if method == "cram-md5":
        return hmac.new(password.encode(), salt.encode(), "md5").hexdigest()
    return password


class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False
    open: set[socket.socket]

    def __init__(self, *args: Any) -> None:
        self.open = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread."""
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of a proxy that closes the connection during a response."""


def _handler(service: AuthService, protocol: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = protocol
        timeout = 60

        def do_GET(self) -> None:
            request = AuthRequest(self.path, {name.lower(): value for name, value in self.headers.items()})
            service.requests.append(request)
            self.send_response(200)
            for name, value in service.response_headers(request):
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: ``requests`` holds all requests."""

    return Handler


@contextlib.contextmanager
def auth_service(
    passwords: dict[str, str],
    *,
    port: int = 0,
    protocol: str = "HTTP/1.1",
    kind: type[AuthService] = AuthService,
) -> Iterator[AuthService]:
    """Serve on a port of 127.0.0.1, in threads; with ``HTTP/1.0`` it closes after each response."""
    service = kind(passwords)
    with _Server(("127.0.0.1", port), _handler(service, protocol)) as server:
        service.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
            for kept in list(server.open):
                with contextlib.suppress(OSError):
                    kept.shutdown(socket.SHUT_RDWR)

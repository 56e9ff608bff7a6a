# SPDX-License-Identifier: Apache-2.0
"""An OAuth service: issues tokens (RFC 6749), and introspects them for a mail server (RFC 7662)."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs


@dataclass
class OAuthService:
    """The running service.

    Attributes:
        user: The user of all tokens.
        secret: The client's secret.
        padding: Bytes that are appended to new tokens.
        valid: Tokens that are valid.
        requests: Number of requests for tokens.
    """

    user: str
    secret: str
    padding: int = 0
    valid: set[str] = field(default_factory=set)
    requests: int = 0
    port: int = 0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def issue(self, fields: dict[str, list[str]]) -> tuple[int, dict[str, object]]:
        """Issue a token."""
        self.requests += 1
        if fields.get("client_secret") != [self.secret] or fields["grant_type"] != ["client_credentials"]:
            return 401, {"error": "invalid_client"}
        token = f"token-{next(self.numbers)}-" + "x" * self.padding
        self.valid.add(token)
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": 3600}

    def introspect(self, fields: dict[str, list[str]]) -> tuple[int, dict[str, object]]:
        """Return whether a token is valid, and its user."""
        if fields.get("token", [""])[0] not in self.valid:
            return 200, {"active": False}
        return 200, {"active": True, "username": self.user}


@contextlib.contextmanager
def oauth_service(user: str, secret: str) -> Iterator[OAuthService]:
    """Run an OAuth service, in threads."""
    service = OAuthService(user, secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            handle = service.issue if self.path == "/token" else service.introspect
            status, answer = handle(parse_qs(body))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

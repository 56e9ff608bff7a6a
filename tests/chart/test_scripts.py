# SPDX-License-Identifier: Apache-2.0
"""The chart's scripts with an API server whose certificates lack extensions of RFC 5280."""

from __future__ import annotations

import contextlib
import runpy
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.helm import CHART
from support.needs import Needs
from support.private_authority import openssl_authority, verify_strictly_by_default


class Server(ThreadingHTTPServer):
    """Counts its requests."""

    requests = 0


class Handler(BaseHTTPRequestHandler):
    """Returns one API group for every request."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests += 1
        body = b'{"groups": [{"name": "mailproxy.dev"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PATCH = do_GET

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def api_server(needs: Needs, tmp_path: Path) -> Iterator[Server]:
    """An API server that responds to every request; the service account's folder is ``tmp_path``."""
    authority = openssl_authority(needs("openssl"), tmp_path)
    authority.file.rename(tmp_path / "ca.crt")
    for name in ("token", "namespace"):
        (tmp_path / name).write_text("x")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["await_crd", "helm_test"])
def test_ca_without_key_usage_is_trusted(
    name: str, api_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCOUNT_DIR", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api_server.server_port))
    monkeypatch.setenv("SAMPLE_NAMESPACE", "mail")
    verify_strictly_by_default(monkeypatch)
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(CHART / f"files/{name}.py"), run_name="__main__")
    assert api_server.requests == 1

# SPDX-License-Identifier: Apache-2.0
"""The kubelet's HTTPS server, as far as ``kubectl logs`` needs it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final
from urllib.parse import parse_qs, urlsplit

from support.process_node.network import NODE_ADDRESS

PORT: Final = 10250
FindLog = Callable[[str, str], Path | None]
"""Finds the file with the output of a container: of a pod, by namespace and name."""


def serve_logs(find_log: FindLog, certificate: Path, key: Path) -> None:
    """Serve ``/containerLogs/NAMESPACE/POD/CONTAINER`` in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            words = parts.path.strip("/").split("/")
            path = find_log(f"{words[1]}/{words[2]}", words[3]) if len(words) == 4 else None
            text = path.read_bytes() if path is not None and path.is_file() else b""
            for tail in parse_qs(parts.query).get("tailLines", []):
                text = b"".join(text.splitlines(keepends=True)[-int(tail) :])
            self.send_response(404 if path is None else 200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer((NODE_ADDRESS, PORT), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()

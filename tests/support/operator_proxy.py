# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the proxy's process in tests of its parent process: an admin endpoint, and no mail.

``python operator_proxy.py run -f FILE --admin HOST:PORT`` responds to every GET
request with a configuration hash until SIGTERM; with ``--real-hash``, the hash is that of the proxy.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


def main() -> int:
    file, admin = Path(sys.argv[3]), sys.argv[5]
    host, _, port = admin.rpartition(":")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            digest = (
                hash_of(file) if "--real-hash" in sys.argv else hashlib.sha256(file.read_bytes()).hexdigest()
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"hash": digest, "last_error": None}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, int(port)), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM})
    sys.stdout.write("drained\n")
    return 0


def hash_of(file: Path) -> str:
    """Compute the hash that the proxy would report."""
    from mailproxy_config.decode import parse_json
    from mailproxy_config.rendered import config_hash, parse_rendered

    return config_hash(parse_rendered(parse_json(file.read_text()))[0])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Sends every client to one mail server, which checks the password that the proxy passes on to it."""

import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST, _, MAIL_PORT = os.environ["MAIL_SERVER"].rpartition(":")


class AuthHandler(BaseHTTPRequestHandler):
    """Answers the requests of auth_http."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Allow the login."""
        self.send_response(200)
        self.send_header("Auth-Status", "OK")
        self.send_header("Auth-Server", socket.gethostbyname(HOST))
        self.send_header("Auth-Port", MAIL_PORT)
        self.send_header("Content-Length", "0")
        self.end_headers()


# The first process of a container ignores this signal unless it asks for it.
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
ThreadingHTTPServer(("", int(os.environ.get("PORT", "9000"))), AuthHandler).serve_forever()

# SPDX-License-Identifier: Apache-2.0
"""The mail clients of the end-to-end tests: they run in a pod and are driven by HTTP requests.

The standard library is enough.  A request is ``POST /ACTION`` with a JSON object, and
so is the response; a failure has the key ``error``.  Sessions stay open between requests.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import signal
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8000
TIMEOUT = 20.0

sessions: dict[str, Session] = {}
loops: dict[str, LoginLoop] = {}
numbers = itertools.count(1)


class MailError(Exception):
    """A reply that is no success, or a closed connection."""


class Session:
    """One connection to the proxy.

    Args:
        request: ``protocol``, ``host``, ``port``, ``tls`` (``none``, ``starttls`` or ``tls``).
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.protocol = request["protocol"]
        self.fingerprint = ""
        self._tags = itertools.count(1)
        self._buffer = b""
        self._socket = socket.create_connection((request["host"], request["port"]), timeout=TIMEOUT)
        self.address = self._socket.getsockname()[0]
        try:
            if request["tls"] == "tls":
                self._handshake()
            self.greeting = self.read_reply("*")
            if request["tls"] == "starttls":
                self._starttls()
        except BaseException:
            self.close()
            raise

    def _handshake(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # tests compare the certificate
        secured = context.wrap_socket(self._socket)
        self._socket = secured
        self.fingerprint = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()

    def _starttls(self) -> None:
        if self.protocol == "smtp":
            self.command("EHLO client.test")
        self.command({"imap": "STARTTLS", "pop3": "STLS", "smtp": "STARTTLS"}[self.protocol])
        self._handshake()

    def login(self, user: str, password: str) -> None:
        """Log in."""
        if self.protocol == "imap":
            self.command(f'LOGIN "{user}" "{password}"')
        elif self.protocol == "pop3":
            self.command(f"USER {user}")
            self.command(f"PASS {password}")
        else:
            self.command("EHLO client.test")
            plain = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
            self.command(f"AUTH PLAIN {plain}")

    def send(self, data: str) -> None:
        """Send text as it is."""
        self._socket.sendall(data.encode("latin-1"))

    def command(self, line: str) -> str:
        """Send a command, and return the whole reply, which must be a success."""
        tag = f"t{next(self._tags)}"
        self.send(f"{tag} {line}\r\n" if self.protocol == "imap" else f"{line}\r\n")
        return self.read_reply(tag)

    def read_reply(self, tag: str) -> str:
        """Read one reply: of IMAP until the line with the tag, of SMTP until its last line."""
        lines = []
        while True:
            line = self._read_line()
            lines.append(line)
            if self._is_last(line, tag):
                break
        reply = "\n".join(lines)
        last = lines[-1].removeprefix(tag).strip()
        if not last.startswith(("OK", "+OK", "PREAUTH", "2", "3")):
            raise MailError(f"refused: {reply}")
        return reply

    def _is_last(self, line: str, tag: str) -> bool:
        if self.protocol == "imap":
            return line.startswith(f"{tag} ")
        return self.protocol == "pop3" or line[3:4] != "-"

    def _read_line(self) -> str:
        while b"\r\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                raise MailError(f"the connection was closed; read so far: {self._buffer!r}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line.decode("latin-1")

    def read_to_end(self, seconds: float) -> str:
        """Read until the other side closes the connection."""
        self._socket.settimeout(seconds)
        try:
            while data := self._socket.recv(65536):
                self._buffer += data
        except TimeoutError:
            raise MailError(f"still open after {seconds} s; read so far: {self._buffer!r}") from None
        return self._buffer.decode("latin-1")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class LoginLoop:
    """Logs in again and again with each of several requests, until it is stopped."""

    def __init__(self, requests: list[dict[str, Any]]) -> None:
        self._requests = requests
        self._stopped = threading.Event()
        self.logins = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in requests]
        for thread in self._threads:
            thread.start()

    def _run(self, request: dict[str, Any]) -> None:
        while not self._stopped.wait(0.2):
            began = time.strftime("%H:%M:%S")
            try:
                session = Session(request)
                session.login(request["user"], request["password"])
                session.close()
                self.logins += 1
            except (OSError, MailError) as error:
                self.failures.append(f"{began} {request['protocol']}: {type(error).__name__}: {error}")

    def stop(self) -> dict[str, Any]:
        """Stop, and return the number of logins and the failures."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        return {"logins": self.logins, "failures": self.failures}


def act(action: str, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request wants."""
    if action == "loop":
        name = f"loop-{next(numbers)}"
        loops[name] = LoginLoop(request["requests"])
        return {"id": name}
    if action == "stop":
        return loops.pop(request["id"]).stop()
    if action == "connect":
        with socket.create_connection((request["host"], request["port"]), timeout=request["seconds"]):
            return {}
    if action == "open":
        session = Session(request)
        if "user" in request:
            session.login(request["user"], request["password"])
        name = f"session-{next(numbers)}"
        sessions[name] = session
        return {
            "id": name,
            "address": session.address,
            "greeting": session.greeting,
            "fingerprint": session.fingerprint,
        }
    return act_in_session(action, sessions[request["id"]], request)


def act_in_session(action: str, session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request wants of an open session."""
    match action:
        case "command":
            return {"reply": session.command(request["line"])}
        case "send":
            session.send(request["data"])
        case "read_to_end":
            return {"data": session.read_to_end(request["seconds"])}
        case "close":
            session.close()
    return {}


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of a test."""

    def do_GET(self) -> None:
        """Answer the readiness probe."""
        self._answer({})

    def do_POST(self) -> None:
        """Do an action."""
        request = json.loads(self._body())
        try:
            self._answer(act(self.path.strip("/"), request))
        except (OSError, MailError, KeyError) as error:
            self._answer({"error": f"{type(error).__name__}: {error}"})

    def _body(self) -> bytes:
        """Read the body; the API server sends it in chunks (RFC 9112, section 7.1)."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, found: dict[str, Any]) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()

# SPDX-License-Identifier: Apache-2.0
"""The requests to a policy server, compared with those of a real Dovecot for the same logins."""

from __future__ import annotations

import http.server
import imaplib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers.auth_service import AuthRule, AuthService
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports, eventually
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop

PASSWORDS: Final = {"alice": "wonder land%21", "carol": "only at the proxy"}
"""Passwords that the authentication service accepts; Dovecot has another one for carol."""
NONCE: Final = "the nonce of both"
KEY: Final = "the key of both"
NEW: Final = "fail_type"
"""Dovecot sends it since 2.4."""


@dataclass
class PolicyServer:
    """Allows each login, and records requests: who sent them, the command, the header and the object."""

    url: str = ""
    requests: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)

    def found(self, program: str, command: str, login: str) -> list[dict[str, Any]]:
        """Return the objects that a program has sent about a user."""
        return [
            sent
            for agent, path, key, sent in list(self.requests)
            if agent.startswith(program)
            and path == f"/?command={command}"
            and key == KEY
            and sent["login"] == login
        ]


@pytest.fixture(scope="module")
def policy() -> Iterator[PolicyServer]:
    server = PolicyServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            agent, key = self.headers["User-Agent"], self.headers["X-API-Key"]
            server.requests.append((agent, self.path, key, sent))
            body = b'{"status":0,"msg":""}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        server.url = f"http://127.0.0.1:{listener.server_port}/"
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield server
        listener.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def dovecot(
    needs: Needs, new_folder: Callable[[str], Path], ports: Ports, policy: PolicyServer
) -> Iterator[Dovecot]:
    extra = f"""
auth_policy_server_url = {policy.url}
auth_policy_server_api_header = X-API-Key:{KEY}
auth_policy_hash_nonce = {NONCE}
"""
    accepted = PASSWORDS | {"carol": "only at the server"}
    running = dovecots.start(needs("dovecot"), new_folder("policy"), ports, accepted, 1, extra=extra)
    yield running
    running.running.stop()


@pytest.fixture
def proxy(
    new_proxy: Callable[..., Proxy],
    new_folder: Callable[[str], Path],
    ports: Ports,
    service: AuthService,
    dovecot: Dovecot,
    policy: PolicyServer,
) -> tuple[Proxy, int]:
    """A proxy with the policy server, and the port of its listener."""
    files, port = new_folder("secrets"), ports.take()
    (files / "nonce").write_text(NONCE + "\n")
    (files / "key").write_text(KEY + "\n")
    service.rules["/policy"] = AuthRule(dovecot.ports["imap"])
    service.passwords.update(PASSWORDS)
    mail = {
        "authHttp": service.url("/policy"),
        "authPolicyServer": {
            "url": policy.url,
            "header": {"name": "X-API-Key", "valueFrom": {"file": str(files / "key")}},
            "nonceFrom": {"file": str(files / "nonce")},
        },
    }
    listen = [{"address": "127.0.0.1", "port": port}]
    return new_proxy(manifest([{"name": "imap", "protocol": "imap", "listen": listen}], mail)), port


@pytest.mark.parametrize(
    ("user", "accepted"), [("alice", True), ("carol", False)], ids=["accepted", "refused by Dovecot"]
)
def test_requests_are_those_of_dovecot(
    proxy: tuple[Proxy, int], policy: PolicyServer, user: str, accepted: bool
) -> None:
    running, port = proxy
    client = imaplib.IMAP4("127.0.0.1", port)
    if accepted:
        client.login(user, PASSWORDS[user])
    else:
        with pytest.raises(imaplib.IMAP4.error):
            client.login(user, PASSWORDS[user])
    client.shutdown()
    eventually(lambda: policy.found("MailProxy", "report", user), "report of the proxy")
    eventually(lambda: policy.found("dovecot", "report", user), "report of Dovecot")
    own, theirs = (policy.found(program, "allow", user)[0] for program in ("MailProxy", "dovecot"))
    assert own.keys() - theirs.keys() <= {NEW}
    assert theirs.keys() <= own.keys()
    same = ("device_id", "login", "protocol", "pwhash", "remote", "tls")
    assert {name: str(own[name]).lower() for name in same} == {
        name: str(theirs[name]).lower() for name in same
    }
    own, theirs = (policy.found(program, "report", user)[0] for program in ("MailProxy", "dovecot"))
    assert theirs.keys() <= own.keys()
    assert own["success"] is theirs["success"] is accepted
    assert own["policy_reject"] is theirs["policy_reject"] is False
    assert own["pwhash"] == theirs["pwhash"]
    session = running.event("session", user=user)
    assert session["session"] == own["session_id"]
    assert session["password_failures"] == (not accepted)

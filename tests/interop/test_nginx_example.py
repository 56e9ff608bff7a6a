# SPDX-License-Identifier: Apache-2.0
"""The documented example of nginx's mail module, on unprivileged ports: the greetings equal nginx's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule, AuthService
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports
from support.servers.proxy import ROOT, Proxy

pytestmark = pytest.mark.interop

EXAMPLE: Final = ROOT / "deploy/examples/nginx-example.yaml"
CONF: Final = ROOT / "tests/config/data/nginx-example.conf"

SMTP_CAPABILITIES: Final = [
    b"250-mail.example.com",
    b"250-SIZE 10485760",
    b"250-ENHANCEDSTATUSCODES",
    b"250-8BITMIME",
    b"250-DSN",
    b"250 AUTH PLAIN LOGIN CRAM-MD5",
]
POP3_CAPABILITIES: Final = [
    b"+OK Capability list follows",
    b"LAST",
    b"TOP",
    b"USER",
    b"PIPELINING",
    b"UIDL",
    b"SASL PLAIN LOGIN CRAM-MD5",
    b".",
]
IMAP_CAPABILITIES: Final = [
    b"* CAPABILITY IMAP4rev1 UIDPLUS IDLE LITERAL+ QUOTA AUTH=PLAIN",
    b"a OK completed",
]
SMTP_GREETING: Final = rb"220 mail\.example\.com ESMTP ready"


@dataclass
class Example:
    """The running example; ``ports`` maps each well-known port to the port that replaces it."""

    proxy: Proxy
    ports: dict[int, int]


@pytest.fixture(scope="module", params=["manifest", "nginx.conf"])
def example(
    request: pytest.FixtureRequest, new_folder: Callable[[str], Path], ports: Ports, service: AuthService
) -> Iterator[Example]:
    """The shipped example and nginx's own configuration, changed only where this machine requires it."""
    new_ports = {standard_port: ports.take() for standard_port in (25, 110, 143, 587)}
    body = (
        manifest_on_free_ports(new_ports, service)
        if request.param == "manifest"
        else conf_on_free_ports(new_ports, service)
    )
    proxy = proxies.start(new_folder("example"), body)
    yield Example(proxy, new_ports)
    proxy.stop()


def manifest_on_free_ports(new_ports: dict[int, int], service: AuthService) -> dict[str, Any]:
    """Return the manifest with loopback ports, the tests' authentication service, and no drain delay."""
    body: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    spec = body["spec"]
    assert spec["mail"]["authHttp"] == "localhost:9000/cgi-bin/nginxauth.cgi"
    spec["mail"]["authHttp"] = f"localhost:{service.port}/cgi-bin/nginxauth.cgi"
    spec["mail"]["proxySmtpGuard"] = False  # clients have the proxy's address, which may send XCLIENT
    spec["drain"] = {"delay": "0s"}
    for server in spec["servers"]:
        for listen in server["listen"]:
            listen.update(address="127.0.0.1", port=new_ports[listen["port"]])
    return body


def conf_on_free_ports(new_ports: dict[int, int], service: AuthService) -> str:
    """Return nginx's configuration with the same changes."""
    text = CONF.read_text().replace("localhost:9000", f"localhost:{service.port}")
    text = text.replace("mail {", "mail { proxy_smtp_guard off;", 1)
    return re.sub(
        r"(listen\s+)(\d+);", lambda match: f"{match[1]}127.0.0.1:{new_ports[int(match[2])]};", text
    )


@pytest.mark.parametrize(
    ("port", "greeting", "command", "capabilities"),
    [
        (25, SMTP_GREETING, b"EHLO x", SMTP_CAPABILITIES),
        (587, SMTP_GREETING, b"EHLO x", SMTP_CAPABILITIES),
        (110, rb"\+OK POP3 ready <\d+\.\d+@mail\.example\.com>", b"CAPA", POP3_CAPABILITIES),
        (143, rb"\* OK IMAP4 ready", b"a CAPABILITY", IMAP_CAPABILITIES),
    ],
)
def test_greeting_and_capabilities_equal_those_of_nginx(
    example: Example, port: int, greeting: bytes, command: bytes, capabilities: list[bytes]
) -> None:
    with RawClient(example.ports[port]) as raw:
        assert re.fullmatch(greeting, raw.read_line())
        raw.send(command + b"\r\n")
        assert [raw.read_line() for _ in capabilities] == capabilities


@pytest.mark.parametrize(
    ("port", "protocol", "commands", "reply"),
    [
        (143, "imap", b"a LOGIN carol christmas\r\n", b"a OK"),
        (110, "pop3", b"USER carol\r\nPASS christmas\r\n", b"+OK Logged in."),
        (587, "submission", b"EHLO x\r\nAUTH PLAIN AGNhcm9sAGNocmlzdG1hcw==\r\n", b"235 2.0.0 OK"),
    ],
)
def test_login_reaches_the_mail_server(
    example: Example,
    dovecot: Dovecot,
    service: AuthService,
    port: int,
    protocol: str,
    commands: bytes,
    reply: bytes,
) -> None:
    service.rules["/cgi-bin/nginxauth.cgi"] = AuthRule(dovecot.ports[protocol])
    with RawClient(example.ports[port]) as raw:
        raw.send(commands)
        assert raw.read_until(reply)
    auth_request = service.latest_request("/cgi-bin/nginxauth.cgi")
    assert (auth_request["host"], auth_request.user) == ("localhost", "carol")

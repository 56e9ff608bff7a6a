# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/auth-http.md, played through the real proxy and compared byte for byte.

What differs from run to run is replaced by the value of the page: the time in a challenge, the client's
address, the ports, serial number and fingerprint of a certificate that was made for the test.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import pytest

from mailproxy.auth_http.response import MAX_CODE, MAX_TEXT
from mailproxy.auth_http.response_head import MAX_HEAD
from mailproxy.enums import AuthErrorReason
from mailproxy_config.model import Protocol
from support.servers import proxy as proxies
from support.servers.certificates import Certificates, certificates
from support.servers.programs import Ports
from support.servers.proxy import ROOT, Proxy, manifest
from support.servers.tiny_mail import TinyMail, tiny_mail

PAGE: Final = (ROOT / "docs/auth-http.md").read_text()
CHALLENGE: Final = b"<1304717.1795355079@mail.example.com>"
_CHALLENGE: Final = re.compile(rb"<\d+\.\d+@mail\.example\.com>")
_SERIAL: Final = "Auth-SSL-Serial: 7A1B0C52"
_FINGERPRINT: Final = "Auth-SSL-Fingerprint: 2c3e1d5f0b6a798897a6b5c4d3e2f10123456789"
PROTOCOLS: Final = ("imap", "pop3", "smtp")

Step = tuple[str, str]


@dataclass(frozen=True)
class Example:
    """Steps in order: ``C`` and ``S`` lines, ``TLS`` handshakes, requests and responses."""

    name: str
    steps: tuple[Step, ...]

    @property
    def server(self) -> str:
        """The server block that it is played against; its name begins with it."""
        return self.name.partition(" ")[0]


def _examples(page: str) -> Iterator[Example]:
    for name, text in re.findall(r"(?ms)^<!-- example: (.+?) -->$(.+?)(?=^<!-- end -->)", page):
        steps: list[Step] = []
        for language, block in re.findall(r"(?ms)^```(text|http)\n(.*?)^```", text):
            if language == "http":
                kind = "response" if block.startswith("HTTP/") else "request"
                steps.append((kind, block))
            else:
                for line in block.splitlines():
                    side, _, content = line.partition(": ")
                    steps.append((side.rstrip(":"), content))
        yield Example(name, tuple(steps))


EXAMPLES: Final = list(_examples(PAGE))


class Requests:
    """The authentication service: the test reads each request, and sends each response."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.port: int = self._listener.getsockname()[1]
        self._connection: socket.socket | None = None

    def receive(self) -> bytes:
        """Read a request up to its blank line."""
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(20)
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            piece = self._connection.recv(65536)
            assert piece, data
            data += piece
        return data

    def respond(self, data: bytes) -> None:
        """Send a response, and close the connection."""
        assert self._connection is not None
        self._connection.sendall(data)
        self._connection.close()

    def close(self) -> None:
        self._listener.close()


class Client:
    """A mail client that sends the lines of an example."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self._socket.makefile("rb")

    def handshake(self) -> None:
        self._file.close()
        self._socket = self._tls.wrap_socket(self._socket)
        self._file = self._socket.makefile("rb")

    def send(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\r\n")

    def receive(self) -> str:
        return _normalize(self._file.readline()).decode().removesuffix("\r\n")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _normalize(line: bytes) -> bytes:
    """Replace the challenge, which may be encoded, by that of the page."""
    prompt, space, encoded = line.rstrip(b"\r\n").partition(b" ")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        decoded = b""
    if space and _CHALLENGE.fullmatch(decoded):
        return prompt + b" " + base64.b64encode(CHALLENGE) + b"\r\n"
    return _CHALLENGE.sub(CHALLENGE, line)


def _normalize_request(data: bytes) -> str:
    text = _CHALLENGE.sub(CHALLENGE, data).decode()
    assert "\n" not in text.replace("\r\n", "")
    text = text.replace("\r\nClient-IP: 127.0.0.1\r\n", "\r\nClient-IP: 192.0.2.42\r\n").replace("\r\n", "\n")
    text = re.sub(r"Auth-SSL-Serial: [0-9A-F]+$", _SERIAL, text, flags=re.MULTILINE)
    return re.sub(r"Auth-SSL-Fingerprint: [0-9a-f]{40}$", _FINGERPRINT, text, flags=re.MULTILINE)


@dataclass
class World:
    """Everything that an example needs."""

    proxy: Proxy
    ports: dict[str, int]
    requests: Requests
    mail: dict[str, TinyMail]
    tls: Certificates

    def client(self, example: Example) -> Client:
        return Client(self.ports[example.server], self.tls.client(self.tls.alice))

    def response(self, text: str, example: Example) -> bytes:
        """Return the bytes of a response, with an address of this machine in place of the page's."""
        protocol = next(one for one in PROTOCOLS if example.server.startswith(one))
        text = re.sub(r"^Auth-Server: 198\.51\.100\.\d+$", "Auth-Server: 127.0.0.1", text, flags=re.MULTILINE)
        text = re.sub(r"^Auth-Port: \d+$", f"Auth-Port: {self.mail[protocol].port}", text, flags=re.MULTILINE)
        return text.replace("\n", "\r\n").encode()


def _servers(ports: dict[str, int], tls: Certificates) -> list[dict[str, Any]]:
    def server(name: str, protocol: str, **directives: Any) -> dict[str, Any]:
        listen = {"address": "127.0.0.1", "port": ports[name], **directives.pop("listen", {})}
        return {"name": name, "protocol": protocol, "listen": [listen], **directives}

    methods = ["plain", "login", "cram-md5"]
    with_certificate: dict[str, Any] = {
        "starttls": "Enabled",
        "sslVerifyClient": "Optional",
        "sslClientCertificate": {"file": tls.authority},
    }
    return [
        server("imap", "imap", imapAuth=methods, starttls="Enabled"),
        server("pop3", "pop3", pop3Auth=["plain", "apop", "cram-md5"], starttls="Enabled"),
        server("smtp", "smtp", smtpAuth=methods, starttls="Enabled"),
        server("imap-external", "imap", imapAuth=["external"], **with_certificate),
        server("imap-oauth", "imap", imapAuth=["xoauth2"]),
        server(
            "smtp-mx", "smtp", smtpAuth=["none"], listen={"proxyProtocol": True}, setRealIpFrom=["127.0.0.1"]
        ),
        server(
            "imap-nginx",
            "imap",
            authHttpKeepalive=False,
            authHttpHeader=[{"name": "X-Auth-Key", "value": "key-of-the-proxy"}],
        ),
    ]


NAMES: Final = ("imap", "pop3", "smtp", "imap-external", "imap-oauth", "smtp-mx", "imap-nginx")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tls = certificates(tmp_path_factory.mktemp("tls"))
    ports = Ports().take_all(*NAMES)
    requests = Requests()
    mail = {
        "serverName": "mail.example.com",
        "authHttp": f"http://localhost:{requests.port}/auth",
        "sslCertificate": [{"certificateFile": tls.proxy.certificate, "keyFile": tls.proxy.key}],
    }
    with ExitStack() as stack:
        stack.callback(requests.close)
        servers = {protocol: stack.enter_context(tiny_mail(protocol)) for protocol in PROTOCOLS}
        body = manifest(_servers(ports, tls), mail, workers=1)
        proxy = proxies.start(tmp_path_factory.mktemp("proxy"), body)
        stack.callback(proxy.stop)
        yield World(proxy, ports, requests, servers, tls)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_equal_requests_of_proxy(world: World, example: Example) -> None:
    client = world.client(example)
    try:
        for side, text in example.steps:
            match side:
                case "C":
                    client.send(text)
                case "S":
                    assert client.receive() == text
                case "TLS":
                    client.handshake()
                case "request":
                    assert _normalize_request(world.requests.receive()) == text
                case "response":
                    world.requests.respond(world.response(text, example))
                case _:
                    pytest.fail(f"a line that begins with {side!r}")
    finally:
        client.close()


def test_page_has_every_protocol_with_every_method() -> None:
    shown = set()
    for example in EXAMPLES:
        for kind, text in example.steps:
            if kind == "request":
                [method] = re.findall(r"^Auth-Method: (.+)$", text, re.MULTILINE)
                [protocol] = re.findall(r"^Auth-Protocol: (.+)$", text, re.MULTILINE)
                shown.add((protocol, method))
    assert shown >= {
        ("imap", "plain"),
        ("imap", "cram-md5"),
        ("imap", "external"),
        ("imap", "xoauth2"),
        ("pop3", "plain"),
        ("pop3", "apop"),
        ("smtp", "plain"),
        ("smtp", "cram-md5"),
        ("smtp", "none"),
    }


def test_digests_of_page_are_valid() -> None:
    """The values of the page are test vectors for authentication services."""
    cram = hmac.new(b"secret", CHALLENGE, "md5").hexdigest()
    apop = hashlib.md5(CHALLENGE + b"secret").hexdigest()
    found = re.findall(r"^Auth-Method: (\S+)\nAuth-User: \S+\nAuth-Pass: ([0-9a-f]{32})$", PAGE, re.MULTILINE)
    assert set(found) == {("cram-md5", cram), ("apop", apop)}


def test_header_order_equals_table_of_page() -> None:
    [table] = re.findall(r"(?ms)^## The request$.+?(^\| # .+?)\n\n", PAGE)
    order = re.findall(r"^\| \d+ \| `([^`:]+)", table, re.MULTILINE)
    assert len(order) == 25
    for example in EXAMPLES:
        for kind, text in example.steps:
            if kind == "request":
                names = [line.partition(":")[0] for line in text.splitlines()[1:-1]]
                own = [name for name in names if name in order]
                assert own == sorted(own, key=order.index)
                assert set(names) - set(order) <= {"X-Auth-Key"}


def test_numbers_and_reasons_of_page_equal_program() -> None:
    imap, pop3, smtp = (MAX_TEXT[protocol] for protocol in (Protocol.IMAP, Protocol.POP3, Protocol.SMTP))
    assert f"{imap} (IMAP), {pop3} (POP3), {smtp} (SMTP)" in PAGE
    assert f"{MAX_HEAD:,} bytes" in PAGE
    assert f"at most {MAX_CODE} bytes" in PAGE
    [table] = re.findall(r"(?ms)^## When there is no usable response$.+?(^\| `reason`.+?)\n\n", PAGE)
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", table, re.MULTILINE)
    assert rows == ["reason", *map(str, AuthErrorReason)]


def test_failed_request_is_logged_and_counted_as_on_page(world: World) -> None:
    example = next(one for one in EXAMPLES if one.name == "imap-nginx error")
    test_examples_equal_requests_of_proxy(world, example)
    assert "502" in world.proxy.event("authorization_failed")["reason"]
    assert world.proxy.value("mailproxy_auth_errors_total", reason="http_5xx") >= 1
    assert "`authorization_failed`" in PAGE
    assert "`mailproxy_auth_errors_total{" in PAGE

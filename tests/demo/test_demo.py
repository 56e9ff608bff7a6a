# SPDX-License-Identifier: Apache-2.0
"""The demo from its command, and how it adapts a manifest to the machine."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_config.manifest import parse_manifest
from mailproxy_demo.adapter import ManifestAdapter, auth_port, create_certificates, self_signed
from mailproxy_demo.auth_http_service import Account
from mailproxy_demo.demo import DEFAULT_MANIFEST, find_endpoints, format_steps
from mailproxy_demo.login_check import Endpoint, LoginCheck, Step, successful_logins
from mailproxy_demo.upstreams import needs_auth_service, wanted_ports
from support.operator_bodies import body, server

ENDPOINTS = {
    "smtp": Endpoint("127.0.0.1", 1025, True),
    "imap": Endpoint("127.0.0.1", 1143, True),
    "pop3": Endpoint("127.0.0.1", 1110, True),
}


def with_service(tmp_path: Path) -> tuple[str, ...]:
    """The demo's manifest with an authentication service in place of the upstreams."""
    manifest = yaml.safe_load(DEFAULT_MANIFEST.read_text())
    del manifest["spec"]["upstreams"], manifest["spec"]["mail"]["authMode"]
    manifest["spec"]["mail"]["authHttp"] = "http://127.0.0.1:1180/auth"
    for one in manifest["spec"]["servers"]:
        del one["routes"]
    file = tmp_path / "edge.yaml"
    file.write_text(yaml.safe_dump(manifest))
    return ("-f", str(file))


@pytest.mark.parametrize(
    ("options", "behind"),
    [
        (lambda _: (), "mail servers,\nwhich check the passwords"),
        (with_service, "an authentication service\nand mail servers"),
    ],
)
async def test_demo_logs_in_with_every_protocol(
    tmp_path: Path, options: Callable[[Path], tuple[str, ...]], behind: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mailproxy_operator", "local", "--demo", "--once", *options(tmp_path),
        env=environment, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert f"behind it {behind}" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("  ok ")] == [
        ["ok", "SMTP"],
        ["ok", "IMAP"],
        ["ok", "POP3"],
        ["ok", "metrics"],
    ]


def test_taken_port_is_replaced_and_reported_once() -> None:
    reported: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = [{"address": "127.0.0.1", "port": port}]
        resource = body(servers=[{"name": "imap", "protocol": "imap", "listen": listen, "authHttp": "x"}])
        adapt = ManifestAdapter("http://127.0.0.1:7/auth", {}, reported.append)
        first, second = adapt(resource), adapt(resource)
    assert first == second
    chosen = first["spec"]["servers"][0]["listen"][0]["port"]
    assert chosen != port
    assert reported == [f"port {port} is taken; using {chosen} instead"]
    assert first["spec"]["mail"]["authHttp"] == "http://127.0.0.1:7/auth"
    assert "authHttp" not in first["spec"]["servers"][0]
    assert resource["spec"]["servers"][0]["listen"][0]["port"] == port


@pytest.mark.parametrize(
    "spec", [None, "text", {"servers": "none", "mail": 3}, {"servers": [1, {"listen": 2}]}]
)
def test_manifest_with_wrong_types_is_left_unchanged(spec: object) -> None:
    adapted = ManifestAdapter("http://x/", {"imap": 1}, lambda _: None)({"kind": "MailProxy", "spec": spec})
    assert adapted["kind"] == "MailProxy"


def routed(*routes: str) -> dict[str, Any]:
    """A manifest with a server of IMAP and one of POP3, each with a route to its upstream."""
    protocols = ("imap", "pop3")
    return body(
        mail={"authMode": "Upstream"},
        upstreams=[{"name": name, "servers": [{"address": "mail:2143"}]} for name in dict.fromkeys(routes)],
        servers=[
            server(protocol, protocol, 143 + number, routes=[{"domains": ["*"], "upstream": routes[number]}])
            for number, protocol in enumerate(protocols)
        ],
    )


def test_upstreams_become_the_mail_servers_of_their_protocols() -> None:
    adapt = ManifestAdapter("", {"imap": 1001, "pop3": 1002}, lambda _: None)
    found = adapt(routed("a", "b"))["spec"]
    assert [one["servers"] for one in found["upstreams"]] == [
        [{"address": "127.0.0.1:1001"}],
        [{"address": "127.0.0.1:1002"}],
    ]
    assert "authHttp" not in found["mail"]
    both = routed("a", "a")
    assert adapt(both)["spec"]["upstreams"] == both["spec"]["upstreams"]


def test_authentication_service_and_ports_are_those_that_the_manifest_needs() -> None:
    assert not needs_auth_service(routed("a", "b"))
    assert needs_auth_service(body(mail={"authHttp": "http://x/"}))
    assert wanted_ports(routed("a", "b")) == {"imap": 2143, "pop3": 2143}
    assert wanted_ports(body(mail={"authHttp": "http://x/"})) == {}
    assert wanted_ports({"spec": "text"}) == {}


def test_port_of_auth_http_is_used_when_it_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert auth_port(body(mail={"authHttp": f"http://127.0.0.1:{port}/"})) == 0
    assert auth_port(body(mail={"authHttp": f"http://127.0.0.1:{port}/"})) == port
    assert auth_port({}) == 0


def test_certificate_is_created_for_missing_secret_only(tmp_path: Path) -> None:
    mail = {
        "authHttp": "http://x/",
        "starttls": "Enabled",
        "sslCertificate": [{"secretName": "a"}, {"secretName": "b"}],
    }
    (tmp_path / "b").mkdir()
    certificate = create_certificates(body(mail=mail), tmp_path)
    assert (tmp_path / "a" / "tls.crt").read_bytes() == certificate
    assert (tmp_path / "a" / "tls.key").stat().st_mode & 0o077 == 0
    assert list((tmp_path / "b").iterdir()) == []


def test_endpoints_are_listeners_without_implicit_tls() -> None:
    listen = [
        {"port": 1993, "ssl": True},
        {"port": 1144, "proxyProtocol": True},
        {"address": "unix:/tmp/x"},
        {"port": 1143},
        {"address": "[::1]", "port": 1145},
    ]
    mail = {"authHttp": "http://x/", "sslCertificate": [{"secretName": "a"}]}
    resource = body(
        mail=mail,
        servers=[
            {"name": "imap", "protocol": "imap", "listen": listen},
            server("smtp", "smtp", 1025, starttls="Only"),
        ],
    )
    assert parse_manifest(resource)
    assert find_endpoints(resource) == {
        "imap": Endpoint("127.0.0.1", 1143, False),
        "smtp": Endpoint("127.0.0.1", 1025, True),
    }


def test_successful_logins_are_counted_by_protocol() -> None:
    text = (
        'mailproxy_logins_total{method="plain",protocol="imap",result="success"} 2.0\n'
        'mailproxy_logins_total{method="password",protocol="imap",result="success"} 1\n'
        'mailproxy_logins_total{method="plain",protocol="smtp",result="denied"} 4\n'
        'mailproxy_logins_created{method="plain",protocol="pop3",result="success"} 9\n'
    )
    assert successful_logins(text) == {"imap": 3.0}


def test_failed_steps_have_their_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = free.getsockname()[1]
    endpoints = {name: Endpoint("127.0.0.1", nowhere, False) for name in ENDPOINTS}
    check = LoginCheck(Account(), endpoints, self_signed()[0], f"http://127.0.0.1:{nowhere}")
    steps = check.run()
    assert [step.name for step in steps] == ["SMTP", "IMAP", "POP3", "metrics"]
    assert all("refused" in step.error for step in steps)
    assert format_steps(steps).count("FAILED") == 4


def test_format_of_passed_step() -> None:
    assert format_steps([Step("SMTP", "sent", 12.4)]) == "  ok     SMTP     sent (12 ms)"


async def test_certificate_passes_strict_verification(tmp_path: Path) -> None:
    """Python 3.13 verifies with ``VERIFY_X509_STRICT``."""
    certificate, key = self_signed()
    (tmp_path / "both.pem").write_bytes(certificate + key)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "both.pem")
    trusting = ssl.create_default_context(cadata=certificate.decode())
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=serving)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for host in ("localhost", "127.0.0.1"):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname=host)
            writer.close()
            await writer.wait_closed()

# SPDX-License-Identifier: Apache-2.0
"""The shipped sidecar example with Dovecot: its authentication service and settings, other ports."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.servers import proxy as proxies
from support.servers.certificates import Certificates
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports, Running, eventually
from support.servers.proxy import ROOT, Proxy

pytestmark = pytest.mark.interop

EXAMPLE: Final = ROOT / "deploy/examples/sidecar.yaml"
DOCUMENTS: Final[list[dict[str, Any]]] = list(yaml.safe_load_all(EXAMPLE.read_text()))
CLIENT: Final = "127.0.0.77"
CHAINED_PORT: Final = 1143
CHAINED_AUTH_PORT: Final = 9001


@dataclass
class Pod:
    """The containers of one pod, as processes."""

    proxy: Proxy
    ports: dict[int, int]
    socket: Path


@pytest.fixture(scope="module")
def pod(
    new_folder: Callable[[str], Path], ports: Ports, dovecot: Dovecot, tls: Certificates
) -> Iterator[Pod]:
    """The example's proxy and authentication service; Dovecot's listener replaces the server in the pod."""
    folder = new_folder("sidecar")
    new_ports = {
        standard_port: ports.take() for standard_port in (143, 993, 9000, CHAINED_PORT, CHAINED_AUTH_PORT)
    }
    path = folder / "imap.sock"
    program = auth_script(new_ports[9000], dovecot.ports["imap_haproxy"])
    services = [start_auth_service(folder / "auth.py", program, new_ports[9000])]
    try:
        to_socket = auth_script(new_ports[CHAINED_AUTH_PORT], 1).replace(
            '"Auth-Server", "127.0.0.1"', f'"Auth-Server", "unix:{path}"'
        )
        services.append(start_auth_service(folder / "chain.py", to_socket, new_ports[CHAINED_AUTH_PORT]))
        proxy = proxies.start(folder / "proxy", manifest_on_free_ports(new_ports, tls, path))
        yield Pod(proxy, new_ports, path)
        proxy.stop()
    finally:
        for service in services:
            service.stop()


def start_auth_service(file: Path, text: str, port: int) -> Running:
    """Start an authentication service."""
    file.write_text(text)
    running = Running([sys.executable, str(file)], output=file.with_suffix(".log"))
    running.wait_for_ports(port)
    return running


def auth_script(port: int, upstream_rule: int) -> str:
    """Return the example's authentication service, changed to return Dovecot's port."""
    [text] = [
        document["data"]["auth.py"]
        for document in DOCUMENTS
        if document["metadata"]["name"] == "dovecot-auth"
    ]
    assert '"31143"' in text
    assert '("127.0.0.1", 9000)' in text
    return str(text.replace('"31143"', f'"{upstream_rule}"').replace("9000", str(port)))


def manifest_on_free_ports(new_ports: dict[int, int], tls: Certificates, path: Path) -> dict[str, Any]:
    """Return the example's MailProxy on loopback, with certificate files, and a UNIX socket in addition."""
    [body] = [document for document in DOCUMENTS if document["kind"] == "MailProxy"]
    spec = body["spec"]
    spec["mail"]["authHttp"] = spec["mail"]["authHttp"].replace("9000", str(new_ports[9000]))
    spec["mail"]["sslCertificate"] = [{"certificateFile": tls.proxy.certificate, "keyFile": tls.proxy.key}]
    spec["drain"] = {"delay": "0s"}
    [server] = spec["servers"]
    server["protocol"] = "imap"
    server["listen"] = [document for document in server["listen"] if "address" not in document]
    for listen in server["listen"]:
        listen.update(address="127.0.0.1", port=new_ports[listen["port"]])
    inside = {**server, "name": "inside", "starttls": "Disabled"}
    spec["servers"].append({**inside, "listen": [{"address": f"unix:{path}"}]})
    chained = {
        "name": "chained",
        "authHttp": f"http://127.0.0.1:{new_ports[CHAINED_AUTH_PORT]}/auth",
        "proxyProtocol": "Disabled",
        "listen": [{"address": "127.0.0.1", "port": new_ports[CHAINED_PORT]}],
    }
    spec["servers"].append({**inside, **chained})
    return dict(body)


def test_dovecot_logs_the_client_address_of_a_tls_login(
    pod: Pod, dovecot: Dovecot, tls: Certificates
) -> None:
    connection = socket.create_connection(("127.0.0.1", pod.ports[993]), 20, (CLIENT, 0))
    with tls.client().wrap_socket(connection, server_hostname="localhost") as client:
        client.sendall(b"a LOGIN carol christmas\r\nb SELECT INBOX\r\nc LOGOUT\r\n")
        output = client.makefile("rb").read()
    assert b"a OK" in output
    assert b"b OK" in output
    eventually(lambda: dovecot.log_lines("imap-login", "carol", f"rip={CLIENT}"), "the client's address")


def test_login_without_tls_is_rejected(pod: Pod) -> None:
    with RawClient(pod.ports[143]) as raw:
        raw.read_line()
        assert raw.exchange(b"a LOGIN carol christmas").startswith(b"a BAD")
        assert raw.exchange(b"b STARTTLS").startswith(b"b OK")


def test_wrong_password_is_denied(pod: Pod, tls: Certificates) -> None:
    with RawClient(pod.ports[993], tls.client()) as raw:
        raw.read_line()
        assert raw.exchange(b"a LOGIN carol easter").startswith(b"a NO")


def test_application_in_the_pod_logs_in_through_a_unix_socket(pod: Pod) -> None:
    with RawClient(pod.socket) as raw:
        raw.read_line()
        raw.send(b"a LOGIN carol christmas\r\n")
        assert raw.read_until(b"a OK")


def test_upstream_can_be_a_unix_socket(pod: Pod) -> None:
    with RawClient(pod.ports[CHAINED_PORT]) as raw:
        raw.read_line()
        raw.send(b"a LOGIN carol christmas\r\n")
        assert raw.read_until(b"a OK")
        assert raw.exchange(b"b NOOP").startswith(b"b OK")
    session = pod.proxy.event("session", server="chained")
    assert (session["upstream"], session["upstream_port"]) == (f"unix:{pod.socket}", 0)


def test_logins_are_in_the_metrics(pod: Pod) -> None:
    eventually(
        lambda: pod.proxy.value("mailproxy_logins_total", protocol="imap", result="success") >= 2,
        "the logins in the metrics",
    )

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
CHAINED: Final = 1143
CHAINING: Final = 9001


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
    taken = {known: ports.take() for known in (143, 993, 9000, CHAINED, CHAINING)}
    path = folder / "imap.sock"
    said = script(taken[9000], dovecot.ports["imap_haproxy"])
    services = [started(folder / "auth.py", said, taken[9000])]
    try:
        to_socket = script(taken[CHAINING], 1).replace(
            '"Auth-Server", "127.0.0.1"', f'"Auth-Server", "unix:{path}"'
        )
        services.append(started(folder / "chain.py", to_socket, taken[CHAINING]))
        proxy = proxies.start(folder / "proxy", moved(taken, tls, path))
        yield Pod(proxy, taken, path)
        proxy.stop()
    finally:
        for service in services:
            service.stop()


def started(file: Path, text: str, port: int) -> Running:
    """Start an authentication service."""
    file.write_text(text)
    running = Running([sys.executable, str(file)], output=file.with_suffix(".log"))
    running.wait_for_ports(port)
    return running


def script(port: int, backend: int) -> str:
    """Return the example's authentication service, changed to return Dovecot's port."""
    [text] = [one["data"]["auth.py"] for one in DOCUMENTS if one["metadata"]["name"] == "dovecot-auth"]
    assert '"31143"' in text
    assert '("127.0.0.1", 9000)' in text
    return str(text.replace('"31143"', f'"{backend}"').replace("9000", str(port)))


def moved(taken: dict[int, int], tls: Certificates, path: Path) -> dict[str, Any]:
    """Return the example's MailProxy on loopback, with certificate files, and a UNIX socket in addition."""
    [body] = [one for one in DOCUMENTS if one["kind"] == "MailProxy"]
    spec = body["spec"]
    spec["mail"]["authHttp"] = spec["mail"]["authHttp"].replace("9000", str(taken[9000]))
    spec["mail"]["sslCertificate"] = [{"certificateFile": tls.proxy.certificate, "keyFile": tls.proxy.key}]
    spec["drain"] = {"delay": "0s"}
    [server] = spec["servers"]
    server["protocol"] = "imap"
    server["listen"] = [one for one in server["listen"] if "address" not in one]
    for listen in server["listen"]:
        listen.update(address="127.0.0.1", port=taken[listen["port"]])
    inside = {**server, "name": "inside", "starttls": "Disabled"}
    spec["servers"].append({**inside, "listen": [{"address": f"unix:{path}"}]})
    chained = {
        "name": "chained",
        "authHttp": f"http://127.0.0.1:{taken[CHAINING]}/auth",
        "proxyProtocol": "Disabled",
        "listen": [{"address": "127.0.0.1", "port": taken[CHAINED]}],
    }
    spec["servers"].append({**inside, **chained})
    return dict(body)


def test_dovecot_logs_the_client_address_of_a_tls_login(
    pod: Pod, dovecot: Dovecot, tls: Certificates
) -> None:
    connection = socket.create_connection(("127.0.0.1", pod.ports[993]), 20, (CLIENT, 0))
    with tls.client().wrap_socket(connection, server_hostname="localhost") as client:
        client.sendall(b"a LOGIN carol christmas\r\nb SELECT INBOX\r\nc LOGOUT\r\n")
        said = client.makefile("rb").read()
    assert b"a OK" in said
    assert b"b OK" in said
    eventually(lambda: dovecot.log_lines("imap-login", "carol", f"rip={CLIENT}"), "the client's own address")


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
    with RawClient(pod.ports[CHAINED]) as raw:
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

# SPDX-License-Identifier: Apache-2.0
"""Authentication services with other forms of valid HTTP responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import nginx as nginxes
from support.servers.auth_service import AuthRule, AuthService, auth_service
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.nginx import Nginx
from support.servers.programs import Ports
from support.servers.proxy import Proxy, manifest
from support.servers.shared_proxy import ServerPlan

pytestmark = pytest.mark.interop

NewProxy = Callable[..., Proxy]
LOGINS: Final = 20

LOCATIONS: Final = """
add_header Auth-Status OK always;
add_header Auth-Server 127.0.0.1 always;
add_header Auth-Port {port} always;
root {folder};
location = /no-content {{ return 204; }}
location = /text {{ return 200 "a body that nobody reads"; }}
location = /not-found {{ return 404; }}
location = /moved {{ return 302 /elsewhere; }}
location = /broken {{ return 500; }}
location = /chunked.html {{ ssi on; }}
location = /file.html {{ }}
location = /closes {{ keepalive_timeout 0; return 204; }}
location = /closes-with-a-body {{ keepalive_timeout 0; return 200 "a body that nobody reads"; }}
location = /closes-after-three {{ keepalive_requests 3; return 200 "three times"; }}
location = /tires-soon {{ keepalive_timeout 5ms; return 200 "soon"; }}
location = /many-headers {{ add_header Auth-Status OK; add_header Auth-Server 127.0.0.1;
  add_header Auth-Port {port}; add_header X-Trace "{trace}"; return 204; }}
"""
PATHS: Final = (
    "no-content", "text", "not-found", "moved", "broken", "chunked.html", "file.html", "closes",
    "closes-with-a-body", "closes-after-three", "tires-soon", "many-headers",
)  # fmt: skip


def log_in(port: int) -> bytes:
    """Log carol in, and return the last reply."""
    with RawClient(port) as raw:
        raw.read_line()
        raw.send(b"a LOGIN carol christmas\r\n")
        try:
            return raw.read_until(b"a ")[-1]
        except AssertionError:
            return b"broke off"


@pytest.fixture(scope="module")
def web_server(
    needs: Needs, dovecot: Dovecot, new_folder: Callable[[str], Path], ports: Ports
) -> Iterator[Nginx]:
    """nginx as a web server that accepts logins with each form of response that it supports."""
    folder = new_folder("web")
    for name in ("chunked.html", "file.html"):
        (folder / name).write_text("<p>" + "a body that nobody reads " * 1000)
    server = LOCATIONS.format(port=dovecot.ports["imap"], folder=folder, trace="0123456789" * 200)
    running = nginxes.start_http(needs("nginx"), folder, server, ports)
    yield running
    running.running.stop()


def test_any_status_and_body_framing_of_nginx_is_accepted(
    web_server: Nginx, service: AuthService, ports: Ports, new_proxy: NewProxy
) -> None:
    """Logins succeed with any status, any framing of the body, and any way to close the connection."""
    plan = ServerPlan(service, ports)
    for path in PATHS:
        url = f"http://127.0.0.1:{web_server.ports['http']}/{path}"
        plan.add(path.replace(".", "-"), "imap", authHttp=url)
    proxy = new_proxy(manifest(plan.servers, {}))
    replies = {name: [log_in(port)[:4] for _ in range(LOGINS)] for name, port in plan.ports.items()}
    assert replies == {name: [b"a OK"] * LOGINS for name in plan.ports}
    assert proxy.value("mailproxy_auth_errors_total") == 0
    requests = proxy.value("mailproxy_auth_request_duration_seconds_count", outcome="ok")
    assert requests == LOGINS * len(PATHS)


def manifest_for(service: AuthService, dovecot: Dovecot, ports: Ports) -> dict[str, Any]:
    """Return a manifest that uses this authentication service."""
    plan = ServerPlan(service, ports)
    plan.add("own", "imap")
    service.rules["/own"] = AuthRule(dovecot.ports["imap"])
    return manifest(plan.servers, {})


def test_http_1_0_auth_service_is_used(dovecot: Dovecot, ports: Ports, new_proxy: NewProxy) -> None:
    with auth_service(dict(dovecot.passwords), protocol="HTTP/1.0") as service:
        body = manifest_for(service, dovecot, ports)
        proxy = new_proxy(body)
        port = body["spec"]["servers"][0]["listen"][0]["port"]
        assert {log_in(port)[:4] for _ in range(LOGINS)} == {b"a OK"}
    assert log_in(port) == b"broke off"
    assert proxy.value("mailproxy_auth_errors_total", reason="connect") == 1


def test_restart_of_the_auth_service_fails_no_login(
    dovecot: Dovecot, ports: Ports, new_proxy: NewProxy
) -> None:
    """Idle connections from before the restart cannot be used any more; no login fails because of that."""
    service_port = ports.take()
    with auth_service(dict(dovecot.passwords), port=service_port) as service:
        body = manifest_for(service, dovecot, ports)
        proxy = new_proxy(body)
        port = body["spec"]["servers"][0]["listen"][0]["port"]
        assert log_in(port).startswith(b"a OK")
        backends = service.rules
    for _ in range(3):
        with auth_service(dict(dovecot.passwords), port=service_port) as service:
            service.rules = backends
            assert log_in(port).startswith(b"a OK")
    assert proxy.value("mailproxy_auth_errors_total") == 0

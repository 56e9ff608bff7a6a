# SPDX-License-Identifier: Apache-2.0
"""The steps of docs/first-proxy.md and its example, with a real Dovecot."""

from __future__ import annotations

import imaplib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.helm import ROOT
from support.helm_schemas import VERSIONS, pod_security_violations, schema_errors
from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers import proxy as proxies
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports, Running
from support.servers.proxy import Proxy

EXAMPLE: Final[list[dict[str, Any]]] = list(
    yaml.safe_load_all((ROOT / "deploy/examples/first-proxy.yaml").read_text())
)
PAGE: Final = (ROOT / "docs/first-proxy.md").read_text()
USER: Final = ("alice", "wonderland")


def _of_kind(kind: str) -> dict[str, Any]:
    [found] = [one for one in EXAMPLE if one["kind"] == kind]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_example_objects_are_valid_and_restricted(version: str) -> None:
    objects = [one for one in EXAMPLE if one["kind"] != "MailProxy"]
    assert [fault for one in objects for fault in schema_errors(one, version)] == []
    assert pod_security_violations(_of_kind("Deployment")["spec"]["template"]["spec"]) == []


def test_auth_http_is_the_address_of_the_service() -> None:
    service = _of_kind("Service")
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    [port] = service["spec"]["ports"]
    auth_url = _of_kind("MailProxy")["spec"]["mail"]["authHttp"]
    assert auth_url == f"http://{name}.{namespace}.svc:{port['port']}/auth"
    assert service["spec"]["selector"] == _of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]


def test_program_in_manifest_equals_file_of_page() -> None:
    licence, _, text = (ROOT / "deploy/examples/auth.py").read_text().partition("\n")
    assert licence == "# SPDX-License-Identifier: Apache-2.0"
    assert _of_kind("ConfigMap")["data"]["auth.py"] == text


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports()


@pytest.fixture(scope="module")
def dovecot(needs: Needs, ports: Ports) -> Iterator[Dovecot]:
    """Dovecot; its processes run as other users, so its folder is readable by all."""
    path = needs("dovecot")
    folder = Path(tempfile.mkdtemp(prefix="mailproxy-first-"))
    folder.chmod(0o755)
    running = dovecots.start(path, folder, ports, dict([USER]), ports.take())
    yield running
    running.running.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def first(
    dovecot: Dovecot, ports: Ports, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Proxy, int]]:
    """The proxy of the page, and its port, in place of 1143."""
    folder, auth_port, port = tmp_path_factory.mktemp("first"), ports.take(), ports.take()
    script = ROOT / "deploy/examples/auth.py"
    given = {"MAIL_SERVER": f"localhost:{dovecot.ports['imap']}", "PORT": str(auth_port)}
    service = Running([sys.executable, "-u", str(script)], output=folder / "auth.log", env=given)
    try:
        service.wait_for_ports(auth_port)
        [text] = re.findall(r"```yaml\n# mailproxy.yaml\n(.+?)```", PAGE, re.DOTALL)
        body = yaml.safe_load(text.replace(":9000", f":{auth_port}").replace("1143", str(port)))
        proxy = proxies.start(folder / "proxy", body)
        yield proxy, port
        proxy.stop()
    finally:
        service.stop()


@pytest.mark.interop
def test_login_through_the_first_proxy(first: tuple[Proxy, int]) -> None:
    proxy, port = first
    client = imaplib.IMAP4("127.0.0.1", port, timeout=20)
    assert client.login(*USER)[0] == "OK"
    assert client.list()[0] == "OK"
    client.logout()
    assert proxy.event("session", user="alice")["result"] == "success"
    assert proxy.value("mailproxy_logins_total", result="success") == 1


@pytest.mark.interop
def test_wrong_password_is_logged_as_on_the_page(first: tuple[Proxy, int]) -> None:
    proxy, port = first
    client = imaplib.IMAP4("127.0.0.1", port, timeout=20)
    with pytest.raises(imaplib.IMAP4.error):
        client.login("alice", "guessed")
    client.shutdown()
    event = proxy.event("session", user="alice", result="upstream_denied")
    assert f'"result":"{event["result"]}"' in PAGE

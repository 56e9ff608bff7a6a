# SPDX-License-Identifier: Apache-2.0
"""The steps of docs/first-proxy.md and its example, with a real Dovecot."""

from __future__ import annotations

import imaplib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.helm import ROOT
from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers import proxy as proxies
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports
from support.servers.proxy import Proxy

EXAMPLE: Final[list[dict[str, Any]]] = list(
    yaml.safe_load_all((ROOT / "deploy/examples/first-proxy.yaml").read_text())
)
PAGE: Final = (ROOT / "docs/first-proxy.md").read_text()
USER: Final = ("alice", "wonderland")


def test_example_is_one_resource_with_the_routes_of_the_page() -> None:
    [example], body = EXAMPLE, _body()
    assert example["spec"]["upstreams"] == body["spec"]["upstreams"]
    for field in ("authMode", "routes"):
        assert example["spec"]["mail"][field] == body["spec"]["mail"][field]


def _body() -> dict[str, Any]:
    """Return the manifest of the page."""
    [text] = re.findall(r"```yaml\n# mailproxy.yaml\n(.+?)```", PAGE, re.DOTALL)
    body: dict[str, Any] = yaml.safe_load(text)
    return body


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
    port, body = ports.take(), _body()
    body["spec"]["upstreams"][0]["servers"][0]["address"] = f"127.0.0.1:{dovecot.ports['imap']}"
    body["spec"]["servers"][0]["listen"][0]["port"] = port
    proxy = proxies.start(tmp_path_factory.mktemp("first") / "proxy", body)
    yield proxy, port
    proxy.stop()


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

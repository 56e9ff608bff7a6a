# SPDX-License-Identifier: Apache-2.0
"""docs/migrating-from-nginx.md: its commands with its example, beside a real nginx."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
import yaml

from mailproxy_demo.manifest_file import read_resource
from support.guides.blocks import Page
from support.guides.clients import connect, imap_login
from support.guides.front import GuideFronts
from support.needs import MAIL_MODULE, Needs
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule
from support.servers.programs import Running
from support.servers.proxy import ROOT
from support.servers.tiny_mail import tiny_mail

PAGE: Final = Page("migrating-from-nginx.md")
WHERE: Final = "/etc/nginx/nginx.conf"


class Site:
    """A server with the page's nginx.conf, on ports of this machine."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.fronts = GuideFronts(folder, stack, {"alice": "wonderland"})
        mail = stack.enter_context(tiny_mail("imap"))
        self.fronts.service.rules["/auth"] = AuthRule(mail.port)
        self.file = folder / "nginx.conf"
        self.file.write_text(PAGE.block("nginx.conf"))

    def here(self, text: str) -> tuple[str, dict[int, int]]:
        """Return a configuration of the page for this machine, and its ports."""
        ports = {int(port): self.fronts.ports.take() for port in re.findall(r"listen (\d+)", text)}
        text = re.sub(r"listen (\d+)", lambda found: f"listen 127.0.0.1:{ports[int(found[1])]}", text)
        text = text.replace("127.0.0.1:9000", f"127.0.0.1:{self.fronts.service.port}")
        tls = self.fronts.tls.proxy
        text = text.replace("/etc/ssl/mail.crt", f'"{tls.certificate}"').replace(
            "/etc/ssl/mail.key", f'"{tls.key}"'
        )
        return text, ports

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the page."""
        words = [str(self.file) if word == WHERE else word for word in shlex.split(command)]
        if words[0] == "mailproxy":
            words[:1] = [sys.executable, "-m", "mailproxy"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "proxy")}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def site(open_folder: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(open_folder, stack)


def _words(line: str) -> str:
    return line.partition(" > ")[0]


def test_check_accepts_the_example_and_finds_missing_files(site: Site) -> None:
    command = PAGE.block("check").strip()
    done = site.run(command)
    assert done.returncode == 1
    assert "/etc/ssl/mail.crt: there is no such file" in done.stderr
    site.file.write_text(site.here(PAGE.block("nginx.conf"))[0])
    assert site.run(command).returncode == 0


def test_convert_gives_the_result_of_the_page_but_for_the_named_lines(site: Site) -> None:
    done = site.run(_words(PAGE.block("convert").strip()))
    assert done.returncode == 0
    converted, expected = yaml.safe_load(done.stdout), PAGE.object("result")
    assert converted["metadata"] == expected["metadata"]
    changed = {
        name
        for name in expected["spec"]["mail"]
        if expected["spec"]["mail"][name] != converted["spec"]["mail"][name]
    }
    assert changed == {"authHttp", "authHttpHeader", "sslCertificate"}
    assert expected["spec"].keys() - converted["spec"].keys() == {"service"}
    assert converted["spec"]["servers"] == expected["spec"]["servers"]
    for name in ("auth_http", "auth_http_header", "ssl_certificate"):
        assert f'"{name}"' in done.stderr
    assert read_resource(yaml.safe_dump(expected), "page")


def test_ports_beside_nginx_and_the_same_replies(site: Site, needs: Needs) -> None:
    """nginx with the example, and the proxy with the result of sed: both greet and log in alike."""
    path = needs("nginx")
    module = needs(MAIL_MODULE)
    sed, run = PAGE.block("beside").strip().splitlines()
    beside = site.run(_words(sed)).stdout
    assert re.findall(r"listen (\d+)", beside) == ["10143", "10993", "10587"]
    assert shlex.split(run) == ["mailproxy", "run", "beside.conf"]

    text, ports = site.here(PAGE.block("nginx.conf"))
    text = re.sub(r"(?m)^(user|http|worker_processes) .*\n", "", text)
    logs = f"pid {site.folder}/pid; error_log {site.folder}/error.log; daemon off; user root;\n"
    (site.folder / "real.conf").write_text(f"load_module {module};\n{logs}{text}")
    running = Running([path, "-p", str(site.folder), "-c", "real.conf"], output=site.folder / "nginx.out")
    try:
        running.wait_for_ports(ports[143])
        changed, others = site.here(beside)
        proxy = proxies.start(site.folder / "proxy", changed)
        try:
            said = [_capabilities(ports[143]), _capabilities(others[10143])]
            assert said[0] == said[1]
            for port in (ports[143], others[10143]):
                imap_login(port, site.fronts.tls.client(), "alice", "wonderland")
            proxy.event("session", result="success")
        finally:
            proxy.stop()
    finally:
        running.stop()


def _capabilities(port: int) -> list[bytes]:
    with connect(port) as client, client.makefile("rb") as lines:
        client.sendall(b"a1 CAPABILITY\r\na2 LOGOUT\r\n")
        return list(lines)


def test_commands_that_compare_name_both_ports() -> None:
    first, second = PAGE.block("compare").strip().splitlines()
    assert first.replace(":143/", ":10143/") == second


def test_port_in_use_and_unreadable_key_have_the_exit_statuses_of_the_page(site: Site) -> None:
    text, ports = site.here(PAGE.block("nginx.conf"))
    site.file.write_text(text)
    with socket.create_server(("127.0.0.1", ports[143])):
        done = site.run(f"mailproxy run --admin 127.0.0.1:0 {WHERE}")
    assert done.returncode == 3
    assert f"127.0.0.1:{ports[143]}" in done.stderr

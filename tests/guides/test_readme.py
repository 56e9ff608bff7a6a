# SPDX-License-Identifier: Apache-2.0
"""README.md: its manifest is accepted, its commands run as printed, and its pictures show the real output."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import yaml

from mailproxy_demo.demo import headline
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.crd.schema import custom_resource_definition
from mailproxy_operator.render import planned, render
from mailproxy_operator.settings import Platform
from support.servers.certificates import certificates
from support.servers.programs import Ports, eventually
from support.servers.proxy import ROOT

README: Final = (ROOT / "README.md").read_text()
PICTURES: Final = ROOT / "docs/pictures"
[MANIFEST] = re.findall(r"(?ms)^```yaml\n(.+?)^```", README)


def _commands(program: str) -> list[list[str]]:
    lines = re.findall(rf"^({program} .+)$", README, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def _on_this_machine(folder: Path, metrics: int) -> tuple[Path, list[int]]:
    """README's manifest with files instead of the Secret, and free ports; the ports of its listeners."""
    pair = certificates(folder)
    body: dict[str, Any] = yaml.safe_load(MANIFEST)
    files = {"certificateFile": str(pair.proxy.certificate), "keyFile": str(pair.proxy.key)}
    body["spec"]["mail"]["sslCertificate"] = [files]
    ports, taken = [], Ports()
    for server in body["spec"]["servers"]:
        # Without a well-known port, the protocol cannot be derived.
        server["protocol"] = server["name"]
        for listen in server["listen"]:
            listen.update(address="127.0.0.1", port=taken.take())
            ports.append(listen["port"])
    path = folder / "mailproxy.yaml"
    path.write_text(yaml.safe_dump(body))
    assert metrics not in ports
    return path, ports


def test_manifest_is_accepted_and_namespace_and_secret_are_created_before() -> None:
    body = yaml.safe_load(MANIFEST)
    assert render(planned(Resource.read(body), Platform()))
    before = README[: README.index(MANIFEST)]
    assert f"kubectl create namespace {body['metadata']['namespace']}\n" in before
    secret = body["spec"]["mail"]["sslCertificate"][0]["secretName"]
    assert f"kubectl -n {body['metadata']['namespace']} create secret tls {secret} --cert=" in before


def test_commands_without_a_cluster_run_as_printed(tmp_path: Path) -> None:
    admin = Ports().take()
    path, ports = _on_this_machine(tmp_path, admin)
    (tmp_path / "nginx.conf").write_text(
        "mail { auth_http http://127.0.0.1:9000/auth; server { listen 143; protocol imap; } }\n"
    )
    check, run, convert = _commands("mailproxy")
    options: dict[str, Any] = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        "text": True,
    }
    program = [sys.executable, "-m", "mailproxy"]
    done = subprocess.run([*program, *check[1:]], capture_output=True, check=False, **options)
    assert (done.returncode, done.stdout) == (0, f"{path.name}: ok, 3 servers, {len(ports)} listeners\n")
    done = subprocess.run([*program, *convert[1:]], capture_output=True, check=False, **options)
    assert yaml.safe_load(done.stdout)["kind"] == "MailProxy", done.stderr
    running = subprocess.Popen([*program, *run[1:], f"--admin=127.0.0.1:{admin}"], **options)
    try:
        url = f"http://127.0.0.1:{admin}/readyz"
        eventually(lambda: _is_ready(url), "the proxy")
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


def _is_ready(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        return bool(response.status == 200)
    return False


def _text(name: str) -> list[str]:
    tree = ElementTree.parse(PICTURES / name)
    return [one.text or "" for one in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_picture_of_the_demo_shows_the_current_output() -> None:
    """After a change of what the demo prints: ``make pictures``."""
    lines = _text("demo.svg")
    assert lines[0] == "$ make demo"
    first = headline(Path("deploy/examples/demo.yaml")).splitlines()
    assert [line for line in first if line] == lines[1:3]
    text = "\n".join(lines)
    listening = [one["port"] for server in _demo_servers() for one in server["listen"]]
    assert len(listening) == 6
    assert all(f"127.0.0.1:{port}" in text for port in listening)
    assert [line.split()[:2] for line in lines if line.startswith("  ok ")] == [
        ["ok", "SMTP"],
        ["ok", "IMAP"],
        ["ok", "POP3"],
        ["ok", "metrics"],
    ]


def _demo_servers() -> list[dict[str, Any]]:
    manifest = yaml.safe_load((ROOT / "deploy/examples/demo.yaml").read_text())
    servers: list[dict[str, Any]] = manifest["spec"]["servers"]
    return servers


def test_picture_of_kubectl_has_the_columns_of_the_resource() -> None:
    columns = custom_resource_definition(None)["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [str(one["name"]).upper() for one in columns if not one.get("priority")]
    lines = _text("kubectl.svg")
    assert lines[0] == "$ kubectl -n mail get mailp"
    assert lines[1].split() == ["NAME", *shown]
    reasons = {line.split()[-2] for line in lines[2:5]}
    assert reasons == {"Ready", "SecretNotFound", "InvalidSpec"}

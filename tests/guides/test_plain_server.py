# SPDX-License-Identifier: Apache-2.0
"""The page about servers without Kubernetes: its manifest, its unit, and low ports without root."""

from __future__ import annotations

import imaplib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.needs import Needs
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule, auth_service
from support.servers.certificates import Certificates, certificates
from support.servers.programs import Ports, Running, eventually, run_program
from support.servers.proxy import ROOT, Proxy
from support.servers.tiny_mail import tiny_mail

PAGE: Final = (ROOT / "docs/plain-server.md").read_text()
UNIT: Final = (ROOT / "deploy/systemd/mailproxy.service").read_text()
PROGRAM: Final = "/opt/mailproxy/bin/mailproxy"
FILE: Final = "/etc/mailproxy/mailproxy.yaml"
NOBODY: Final = "65532"


def _directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Z]\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


DIRECTIVES: Final = _directives(UNIT)


def _manifest(ports: dict[int, int], tls: Certificates, service: int) -> dict[str, Any]:
    """The page's manifest with ports and files of this test."""
    [text] = re.findall(r"(?ms)^```yaml\n# mailproxy.yaml\n(.+?)^```", PAGE)
    text = text.replace(":9000", f":{service}")
    text = text.replace("/etc/mailproxy/tls/fullchain.pem", tls.proxy.certificate)
    text = text.replace("/etc/mailproxy/tls/privkey.pem", str(tls.proxy.key))
    body: dict[str, Any] = yaml.safe_load(text)
    for server in body["spec"]["servers"]:
        for listen in server["listen"]:
            listen.update(address="127.0.0.1", port=ports[listen["port"]])
    return body


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("tls"))


WELL_KNOWN: Final = (143, 993, 110, 995, 587, 465)


def _run(command: str, file: Path, pid: int) -> subprocess.CompletedProcess[str]:
    """Run a command of the unit with this checkout's program."""
    words = shlex.split(command.replace("$MAINPID", str(pid)).replace(FILE, str(file)))
    if words[0] == PROGRAM:
        words[:1] = [sys.executable, "-m", "mailproxy"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'proxy'}:{ROOT / 'operator'}"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _reload(proxy: Proxy) -> subprocess.CompletedProcess[str]:
    """Run the commands of ``systemctl reload`` in order, up to the first that fails."""
    for command in DIRECTIVES["ExecReload"]:
        done = _run(command, proxy.file, proxy.running.pid)
        if done.returncode:
            break
    return done


def test_manifest_of_page_runs_and_reload_keeps_sessions(tls: Certificates, tmp_path: Path) -> None:
    ports = dict(zip(WELL_KNOWN, (Ports().take() for _ in WELL_KNOWN), strict=True))
    with tiny_mail("imap") as mail, auth_service({"alice": "wonderland"}, port=0) as service:
        service.rules["/auth"] = AuthRule(mail.port)
        body = _manifest(ports, tls, service.port)
        proxy = proxies.start(tmp_path, body)
        try:
            client = imaplib.IMAP4_SSL("127.0.0.1", ports[993], ssl_context=tls.client(), timeout=20)
            assert client.login("alice", "wonderland")[0] == "OK"

            proxy.file.write_text(proxy.file.read_text().replace("starttls: Only", "starttls: Onyl"))
            failed = _reload(proxy)
            assert failed.returncode == 1
            assert "Onyl" in failed.stderr
            eventually(lambda: client.noop()[0] == "OK", "the session")

            before = len(proxy.events("configuration_loaded"))
            proxy.file.write_text(proxy.file.read_text().replace("starttls: Onyl", "starttls: Enabled"))
            assert _reload(proxy).returncode == 0
            eventually(lambda: len(proxy.events("configuration_loaded")) > before, "the new configuration")
            assert client.noop()[0] == "OK"
            client.shutdown()
        finally:
            proxy.stop()


# -- the unit


def test_commands_of_unit_exist() -> None:
    [start] = DIRECTIVES["ExecStart"]
    check, hang_up = DIRECTIVES["ExecReload"]
    assert shlex.split(start)[:3] == [PROGRAM, "run", FILE]
    assert shlex.split(check) == [PROGRAM, "check", FILE]
    assert hang_up == "/bin/kill -HUP $MAINPID"
    assert f"ln -s {PROGRAM} /usr/local/bin/mailproxy" in PAGE


def test_stop_timeout_is_longer_than_drain() -> None:
    [text] = re.findall(r"timeout: (\d+)s}", PAGE)
    assert int(DIRECTIVES["TimeoutStopSec"][0].removesuffix("s")) > int(text)
    assert DIRECTIVES["KillMode"] == ["mixed"]


@pytest.fixture
def verifiable(tmp_path: Path, needs: Needs) -> Path:
    """The unit with a program that exists."""
    needs("systemd-analyze")
    unit = tmp_path / "mailproxy.service"
    unit.write_text(UNIT.replace(PROGRAM, "/bin/true"))
    return unit


def test_systemd_accepts_the_unit(verifiable: Path) -> None:
    said = run_program(["systemd-analyze", "--man=no", "verify", str(verifiable)])
    assert [line for line in said.splitlines() if "mailproxy" in line] == []


def test_systemd_reports_misspelt_directive(verifiable: Path) -> None:
    """The previous test can fail: systemd-analyze reports this error."""
    verifiable.write_text(verifiable.read_text().replace("OOMPolicy=", "OOMPolciy="))
    said = run_program(["systemd-analyze", "--man=no", "verify", str(verifiable)])
    assert "OOMPolciy" in said


def test_service_is_hardened(verifiable: Path) -> None:
    said = run_program(["systemd-analyze", "security", "--offline=true", "--threshold=25", str(verifiable)])
    [exposure] = re.findall(r"Overall exposure level for mailproxy\.service: ([0-9.]+)", said)
    assert float(exposure) < 2.5


# -- ports below 1024 without root


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users may enter."""
    path = Path(tempfile.mkdtemp(prefix="mailproxy-plain-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def _unprivileged(folder: Path, setpriv: str) -> tuple[list[str], dict[str, str]]:
    """Return a command and an environment that run Python as the unit does: a user with one capability."""
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    capability = "-all,+net_bind_service"
    become += [f"--inh-caps={capability}", f"--ambient-caps={capability}", f"--bounding-set={capability}"]
    paths = [str(ROOT / "proxy"), str(ROOT / "operator"), sysconfig.get_path("purelib")]
    environment = {**os.environ, "PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, "/usr/bin/python3"):
        command = [*become, python]
        done = subprocess.run(
            [*command, "-c", "import mailproxy.worker"],
            env=environment, cwd=folder, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        if not done.returncode:
            return command, environment
    pytest.skip("no Python with these packages that another user may run")


def _low_ports(count: int) -> list[int]:
    found = []
    for port in range(700, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found[os.getpid() % 50 :][:count]


def test_one_capability_opens_low_ports_at_start_and_reload(folder: Path, needs: Needs) -> None:
    command, environment = _unprivileged(folder, needs("setpriv", by_root=True))
    first, second = _low_ports(2)
    file = folder / "nginx.conf"

    def write(*ports: int) -> None:
        listen = "".join(f"listen 127.0.0.1:{port};" for port in ports)
        file.write_text(f"mail {{ auth_http 127.0.0.1:1/; server {{ protocol imap; {listen} }} }}\n")
        file.chmod(0o644)

    write(first)
    arguments = ["-m", "mailproxy", "run", str(file), "--admin", "127.0.0.1:0", "--workers", "1"]
    running = Running([*command, *arguments], output=folder / "log", env=environment)
    try:
        running.wait_for_ports(first)
        write(first, second)
        running.wait_for_ports(second)
        with socket.create_connection(("127.0.0.1", second), timeout=20) as client:
            assert client.recv(100) == b"* OK IMAP4 ready\r\n"
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t" in status
        assert re.search(r"^CapEff:\t0+400$", status, re.MULTILINE)  # CAP_NET_BIND_SERVICE is number 10
    finally:
        running.stop()


def test_error_without_capability_names_it(folder: Path, needs: Needs) -> None:
    command, environment = _unprivileged(folder, needs("setpriv", by_root=True))
    command = [word for word in command if "caps" not in word]
    file = folder / "nginx.conf"
    file.write_text(
        f"mail {{ auth_http 127.0.0.1:1/; server {{ protocol imap; listen 127.0.0.1:{_low_ports(1)[0]}; }} }}"
    )
    file.chmod(0o644)
    arguments = ["-m", "mailproxy", "run", str(file), "--admin", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""What nginx rejects when it reads its configuration, the proxy rejects too, for the same directive."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from mailproxy.cli import main
from support.parity import refusals
from support.parity.compared_programs import Nginx
from support.worker_processes import PYTHONPATH

pytestmark = pytest.mark.interop

_LINE: Final = re.compile(r" in \S*nginx\.conf:([0-9]+)$", re.MULTILINE)


class ConfigCheckers:
    """nginx and the proxy, run with the same text."""

    def __init__(self, nginx: Nginx, folder: Path, certificates: dict[str, str]) -> None:
        self._nginx, self._folder, self._certificates = nginx, folder, certificates

    def write(self, text: str) -> Path:
        """Write a configuration."""
        for name, path in self._certificates.items():
            text = text.replace(f"@{name}@", path)
        file = self._folder / "nginx.conf"
        file.write_text(f"{self._nginx.load}events {{ }}\npid {self._folder}/pid;\n{text}\n")
        return file

    def nginx_error(self, text: str) -> str:
        """Return the error of nginx for a text; empty if it accepts the text."""
        command = [
            self._nginx.path,
            "-t",
            "-p",
            str(self._folder),
            "-e",
            "stderr",
            "-c",
            str(self.write(text)),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "NGINX"}
        output = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return output.stderr if output.returncode else ""

    def proxy_error(self, text: str) -> str:
        """Return the error of ``mailproxy check`` for a text; empty if it accepts the text."""
        output = io.StringIO()
        with contextlib.redirect_stderr(output):
            code = main(["check", "-f", str(self.write(text))])
        return output.getvalue() if code else ""


@pytest.fixture(scope="module")
def checkers(nginx: Nginx, folder: Path, certificates: dict[str, str]) -> ConfigCheckers:
    return ConfigCheckers(nginx, folder, certificates)


def _assert_both_report(checkers: ConfigCheckers, directive: str, text: str) -> None:
    """Assert that both reject it; the proxy names the directive, nginx names the directive or that line."""
    nginx_message, proxy_message = checkers.nginx_error(text), checkers.proxy_error(text)
    assert nginx_message
    assert directive in proxy_message
    line = _LINE.search(nginx_message)
    assert directive in nginx_message or (line is not None and f"nginx.conf:{line[1]}:" in proxy_message), (
        nginx_message,
        proxy_message,
    )


@pytest.mark.parametrize(("directive", "fault", "text"), tuple(refusals.generated()))
def test_both_reject_invalid_directives(
    directive: str, fault: str, text: str, checkers: ConfigCheckers
) -> None:
    assert fault
    _assert_both_report(checkers, directive, text)


@pytest.mark.parametrize(("directive", "nginx_message", "lines"), refusals.TLS)
def test_both_reject_invalid_tls_settings(
    directive: str, nginx_message: str, lines: str, checkers: ConfigCheckers
) -> None:
    text = refusals.SERVER % lines.replace(" @;", " nowhere.pem;")
    assert nginx_message in checkers.nginx_error(text)
    assert directive in checkers.proxy_error(text)


@pytest.mark.parametrize("listen", refusals.LISTENERS)
def test_both_reject_invalid_listeners(listen: str, checkers: ConfigCheckers) -> None:
    _assert_both_report(checkers, "listen", refusals.LISTEN % listen)


@pytest.mark.parametrize(("directive", "text"), refusals.WHOLE_FILES)
def test_both_reject_invalid_files(directive: str, text: str, checkers: ConfigCheckers) -> None:
    _assert_both_report(checkers, directive, text)


@pytest.mark.parametrize("text", refusals.ACCEPTED)
def test_both_accept_valid_files(text: str, checkers: ConfigCheckers) -> None:
    assert checkers.nginx_error(text) == ""
    assert checkers.proxy_error(text) == ""


@pytest.mark.parametrize(("directive", "text"), tuple(refusals.repeated()))
def test_both_accept_repeated_directives(directive: str, text: str, checkers: ConfigCheckers) -> None:
    assert directive in text
    assert checkers.nginx_error(text) == ""
    assert checkers.proxy_error(text) == ""


def test_every_directive_has_an_invalid_value_or_accepts_any() -> None:
    refused = {*refusals.INVALID, *(directive for directive, _, _ in refusals.TLS)}
    refused |= {directive for directive, _ in refusals.WHOLE_FILES} | {"listen", "worker_connections"}
    assert set(refusals.VALID) == set(refusals.ROWS)
    assert set(refusals.ROWS) - refused == set(refusals.ANY_VALUE_ACCEPTED)


def test_nginx_accepts_any_value_of_listed_directives(checkers: ConfigCheckers) -> None:
    lines = " ".join(f"{name} {value};" for name, value in refusals.ANY_VALUE_ACCEPTED.items())
    assert checkers.nginx_error(refusals.SERVER % lines) == ""


@pytest.mark.parametrize(("directive", "text"), refusals.PROXY_ONLY)
def test_only_the_proxy_rejects_listed_files(directive: str, text: str, checkers: ConfigCheckers) -> None:
    assert checkers.nginx_error(text) == ""
    assert directive in checkers.proxy_error(text)


def test_check_command_reports_the_same_errors(checkers: ConfigCheckers, folder: Path) -> None:
    file = checkers.write(refusals.SERVER % "timeout 1x;\nxclient yes;")
    output = subprocess.run(
        [sys.executable, "-m", "mailproxy", "check", "-f", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert output.returncode == 1
    assert "timeout" in output.stderr
    assert "xclient" in output.stderr

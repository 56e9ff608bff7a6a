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


class Judges:
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

    def theirs(self, text: str) -> str:
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
        told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return told.stderr if told.returncode else ""

    def ours(self, text: str) -> str:
        """Return the error of ``mailproxy check`` for a text; empty if it accepts the text."""
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            code = main(["check", "-f", str(self.write(text))])
        return told.getvalue() if code else ""


@pytest.fixture(scope="module")
def judges(nginx: Nginx, folder: Path, certificates: dict[str, str]) -> Judges:
    return Judges(nginx, folder, certificates)


def _both_blame(judges: Judges, word: str, text: str) -> None:
    """Assert that both reject it; the proxy names the directive, nginx names the directive or that line."""
    theirs, ours = judges.theirs(text), judges.ours(text)
    assert theirs
    assert word in ours
    line = _LINE.search(theirs)
    assert word in theirs or (line is not None and f"nginx.conf:{line[1]}:" in ours), (theirs, ours)


@pytest.mark.parametrize(("directive", "fault", "text"), tuple(refusals.generated()))
def test_both_refuse_a_directive(directive: str, fault: str, text: str, judges: Judges) -> None:
    assert fault
    _both_blame(judges, directive, text)


@pytest.mark.parametrize(("directive", "theirs", "lines"), refusals.TLS)
def test_both_refuse_what_tls_cannot_work_with(
    directive: str, theirs: str, lines: str, judges: Judges
) -> None:
    text = refusals.SERVER % lines.replace(" @;", " nowhere.pem;")
    assert theirs in judges.theirs(text)
    assert directive in judges.ours(text)


@pytest.mark.parametrize("listen", refusals.LISTENERS)
def test_both_refuse_a_listener(listen: str, judges: Judges) -> None:
    _both_blame(judges, "listen", refusals.LISTEN % listen)


@pytest.mark.parametrize(("word", "text"), refusals.WHOLE)
def test_both_refuse_a_whole(word: str, text: str, judges: Judges) -> None:
    _both_blame(judges, word, text)


@pytest.mark.parametrize("text", refusals.ACCEPTED)
def test_both_accept(text: str, judges: Judges) -> None:
    assert judges.theirs(text) == ""
    assert judges.ours(text) == ""


@pytest.mark.parametrize(("directive", "text"), tuple(refusals.repeated()))
def test_both_accept_it_twice(directive: str, text: str, judges: Judges) -> None:
    assert directive in text
    assert judges.theirs(text) == ""
    assert judges.ours(text) == ""


def test_every_directive_has_a_bad_value_or_takes_anything() -> None:
    refused = {*refusals.BAD, *(directive for directive, _, _ in refusals.TLS)}
    refused |= {word for word, _ in refusals.WHOLE} | {"listen", "worker_connections"}
    assert set(refusals.GOOD) == set(refusals.ROWS)
    assert set(refusals.ROWS) - refused == set(refusals.ANYTHING_GOES)


def test_nginx_takes_anything_where_we_say_so(judges: Judges) -> None:
    lines = " ".join(f"{name} {value};" for name, value in refusals.ANYTHING_GOES.items())
    assert judges.theirs(refusals.SERVER % lines) == ""


@pytest.mark.parametrize(("directive", "text"), refusals.HERE_ALONE)
def test_what_is_refused_here_alone(directive: str, text: str, judges: Judges) -> None:
    assert judges.theirs(text) == ""
    assert directive in judges.ours(text)


def test_the_command_says_the_same(judges: Judges, folder: Path) -> None:
    file = judges.write(refusals.SERVER % "timeout 1x;\nxclient yes;")
    told = subprocess.run(
        [sys.executable, "-m", "mailproxy", "check", "-f", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    assert told.returncode == 1
    assert "timeout" in told.stderr
    assert "xclient" in told.stderr

# SPDX-License-Identifier: Apache-2.0
"""``make`` on a fresh machine: missing programs are reported, an incomplete environment is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PRETENDING: Final = """#!/bin/sh
# A modified interpreter: {what}
shift
exec {python} -c 'import sys; {what}; exec(sys.argv[1])' "$1"
"""


def _interpreter(folder: Path, what: str) -> Path:
    path = folder / "python"
    path.write_text(PRETENDING.format(python=sys.executable, what=what))
    path.chmod(0o755)
    return path


def _make(target: str, python: Path | str, venv: Path) -> subprocess.CompletedProcess[str]:
    """Run ``make`` without a package index, so that nothing is downloaded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
    return subprocess.run(
        ["make", "-s", target, f"PYTHON={python}", f"VENV={venv}"],
        cwd=ROOT, env={**environment, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["demo", "setup", "test"])
def test_old_python_is_reported_with_a_command(tmp_path: Path, target: str) -> None:
    done = _make(target, _interpreter(tmp_path, "sys.version_info = (3, 10, 13)"), tmp_path / "venv")
    assert done.returncode != 0
    wanted = f"Python 3.11 or newer is needed, this is 3.10: make {target} PYTHON=python3.11\n"
    assert done.stderr.startswith(wanted)
    assert not (tmp_path / "venv").exists()


def test_missing_ensurepip_is_reported_with_its_package(tmp_path: Path) -> None:
    """As on Debian without python3-venv."""
    python = _interpreter(tmp_path, 'sys.modules["ensurepip"] = None')
    done = _make("demo", python, tmp_path / "venv")
    assert "has no module venv or ensurepip" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_missing_python_is_reported(tmp_path: Path) -> None:
    done = _make("demo", "python-of-nowhere", tmp_path / "venv")
    assert "python-of-nowhere does not run. Python 3.11 or newer is needed: apt install" in done.stderr


def _incomplete_environment(venv: Path) -> None:
    """Create what ``python -m venv`` leaves behind if ensurepip is missing."""
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /nowhere\n")
    (venv / "bin/python").symlink_to("/nowhere/python3")


@pytest.mark.parametrize("stamp", ["", ".installed", ".installed-demo"])
def test_incomplete_environment_is_created_again(tmp_path: Path, stamp: str) -> None:
    """Also if it was complete, and its interpreter was removed."""
    venv = tmp_path / "venv"
    _incomplete_environment(venv)
    if stamp:
        (venv / stamp).touch()
    done = _make("demo" if "demo" in stamp else "setup", sys.executable, venv)
    assert f"{venv} is incomplete or of an older Python: creating it again" in done.stdout
    assert "Installing MailProxy and its dependencies" in done.stdout
    assert subprocess.run([venv / "bin/python", "-c", "import pip"], check=False).returncode == 0
    assert done.returncode != 0, "there was no index"
    assert not list(venv.glob(".installed*")), "the next call installs it"


def test_foreign_folder_is_not_changed(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "letters").write_text("mine")
    done = _make("setup", sys.executable, venv)
    assert f"{venv} is not a virtual environment and not empty" in done.stderr
    assert (venv / "letters").read_text() == "mine"


def test_demo_installs_only_its_extra() -> None:
    printed = subprocess.run(
        ["make", "-n", "demo", "VENV=/nonexistent/venv"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    [line] = [line for line in printed.stdout.splitlines() if ".ci/venv" in line]
    assert line.split()[3:5] == ["demo", "'make"]

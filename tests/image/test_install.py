# SPDX-License-Identifier: Apache-2.0
"""``pip install mailproxy``: the wheel in an empty virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
CONFIGURATION: Final = """
mail {
    auth_http 127.0.0.1:9000/auth;
    server { listen 127.0.0.1:1143; protocol imap; }
}
"""
OFFLINE: Final = ("Could not find a version that satisfies", "Temporary failure in name resolution")


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs after ``pip install .``, without extras."""
    folder = tmp_path_factory.mktemp("install")
    sources = folder / "sources"
    for name in ("demo", "operator", "proxy"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    done = subprocess.run(
        [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", sources],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode and any(words in done.stderr for words in OFFLINE):
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_default_installation_runs_the_proxy(bin_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "nginx.conf"
    file.write_text(CONFIGURATION)
    for arguments in (["check", "-f", file], ["convert", file]):
        done = run(bin_folder / "mailproxy", *arguments)
        assert done.returncode == 0, done.stderr
    # An address of another machine: the proxy starts, and fails to open its listener.
    file.write_text(CONFIGURATION.replace("127.0.0.1:1143", "192.0.2.1:1143"))
    done = run(bin_folder / "mailproxy", "run", "-f", file, "--admin", "127.0.0.1:0")
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr
    assert "192.0.2.1" in done.stderr


def test_operator_without_extra_names_it(bin_folder: Path) -> None:
    done = run(bin_folder / "mailproxy-operator", "run")
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert line.startswith("mailproxy-operator: this command needs the library ")
    assert line.endswith("which the extra 'operator' installs: pip install 'mailproxy[operator]'")


def test_wheel_has_no_demo(bin_folder: Path) -> None:
    """The sources that it was built from have the package."""
    [site] = (bin_folder.parent / "lib").glob("python3.*/site-packages")
    packages = {path.name for path in site.iterdir() if path.name.startswith("mailproxy")}
    packages = {name for name in packages if not name.endswith(".dist-info")}
    assert packages == {"mailproxy", "mailproxy_config", "mailproxy_operator"}
    assert not (site / "mailproxy_operator/local").exists()


@pytest.mark.parametrize("arguments", [["--demo", "--once"], ["-f", "edge.yaml"]])
def test_local_without_the_demo_reports_how_to_install_it(bin_folder: Path, arguments: list[str]) -> None:
    done = run(bin_folder / "mailproxy-operator", "local", *arguments)
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert line.startswith(
        "mailproxy-operator: this command needs mailproxy_demo, which is not in the wheel; "
    )
    assert line.endswith(": pip install --editable '.[demo]'")


@pytest.mark.parametrize("command", ["crd", "render"])
def test_crd_and_render_need_no_extra(bin_folder: Path, command: str) -> None:
    arguments = ["-f", ROOT / "deploy/examples/minimal.yaml"] if command == "render" else []
    done = run(bin_folder / "mailproxy-operator", command, *arguments)
    assert done.returncode == 0, done.stderr
    assert "apiVersion:" in done.stdout

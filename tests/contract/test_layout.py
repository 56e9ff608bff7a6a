# SPDX-License-Identifier: Apache-2.0
"""Rules about files and packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = sorted(
    file for root in ("demo", "operator", "proxy") for file in (ROOT / root).rglob("*.py")
)
STOP_LINES: Final = 600


@pytest.mark.parametrize("folder", ["demo", "operator", "proxy", "tests", "tests/operator"])
def test_source_roots_are_not_packages(folder: str) -> None:
    """``operator/__init__.py`` would shadow the module of the standard library."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_python_starts_with_the_checkout_on_its_path() -> None:
    command = [sys.executable, "-c", "import collections, operator; print(operator.itemgetter)"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_no_source_file_exceeds_500_lines() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := _lines(path)) > STOP_LINES}
    assert long == {}


def test_every_package_has_a_docstring() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_proxy_does_not_need_libraries_of_the_operator() -> None:
    """The image of the proxy contains neither kopf nor the Kubernetes client."""
    code = (
        "import sys; sys.modules['kopf'] = sys.modules['kubernetes'] = None\n"
        "import mailproxy.app, mailproxy.cli, mailproxy.worker\n"
        "import mailproxy.supervisor.supervisor, mailproxy.admin"
    )
    path = f"{ROOT / 'proxy'}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def _lines(path: Path) -> int:
    return path.read_text().count("\n")

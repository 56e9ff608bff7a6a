# SPDX-License-Identifier: Apache-2.0
"""The rules about files that nobody would remember if nothing checked them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = sorted((ROOT / "proxy").rglob("*.py")) + sorted((ROOT / "operator").rglob("*.py"))
STOP_LINES: Final = 600


@pytest.mark.parametrize("folder", ["operator", "proxy", "tests", "tests/operator"])
def test_a_source_root_is_no_package(folder: str) -> None:
    """``operator/__init__.py`` would hide the standard library's module: nothing would start."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_python_starts_with_the_checkout_on_its_path() -> None:
    command = [sys.executable, "-c", "import collections, operator; print(operator.itemgetter)"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_no_source_file_is_longer_than_anybody_reads() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := _lines(path)) > STOP_LINES}
    assert long == {}


def test_every_package_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_the_proxy_runs_without_the_operators_libraries() -> None:
    """The image of the proxy carries neither kopf nor the Kubernetes client."""
    code = (
        "import sys; sys.modules['kopf'] = sys.modules['kubernetes'] = None\n"
        "import mailproxy.app, mailproxy.cli, mailproxy.worker\n"
        "import mailproxy.supervisor.supervisor, mailproxy.supervisor.admin_endpoint"
    )
    path = f"{ROOT / 'proxy'}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def _lines(path: Path) -> int:
    return path.read_text().count("\n")

# SPDX-License-Identifier: Apache-2.0
"""Missing programs: tests are skipped with the name of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from support.needs import PACKAGES, PARTS, find_program, require

ROOT: Final = Path(__file__).parents[2]
TESTS: Final = ROOT / "tests"
DEBIAN: Final = sorted(set(PACKAGES.values()))


def _installed_by_ci() -> list[str]:
    [listed] = re.findall(r"^packages=\((.*?)\)", (ROOT / ".ci/run").read_text(), re.DOTALL | re.MULTILINE)
    return str(listed).split()


def test_ci_installs_every_needed_package() -> None:
    assert sorted(_installed_by_ci()) == DEBIAN


def test_contributing_page_names_every_package() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    [command] = re.findall(r"apt install ((?:[a-z0-9.-]+(?:\s|\\)+)+)", page)
    assert sorted(command.replace("\\", " ").split()) == DEBIAN


def test_every_needed_program_has_a_package() -> None:
    asked = {
        call.args[0].value
        for path in TESTS.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "needs"
        and isinstance(call.args[0], ast.Constant)
    }
    assert {"dovecot", "postfix", "promtool"} <= asked
    assert asked <= PACKAGES.keys()
    assert {part for parts in PARTS.values() for part in parts} <= PACKAGES.keys()


def test_tests_find_programs_only_through_needs() -> None:
    """Otherwise the test fails, or is skipped without the name of the package."""
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in TESTS.rglob("*.py")}
    found = {path for path, text in sources.items() if re.search(r"shutil\.which\(", text)}
    assert found == {"tests/support/needs.py", "tests/support/kubectl.py"}


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_missing_program_skips_with_package_name(name: str) -> None:
    with pytest.raises(pytest.skip.Exception) as skipped:
        require(name, find=lambda one: None if one == name else f"/bin/{one}")
    assert f"needs {Path(name).name} (Debian: {PACKAGES[name]})" in str(skipped.value)


def test_missing_part_skips_before_server_starts() -> None:
    """Dovecot without dovecot-lmtpd ends with a fatal error about an unknown protocol."""
    with pytest.raises(pytest.skip.Exception, match=r"needs lmtp \(Debian: dovecot-lmtpd\)"):
        require("dovecot", find=lambda one: None if one == "dovecot/lmtp" else f"/bin/{one}")


def test_all_missing_programs_are_named_together() -> None:
    with pytest.raises(pytest.skip.Exception) as skipped:
        require("dovecot", find=lambda _: None)
    assert all(package in str(skipped.value) for package in DEBIAN if package.startswith("dovecot"))


def test_installed_program_is_found() -> None:
    assert require("sh", find=find_program) == find_program("sh") != ""
    assert find_program("no/such/file") is None

# SPDX-License-Identifier: Apache-2.0
"""The workflows of the public CI, as far as they can be checked without it, and the notes of a release."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.needs import find_program

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".github/workflows"
WORKFLOWS: Final[dict[str, dict[Any, Any]]] = {
    path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))
}
VERSION: Final[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
TARGETS: Final = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job.get("steps", [])]


def _scripts(name: str) -> str:
    return "\n".join(step.get("run", "") for step in _steps(name))


def test_checks_run_on_every_python_from_oldest_to_image() -> None:
    [oldest] = re.findall(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    [shipped] = re.findall(r"ARG PYTHON=\S*python:3\.(\d+)", (ROOT / "Dockerfile").read_text())
    matrix = WORKFLOWS["ci.yml"]["jobs"]["gate"]["strategy"]["matrix"]["python"]
    newest = max(int(shipped), 13)
    assert matrix == [f"3.{minor}" for minor in range(int(oldest), newest + 1)]
    assert WORKFLOWS["release.yml"]["jobs"]["gate"]["uses"] == "./.github/workflows/ci.yml"
    assert WORKFLOWS["release.yml"]["jobs"]["publish"]["needs"] == "gate"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_commands_of_a_workflow_exist(name: str) -> None:
    script = _scripts(name)
    for words in re.findall(r"^\s*make ([^|>\n]+)", script, re.MULTILINE):
        assert words.split()[0] in TARGETS, words
    for path in re.findall(r"(?:^|\s)((?:\.ci|charts|deploy)/[\w./-]+)", script):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_have_read_permission_unless_job_needs_more(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    writing = {job for job, body in WORKFLOWS[name]["jobs"].items() if "permissions" in body}
    assert writing == ({"publish"} if name == "release.yml" else set())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_scripts_contain_no_expressions(name: str) -> None:
    """The shell would execute an expression with the name of a branch or tag, but not a variable."""
    assert "${{" not in _scripts(name)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actionlint_accepts_a_workflow(name: str) -> None:
    program = find_program("actionlint")
    if program is None:
        pytest.skip("needs actionlint: https://github.com/rhysd/actionlint")
    done = subprocess.run(
        [program, str(FOLDER / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_scripts_are_valid_bash(name: str) -> None:
    for step in _steps(name):
        if "run" in step:
            done = subprocess.run(
                ["bash", "-n"], input=step["run"], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, step["run"] + done.stderr


def _notes(folder: Path, changelog: str, tag: str) -> subprocess.CompletedProcess[str]:
    (folder / ".ci").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".ci/release-notes", folder / ".ci")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "CHANGELOG.md").write_text(changelog)
    command = [sys.executable, str(folder / ".ci/release-notes"), tag]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_release_notes_are_section_of_changelog(tmp_path: Path) -> None:
    text = f"# Changelog\n\n## Unreleased\n\n- later\n\n## {VERSION} - 2026-12-01\n\n### Added\n\n- this\n"
    text += "\n## 0.0.9\n\n- old\n"
    done = _notes(tmp_path, text, f"v{VERSION}")
    assert (done.returncode, done.stdout) == (0, "### Added\n\n- this\n")
    last = _notes(tmp_path, f"# Changelog\n\n## [{VERSION}]\n\n- this\n", f"v{VERSION}")
    assert last.stdout == "- this\n"


def test_release_without_notes_or_with_other_version_fails(tmp_path: Path) -> None:
    done = _notes(tmp_path, "# Changelog\n\n## Unreleased\n\n- later\n", f"v{VERSION}")
    assert done.returncode == 1
    assert f"no section '## {VERSION}'" in done.stderr
    done = _notes(tmp_path, f"## {VERSION}\n\n- this\n", "v9.9.9")
    assert done.returncode == 1
    assert "make version TO=9.9.9" in done.stderr

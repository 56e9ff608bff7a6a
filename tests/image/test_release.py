# SPDX-License-Identifier: Apache-2.0
"""A release: one version everywhere, the licence, the bills of materials, image names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mailproxy_operator.settings import DEFAULT_IMAGE

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LICENCE: Final = f"SPDX-License-Identifier: {PROJECT['license']}"
FOLDERS: Final = ("demo", "operator", "proxy", "tests", "benchmarks", "charts", "deploy")
SOURCES: Final = {".py", ".ts", ".tpl"}
TEMPLATES: Final = ROOT / "charts/mailproxy-operator/templates"
VERSIONED: Final = (
    "pyproject.toml",
    "Dockerfile",
    "charts/mailproxy-operator/Chart.yaml",
    "deploy/operator.yaml",
    "operator/mailproxy_operator/settings.py",
)


def _sources() -> list[Path]:
    found = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in SOURCES]
    return [
        *found,
        *(path for path in TEMPLATES.rglob("*") if path.is_file()),
        ROOT / "Dockerfile",
        ROOT / "Makefile",
    ]


def test_every_source_file_has_its_licence_line() -> None:
    nameless = [
        str(path.relative_to(ROOT))
        for path in _sources()
        if LICENCE not in "\n".join(path.read_text().splitlines()[:3])
    ]
    assert nameless == [], f"their first line must be: # {LICENCE} (make fix writes it)"


def test_licence_files_are_complete() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert (ROOT / f"LICENSES/{PROJECT['license']}.txt").read_text() == text
    assert PROJECT["license-files"] == ["LICENSE"]
    whole, *others = tomllib.loads((ROOT / "REUSE.toml").read_text())["annotations"]
    assert (whole["path"], whole["SPDX-License-Identifier"]) == ("**", PROJECT["license"])
    assert all((ROOT / one["path"]).exists() for one in others)


@pytest.mark.parametrize("name", VERSIONED)
def test_version_is_the_same_in_every_file(name: str) -> None:
    """Every version of MailProxy, on its own line or as the tag of an image."""
    text = (ROOT / name).read_text()
    found = re.findall(r"(?im)^(?:ARG )?(?:appVersion|version)\s*[:=]\s*\"?(\d[\w.+-]*)", text)
    found += re.findall(r"mailproxy/mailproxy(?:-operator)?:([\w.+-]+)", text)
    assert found
    assert set(found) == {PROJECT["version"]}, "run: make version TO=..."


def test_make_version_changes_every_file(tmp_path: Path) -> None:
    for name in ("Makefile", *VERSIONED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    subprocess.run(["make", "-s", "version", "TO=7.8.9"], cwd=tmp_path, check=True, timeout=60)
    for name in VERSIONED:
        before, after = (ROOT / name).read_text(), (tmp_path / name).read_text()
        assert PROJECT["version"] not in after
        assert before == after.replace("7.8.9", PROJECT["version"])
    chart = yaml.safe_load((tmp_path / "charts/mailproxy-operator/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == "7.8.9"


@pytest.mark.parametrize("image", ["proxy", "operator"])
def test_make_writes_the_bills_of_materials(image: str, tmp_path: Path) -> None:
    made = subprocess.run(
        ["make", "-s", "sbom", f"PYTHON={sys.executable}", f"DIST={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert PROJECT["version"] in (tmp_path / f"sbom-{image}.cdx.json").read_text()


def test_make_tags_images_with_the_names_of_the_chart() -> None:
    """So a node that has the images needs no registry."""
    printed = subprocess.run(
        ["make", "-n", "images"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    made = set(re.findall(r" -t (\S+)", printed.stdout))
    values = yaml.safe_load((ROOT / "charts/mailproxy-operator/values.yaml").read_text())
    assert made == {f"{values[name]['repository']}:{PROJECT['version']}" for name in ("image", "proxyImage")}
    assert DEFAULT_IMAGE in made
    operator = (ROOT / "deploy/operator.yaml").read_text()
    assert made == set(re.findall(r"ghcr\.io/[a-z/-]+:[\w.]+", operator))


def test_registry_variable_changes_image_names() -> None:
    command = ["make", "-n", "images", "REGISTRY=registry.example:5000/mail"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert f"-t registry.example:5000/mail/mailproxy:{PROJECT['version']}" in printed.stdout

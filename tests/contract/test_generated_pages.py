# SPDX-License-Identifier: Apache-2.0
"""``make generate`` updates every generated page, and skipped tests name where a missing program is from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from support.helm import ABSENT as NO_HELM
from support.kube_server import ABSENT
from support.kubectl import ABSENT as NO_KUBECTL

ROOT: Final = Path(__file__).parents[2]
RECIPE: Final = (ROOT / "Makefile").read_text().partition("\ngenerate:")[2].partition("\n\n")[0]
PAGES: Final = [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if re.search(r"(?i)do not edit", page.read_text())
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_generate_runs_the_generator_of_every_page(page: Path) -> None:
    """The head of each generated page names its command."""
    named = re.findall(r"`(python [^`]+)`", page.read_text().partition("\n## ")[0])
    assert named
    assert any(one.removeprefix("python ").partition(" >")[0] in RECIPE for one in named), named


def test_generated_pages_are_found() -> None:
    names = {page.name for page in PAGES}
    assert {"conditions.md", "crd.md", "directives.md", "metrics.md", "values.md"} <= names


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("kube-apiserver", ABSENT),
        ("etcd", ABSENT),
        ("kubectl", NO_KUBECTL),
        ("Helm 3", NO_HELM[3]),
        ("Helm 4", NO_HELM[4]),
    ],
)
def test_skipped_test_names_where_the_program_is_from(program: str, text: str) -> None:
    assert f"needs {program}" in text or f"and {program}" in text
    assert re.search(r"https://\S+", text)


def test_failed_comparison_prints_how_to_declare_a_difference() -> None:
    """Each test that compares both proxies, and can find a new difference."""
    for name in ("test_written_dialogues.py", "test_generated_dialogues.py"):
        assert "HOW_TO_DECLARE" in (ROOT / "tests/parity" / name).read_text(), name

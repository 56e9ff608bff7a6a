# SPDX-License-Identifier: Apache-2.0
"""The pages for engineers name code that exists: files, and the classes and functions in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ("docs/architecture.md", "CONTRIBUTING.md")
FOLDERS: Final = ("", "proxy/mailproxy/", "operator/mailproxy_operator/", "proxy/mailproxy_config/")
"""Where a path on the pages may begin."""
NAMED_WHOLLY: Final = ("proxy/mailproxy/session", "operator/mailproxy_operator/controller")
"""Folders of which the page names every module."""
_SPAN: Final = re.compile(r"`([^`\n]+)`")
_CODE: Final = re.compile(r"(?P<path>[\w./-]+\.(?:py|md|ya?ml|tpl|toml|json|sh))(?:: (?P<names>[\w., ]+))?")
_PATH: Final = re.compile(r"[\w-]+(?:/[\w-]+)*\.py\b")
_PICTURE: Final = re.compile(r"^```mermaid\n(.*?)^```", re.DOTALL | re.MULTILINE)
_DEFINITION: Final = re.compile(
    r"^(?P<indent>|    )"
    r"(?:(?:async )?(?P<keyword>def|class) (?P<defined>\w+)|(?P<assigned>\w+)(?:: [^=\n]+)? = )",
    re.MULTILINE,
)


def code_spans(page: str) -> list[str]:
    """Find the code spans of a page that are a file, perhaps with names after a colon."""
    return [span for span in _SPAN.findall((ROOT / page).read_text()) if _CODE.fullmatch(span)]


def paths_in_pictures(page: str) -> list[str]:
    """Find the modules that the pictures of a page name."""
    return [
        path for picture in _PICTURE.findall((ROOT / page).read_text()) for path in _PATH.findall(picture)
    ]


def files_of(path: str) -> list[Path]:
    """Find the files that a path can mean: it begins at the repository or at a package folder."""
    found = (ROOT / folder / path for folder in FOLDERS)
    return [file for file in found if file.is_file()]


def missing(span: str) -> list[str]:
    """Find what a span names and the repository lacks: the file, or names in it."""
    path, _, names = span.partition(": ")
    files = files_of(path)
    if len(files) != 1:
        return [f"{path} is {len(files)} files"]
    defined = defined_names(files[0]) if names else set()
    return [name for name in re.split(r", ?", names) if name and name not in defined]


def defined_names(file: Path) -> set[str]:
    """Collect the names that a module defines: ``name``, ``Class`` and ``Class.member``.

    By lines: ``ast.parse`` of Python 3.11 fails now and then in a process with threads (gh-106905).
    """
    names: set[str] = set()
    parent = ""
    for indent, name, is_class in _definitions(file.read_text()):
        if not indent:
            names.add(name)
            parent = name if is_class else ""
        elif parent:
            names.add(f"{parent}.{name}")
    return names


def _definitions(source: str) -> Iterator[tuple[str, str, bool]]:
    """Yield indentation, name, and whether it is a class, of what a module and its classes define."""
    for found in _DEFINITION.finditer(source):
        yield found["indent"], found["defined"] or found["assigned"], found["keyword"] == "class"


@pytest.mark.parametrize("page", PAGES)
def test_page_names_code_that_exists(page: str) -> None:
    spans = code_spans(page)
    assert len(spans) > 20
    assert {span: missing(span) for span in spans if missing(span)} == {}


def test_pictures_name_modules_that_exist() -> None:
    paths = paths_in_pictures(PAGES[0])
    assert len(paths) > 20
    assert [path for path in paths if len(files_of(path)) != 1] == []


@pytest.mark.parametrize("folder", NAMED_WHOLLY)
def test_architecture_page_names_every_module_of_the_core(folder: str) -> None:
    named = {file for span in code_spans(PAGES[0]) for file in files_of(span.partition(": ")[0])}
    modules = set((ROOT / folder).glob("*.py")) - {ROOT / folder / "__init__.py"}
    assert modules
    assert modules - named == set()


def test_architecture_page_is_short() -> None:
    assert len((ROOT / PAGES[0]).read_text().splitlines()) <= 350


def test_missing_names_and_files_are_found() -> None:
    assert missing("session/session.py: Session, Session.no_such_method") == ["Session.no_such_method"]
    assert missing("session/session.py: no_such_function") == ["no_such_function"]
    assert missing("session/no_such_file.py") == ["session/no_such_file.py is 0 files"]


def test_ambiguous_path_is_found() -> None:
    assert missing("cli.py: main") == ["cli.py is 2 files"]

# SPDX-License-Identifier: Apache-2.0
"""Folders for the servers of the guides."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def _open_folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mailproxy-guide-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own are private, and mail servers change their user."""
    with _open_folder() as made:
        yield made


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """Such a folder for all tests of a module."""
    with _open_folder() as made:
        yield made

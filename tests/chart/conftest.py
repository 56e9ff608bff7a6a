# SPDX-License-Identifier: Apache-2.0
"""The fixtures for Helm; tests are skipped without it."""

from __future__ import annotations

import pytest

from support.helm import ABSENT, Helm, find_helms


@pytest.fixture(scope="session")
def helms(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Helm]:
    """Every Helm that was found, by its major version."""
    return find_helms(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def helm(helms: dict[int, Helm]) -> Helm:
    """The newest Helm; tests that need it are skipped where none is found."""
    if not helms:
        pytest.skip(ABSENT[4])
    return helms[max(helms)]


@pytest.fixture(scope="session", params=[3, 4], ids=["helm3", "helm4"])
def each_helm(helms: dict[int, Helm], request: pytest.FixtureRequest) -> Helm:
    """Helm 3, then Helm 4; tests are skipped where it is not found."""
    if request.param not in helms:
        pytest.skip(ABSENT[request.param])
    return helms[request.param]

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from support.tls_identities import Identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(tmp_path_factory.mktemp("identities"))

# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: none of them times anything, and what is not installed is named."""

from __future__ import annotations

import pytest
from hypothesis import settings

from support.needs import Needs, require

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def needs() -> Needs:
    """Return the path of a program that a test starts, or skip the test and name its Debian package."""
    return require

# SPDX-License-Identifier: Apache-2.0
"""The lines about the comparison with nginx at the end of a run."""

from __future__ import annotations

from typing import Final

import pytest

SUMMARY: Final = pytest.StashKey[list[str]]()
"""The key of these lines in the configuration of a run; absent if nothing was compared."""

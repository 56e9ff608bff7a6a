# SPDX-License-Identifier: Apache-2.0
"""What a run says at its end about the comparison with nginx."""

from __future__ import annotations

from typing import Final

import pytest

SUMMARY: Final = pytest.StashKey[list[str]]()
"""Where the configuration of a run keeps the lines; absent where nothing was compared."""

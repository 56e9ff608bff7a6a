# SPDX-License-Identifier: Apache-2.0
"""Which tests run in the same worker of pytest-xdist."""

from __future__ import annotations

from typing import Final

from xdist.scheduler import LoadScopeScheduling

TOGETHER: Final = ("tests/parity",)
"""Folders that stay in one process: all their modules read what one comparison with nginx has shown."""


def unit(nodeid: str) -> str:
    """Return the module of a test, or its folder where that stays together."""
    module = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if module.startswith(f"{folder}/")), module)


class Sharing(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types for it
    """Distributes whole modules, those with the most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

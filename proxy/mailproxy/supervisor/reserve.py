# SPDX-License-Identifier: Apache-2.0
"""Descriptors that are kept free for a reload, which must not fail because clients hold all the others."""

from __future__ import annotations

import os
from typing import Final

FILES: Final = 16
"""Descriptors beyond those for listening sockets: what a reload opens while it reads files."""


class Reserve:
    """Descriptors that nobody else gets; ``release`` makes room, ``fill`` takes it back."""

    def __init__(self) -> None:
        self._wanted = FILES
        self._held: list[int] = []

    @property
    def size(self) -> int:
        """How many are held now."""
        return len(self._held)

    def keep(self, sockets: int) -> None:
        """Hold enough for so many listening sockets and some files, as far as there is room."""
        self._wanted = sockets + FILES
        while len(self._held) > self._wanted:
            os.close(self._held.pop())
        self.fill()

    def fill(self) -> None:
        """Take back what was released, as far as there is room; call it again later for the rest."""
        try:
            while len(self._held) < self._wanted:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return

    def release(self, count: int | None = None) -> None:
        """Make room for so many descriptors; for as many as possible without a number."""
        for _ in range(len(self._held) if count is None else min(count, len(self._held))):
            os.close(self._held.pop())

# SPDX-License-Identifier: Apache-2.0
"""Kernel pipes for bulk transfers: few, large, and handed around."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final

PIPE_BYTES: Final = 1024 * 1024
PIPES_AT_MOST: Final = 64
"""Pipes that may exist at once in a worker; who gets none copies instead."""
PIPES_KEPT: Final = 8


class Pipe:
    """One pipe, and how many bytes it holds."""

    __slots__ = ("holds", "read", "size", "write")

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.holds = 0
        self.size = 64 * 1024
        with suppress(OSError):  # an unprivileged user has only so much pipe memory
            self.size = fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        """Close both ends; what it holds is lost."""
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """A bounded stock of empty pipes."""

    def __init__(self) -> None:
        self._kept: list[Pipe] = []
        self._count = 0

    def take(self) -> Pipe | None:
        """Give an empty pipe, or ``None`` when there are enough in use."""
        if self._kept:
            return self._kept.pop()
        if self._count >= PIPES_AT_MOST:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self._count += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back; one that still holds bytes is closed."""
        if pipe.holds or len(self._kept) >= PIPES_KEPT:
            self.discard(pipe)
        else:
            self._kept.append(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that was taken."""
        self._count -= 1
        pipe.close()

    def close(self) -> None:
        """Close what is in stock."""
        while self._kept:
            self.discard(self._kept.pop())

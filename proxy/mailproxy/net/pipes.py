# SPDX-License-Identifier: Apache-2.0
"""The pool of kernel pipes for bulk transfers (splice(2))."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final

PIPE_BYTES: Final = 1024 * 1024
MAX_PIPES: Final = 64
"""Pipes of one worker at a time; without one, a relay copies through memory."""
MAX_KEPT: Final = 8


class Pipe:
    """One pipe, its size, and the number of bytes that it holds."""

    __slots__ = ("holds", "read", "size", "write")

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.holds = 0
        self.size = 64 * 1024
        with suppress(OSError):  # the pipe memory of an unprivileged user is limited (pipe(7))
            self.size = fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def close(self) -> None:
        """Close both ends; the bytes that it holds are lost."""
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """A pool of empty pipes.

    Attributes:
        count: Number of pipes, in use or kept.
        kept: The pipes that are not in use.
        maximum: How many there may be: fewer than ``MAX_PIPES`` where files are few.
    """

    def __init__(self) -> None:
        self.maximum = MAX_PIPES
        self.kept: list[Pipe] = []
        self.count = 0

    def take(self) -> Pipe | None:
        """Return an empty pipe, or ``None`` when as many as possible are in use."""
        if self.kept:
            return self.kept.pop()
        if self.count >= min(self.maximum, MAX_PIPES):
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self.count += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Return a pipe to the pool; one that still holds bytes is closed."""
        if pipe.holds or len(self.kept) >= MAX_KEPT:
            self.discard(pipe)
        else:
            self.kept.append(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that is in use."""
        self.count -= 1
        pipe.close()

    def close(self) -> None:
        """Close the pipes that are not in use."""
        while self.kept:
            self.discard(self.kept.pop())

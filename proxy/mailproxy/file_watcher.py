# SPDX-License-Identifier: Apache-2.0
"""Notices that files have changed, by looking at them every now and then.

A mounted ConfigMap or Secret changes by one swap of a symbolic link, an editor
renames a new file over the old one, and a script may write into the file as it
is.  Looking covers all three, on every file system, without a dependency.

A change counts when the contents differ, not the times alone, and when two
looks in a row find the same: a file that is just being written is left alone
until it rests.  Symbolic links are followed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

LIMIT: Final = 32 * 1024 * 1024
"""A file is judged by its first bytes, at most so many."""

_Signature = tuple[int, int, int, int] | None
_Digest = bytes | None


class FileWatcher:
    """Some files, and what was in them when they were last accepted.

    Args:
        paths: The files.  They need not exist: coming into being and vanishing
            are changes like any other.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._seen: dict[Path, _Signature] = {}
        self._accepted: dict[Path, _Digest] = {}
        self._is_restless = False
        self.watch(paths)

    @property
    def is_restless(self) -> bool:
        """Whether the last look found something new that has not come to rest; look again soon."""
        return self._is_restless

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch these files from now on; what is known about those that stay is kept."""
        wanted = dict.fromkeys(paths)
        for path in [path for path in self._seen if path not in wanted]:
            del self._seen[path], self._accepted[path]
        for path in wanted:
            if path not in self._seen:
                self._seen[path] = _signature(path)
                self._accepted[path] = _digest(path)

    def changed(self) -> tuple[Path, ...]:
        """Look once; name the files whose contents have changed and come to rest.

        Each change is told once: what is told counts as accepted.
        """
        now = {path: _signature(path) for path in self._seen}
        moved = [path for path, signature in now.items() if signature != self._seen[path]]
        unsure = self._is_restless or moved
        self._seen = now
        self._is_restless = bool(moved)
        if moved or not unsure:
            return ()
        return self._accept({path: _digest(path) for path in now})

    def _accept(self, digests: Mapping[Path, _Digest]) -> tuple[Path, ...]:
        told = tuple(path for path, digest in digests.items() if digest != self._accepted[path])
        self._accepted.update(digests)
        return told


def _signature(path: Path) -> _Signature:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _digest(path: Path) -> _Digest:
    try:
        # A pipe, or a device, would keep whoever looks waiting for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return hashlib.blake2b(file.read(LIMIT)).digest()
    except (OSError, ValueError):
        return None

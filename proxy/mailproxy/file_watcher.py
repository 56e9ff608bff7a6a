# SPDX-License-Identifier: Apache-2.0
"""Detects changed files by polling.

A mounted ConfigMap or Secret changes by one swap of a symbolic link, an editor
renames a new file over the old one, and a script may write into the file in
place.  Polling detects all three, on every file system, without a dependency.

A change is reported when the contents differ, not the times alone, and when
two polls in a row find the same file: a file that is being written is not
read until it is complete.  Symbolic links are followed.  Of a directory, the
names in it are watched.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MAX_HASHED_BYTES: Final = 32 * 1024 * 1024
"""Only the first bytes of a file are compared."""

_Signature = tuple[int, int, int, int] | None
_Digest = bytes | None


class FileWatcher:
    """Watches files.

    Args:
        paths: The files.  They need not exist: creating and removing a file
            are changes too.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._signatures: dict[Path, _Signature] = {}
        self._digests: dict[Path, _Digest] = {}
        self._is_changing = False
        self.watch(paths)

    @property
    def is_changing(self) -> bool:
        """Whether a file was changing at the last poll; poll again soon."""
        return self._is_changing

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch these files from now on; the state of files that were watched before is kept."""
        wanted = dict.fromkeys(paths)
        for path in [path for path in self._signatures if path not in wanted]:
            del self._signatures[path], self._digests[path]
        for path in wanted:
            if path not in self._signatures:
                self._signatures[path] = _signature(path)
                self._digests[path] = _digest(path)

    def changed(self) -> tuple[Path, ...]:
        """Poll once; return the files whose contents have changed, each change once."""
        now = {path: _signature(path) for path in self._signatures}
        moved = [path for path, signature in now.items() if signature != self._signatures[path]]
        was_changing = self._is_changing
        self._signatures = now
        self._is_changing = bool(moved)
        if moved or not was_changing:
            return ()
        digests = {path: _digest(path) for path in now}
        changed = tuple(path for path, digest in digests.items() if digest != self._digests[path])
        self._digests.update(digests)
        return changed


def _signature(path: Path) -> _Signature:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _digest(path: Path) -> _Digest:
    try:
        if path.is_dir():
            return hashlib.blake2b("\0".join(sorted(os.listdir(path))).encode("utf-8", "replace")).digest()
        # Opening a pipe or a device could block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return hashlib.blake2b(file.read(MAX_HASHED_BYTES)).digest()
    except (OSError, ValueError):
        return None

# SPDX-License-Identifier: Apache-2.0
"""Memory that all workers of a supervisor share: one file without a name, divided into areas.

Pages that nobody has written to take no memory, so that an area that is not used costs nothing.
The memory is the same for all configurations: what is in it survives reloads and the end of workers.
"""

from __future__ import annotations

import mmap
import os
from enum import Enum, unique
from typing import Final


@unique
class Area(Enum):
    """A part of the memory, and its size in bytes: a multiple of ``mmap.ALLOCATIONGRANULARITY``.

    No two sizes are the same: a member with the value of another would be another name for that one.
    """

    UPSTREAM_HEALTH = 64 * 1024
    LIMITS = 72 * 1024 * 1024
    RANDOM_KEY = 128 * 1024
    PENALTY = 36 * 1024 * 1024


def _offsets() -> dict[Area, int]:
    offsets, end = {}, 0
    for area in Area:
        offsets[area] = end
        end += area.value
    return offsets


_OFFSETS: Final = _offsets()
SIZE: Final = sum(area.value for area in Area)
KEY_BYTES: Final = 32


class SharedMemory:
    """The memory, as one process has it.

    Args:
        descriptor: Of the file, which stays open; -1 for memory of this process alone.
    """

    __slots__ = ("_views", "descriptor")

    def __init__(self, descriptor: int = -1) -> None:
        self.descriptor = descriptor
        self._views: dict[Area, memoryview] = {}

    def offset(self, area: Area) -> int:
        """Return where an area begins in the file; its bytes can be locked there (``fcntl.lockf``)."""
        return _OFFSETS[area]

    def view(self, area: Area) -> memoryview:
        """Return the bytes of an area, all zero at first."""
        if area not in self._views:
            offset = 0 if self.descriptor < 0 else _OFFSETS[area]
            self._views[area] = memoryview(mmap.mmap(self.descriptor, area.value, offset=offset))
        return self._views[area]

    def random_key(self) -> bytes:
        """Return random bytes, the same for all workers until the supervisor ends."""
        view = self.view(Area.RANDOM_KEY)
        if self.descriptor < 0 and not any(view[:KEY_BYTES]):
            view[:KEY_BYTES] = os.urandom(KEY_BYTES)
        return bytes(view[:KEY_BYTES])


def create() -> int:
    """Make the file; returns its descriptor.

    Raises:
        OSError: There is no memory or no descriptor.
    """
    descriptor = os.memfd_create("mailproxy")
    try:
        os.ftruncate(descriptor, SIZE)
        os.pwrite(descriptor, os.urandom(KEY_BYTES), _OFFSETS[Area.RANDOM_KEY])
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

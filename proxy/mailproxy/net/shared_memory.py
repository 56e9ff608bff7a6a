# SPDX-License-Identifier: Apache-2.0
"""Memory that all workers of a supervisor share: one file without a name, divided into areas.

Pages that nobody has written to take no memory, so that an area that is not used costs nothing.
The memory is the same for all configurations: what is in it survives reloads and the end of workers.
"""

from __future__ import annotations

import mmap
import os
from enum import Enum
from typing import Final


class Area(Enum):
    """A part of the memory, and its size in bytes: a multiple of ``mmap.ALLOCATIONGRANULARITY``."""

    UPSTREAM_HEALTH = 64 * 1024
    LIMITS = 72 * 1024 * 1024


def _offsets() -> dict[Area, int]:
    offsets, end = {}, 0
    for area in Area:
        offsets[area] = end
        end += area.value
    return offsets


_OFFSETS: Final = _offsets()
SIZE: Final = sum(area.value for area in Area)


class SharedMemory:
    """The memory, as one process has it.

    Args:
        descriptor: Of the file, which stays open; -1 for memory of this process alone.
    """

    __slots__ = ("_views", "descriptor")

    def __init__(self, descriptor: int = -1) -> None:
        self.descriptor = descriptor
        self._views: dict[Area, memoryview] = {}

    def view(self, area: Area) -> memoryview:
        """Return the bytes of an area, all zero at first."""
        if area not in self._views:
            offset = 0 if self.descriptor < 0 else _OFFSETS[area]
            self._views[area] = memoryview(mmap.mmap(self.descriptor, area.value, offset=offset))
        return self._views[area]


def create() -> int:
    """Make the file; returns its descriptor.

    Raises:
        OSError: There is no memory or no descriptor.
    """
    descriptor = os.memfd_create("mailproxy")
    try:
        os.ftruncate(descriptor, SIZE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

# SPDX-License-Identifier: Apache-2.0
"""A compiled table of routes, as a worker uses it: memory that all workers of a pod share."""

from __future__ import annotations

import mmap

from mailproxy.routing.router import RouteMatch
from mailproxy.routing.table_compiler import ENTRY, HEADER, MAGIC, SLOT, group_names, slot_of


class RouteTable:
    """A table; nothing is loaded before a look-up.

    Args:
        descriptor: Of a file with a compiled table, which is not closed.

    Raises:
        OSError: The file cannot be mapped.
        ValueError: It has no compiled table.
    """

    __slots__ = ("_data", "_groups", "_mask", "_matches", "_slots")

    def __init__(self, descriptor: int) -> None:
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        magic, count, start, _ = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ValueError("this is no compiled table of routes")
        self._data = data
        self._mask = count - 1
        self._slots = memoryview(data)[HEADER.size : start].cast(SLOT)
        self._groups = tuple(group_names(memoryview(data)))
        self._matches: tuple[RouteMatch, ...] = tuple(map(RouteMatch, self._groups))

    def find(self, key: bytes) -> RouteMatch | None:
        """Return the entry of a login name, or of ``@`` and a domain; domains are in lower case."""
        data, slots, mask = self._data, self._slots, self._mask
        slot = slot_of(key, mask)
        while offset := slots[slot]:
            length, login_length, group = ENTRY.unpack_from(data, offset)
            offset += ENTRY.size
            end = offset + length
            if data[offset:end] == key:
                if not login_length:
                    match: RouteMatch = self._matches[group]
                    return match
                return RouteMatch(self._groups[group], data[end : end + login_length])
            slot = (slot + 1) & mask
        return None

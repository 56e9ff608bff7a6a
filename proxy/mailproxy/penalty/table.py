# SPDX-License-Identifier: Apache-2.0
"""A table of records in shared memory, found by a 64-bit key.

The key selects a set of ``WAYS`` slots.  In a full set the record with the oldest time is replaced, so that
the table never grows and needs no clean-up.  Keys are hashes with a secret key: nobody can choose
addresses that share a set.

Workers change a record while they hold the lock of its set.  The kernel gives the locks of a process back
when it dies.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any, Final

WAYS: Final = 64
KNOWN: Final = 4096
"""Keys whose slots a process remembers, so that it does not search for those that come often."""
_KEY: Final = 8
_SET_BYTES: Final = WAYS * _KEY


class ByteLocks:
    """Locks between processes, on single bytes of a file.

    Args:
        descriptor: Of the file; -1 for memory of one process, which needs no locks.
        start: The first byte of those that may be locked.
    """

    __slots__ = ("_descriptor", "_start")

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor = descriptor
        self._start = start

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Hold a lock; waits for it."""
        if self._descriptor < 0:
            yield
            return
        where = self._start + number
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, where)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, where)

    def take(self, number: int) -> bool:
        """Take a lock if no other process has it; returns whether it is held now."""
        if self._descriptor < 0:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._start + number)
        except OSError:
            return False
        return True

    def give_back(self, number: int) -> None:
        """Release a lock."""
        if self._descriptor >= 0:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, self._start + number)


class Table:
    """Records of one kind.

    Args:
        memory: Its bytes: ``size_of(sets, layout)`` of them.
        layout: The format of a record; its first field is the time of its last change, in seconds.
        locks: The locks of the pod.
        first_lock: The number of the lock of the first set.
    """

    __slots__ = ("_bodies", "_first_lock", "_keys", "_known", "_layout", "_locks", "_numbers", "sets")

    def __init__(self, memory: memoryview, layout: Struct, locks: ByteLocks, first_lock: int) -> None:
        self.sets = len(memory) // (WAYS * (_KEY + layout.size))
        keys_end = self.sets * _SET_BYTES
        self._keys = memory[:keys_end]
        self._numbers = self._keys.cast("Q")
        self._bodies = memory[keys_end:]
        self._layout = layout
        self._locks = locks
        self._first_lock = first_lock
        self._known: dict[int, int] = {}
        """The slots in which records were found before, by key."""

    @property
    def slots(self) -> int:
        """The most records."""
        return self.sets * WAYS

    def locked(self, key: int) -> Any:  # noqa: ANN401 - a context manager of contextlib
        """Hold the lock of the record with this key."""
        return self._locks.hold(self._first_lock + key % self.sets)

    def get(self, key: int) -> tuple[Any, ...] | None:
        """Return the fields of a record."""
        slot = self._known.get(key, -1)
        if slot < 0 or self._numbers[slot] != key:
            slot = self._find(key)
        return None if slot < 0 else self._layout.unpack_from(self._bodies, slot * self._layout.size)

    def put(self, key: int, *fields: Any) -> None:  # noqa: ANN401 - as the layout has them
        """Write a record, in the place of the oldest one of a full set.  Call it with the lock."""
        slot = self._find(key)
        is_new = slot < 0
        if is_new:
            slot = self._free(key)
            self._numbers[slot] = 0
        self._layout.pack_into(self._bodies, slot * self._layout.size, *fields)
        if is_new:
            self._numbers[slot] = key

    def remove(self, key: int) -> None:
        """Delete a record, if there is one.  Call it with the lock."""
        slot = self._find(key)
        if slot >= 0:
            self._numbers[slot] = 0

    def _find(self, key: int) -> int:
        slot = self._search(key % self.sets, key)
        if slot >= 0:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = slot
        return slot

    def _search(self, number: int, key: int) -> int:
        """Return the slot of a set that has this key, -1 for none; the key of a free slot is 0."""
        first = number * WAYS
        data, wanted = (
            self._keys[first * _KEY : (first + WAYS) * _KEY].tobytes(),
            key.to_bytes(_KEY, sys.byteorder),
        )
        at = data.find(wanted)
        while at >= 0 and at % _KEY:
            at = data.find(wanted, at + 1)
        return -1 if at < 0 else first + at // _KEY

    def _free(self, key: int) -> int:
        """Return a free slot for a key, or the one with the oldest record."""
        number = key % self.sets
        free = self._search(number, 0)
        return free if free >= 0 else min(range(number * WAYS, (number + 1) * WAYS), key=self._time)

    def _time(self, slot: int) -> float:
        (when, *_) = self._layout.unpack_from(self._bodies, slot * self._layout.size)
        return float(when)


def size_of(sets: int, layout: Struct) -> int:
    """Return the bytes of a table."""
    return sets * WAYS * (_KEY + layout.size)

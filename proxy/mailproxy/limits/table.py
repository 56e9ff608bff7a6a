# SPDX-License-Identifier: Apache-2.0
"""Zones in the memory that all workers share: where each one is, and which processes use it.

The area begins with a random key for hashes and a directory of zones.  A zone is found by its name, kind,
key and size, so that a reload keeps its counts.  Its place is given to another zone when no process
uses it.

Each process has a number, and holds the lock of that number (``fcntl.lockf``) as long as it lives.  The
counts of a number whose lock is free belong to a process that was killed: ``reclaim`` removes them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final

from mailproxy.limits.mutex import address_of
from mailproxy.limits.request_zone import ReqZone
from mailproxy.limits.zones import CONN, PROCESSES, ConnZone, Place, entries_of, make_zone
from mailproxy.net.shared_memory import Area, SharedMemory
from mailproxy.telemetry.metrics import LimitZoneMetrics

MAX_PARTS: Final = 64
MAX_PROCESSES: Final = 1023
HASHES_KEPT: Final = 8192
"""Hashes of keys that a process keeps, so that those of addresses and users that come often are not made."""

_KEY: Final = slice(0, 16)
_DIRECTORY: Final = 64
_ENTRY: Final = 256
_USERS: Final = 128
"""Offset of the bitmap of processes in an entry."""
_DATA: Final = 32 * 1024
_FIELDS: Final = struct.Struct("<QQQB64p")
"""Hash of the definition (0: the entry is free), offset, size, kind, name."""
_LOCKS: Final = 1 << 40
"""Offset of the locks in the file, behind its end: of the directory, then of the numbers of processes."""
_PAGE: Final = 4096

Key = tuple[int, bytes]
"""The hash of a key: as a number, and as its bytes in memory."""
_INSTEAD_OF_ZERO: Final = (1, b"\1" + bytes(7))


class Part:
    """An entry of the directory."""

    __slots__ = ("definition", "index", "kind", "name", "offset", "size")

    def __init__(self, index: int, data: memoryview) -> None:
        self.index = index
        self.definition, self.offset, self.size, self.kind, name = _FIELDS.unpack_from(data)
        self.name: str = name.decode("utf-8", "replace")


class _Hashes(dict[bytes, Key]):
    """Keyed hashes; those of addresses and users that come often are kept.

    Args:
        secret: The key.
    """

    def __init__(self, secret: bytes) -> None:
        super().__init__()
        self._secret = secret

    def __missing__(self, data: bytes) -> Key:
        digest = blake2b(data, digest_size=8, key=self._secret).digest()
        key = (int.from_bytes(digest, "little"), digest) if any(digest) else _INSTEAD_OF_ZERO
        if len(self) >= HASHES_KEPT:
            self.clear()
        self[data] = key
        return key


class LimitTable:
    """The zones, as one process has them.

    Args:
        memory: The memory of all workers.

    Attributes:
        hash_key: Returns the ``Key`` of up to 255 bytes; nobody outside can choose keys with equal hashes.
        number: Of this process, from 1; 0 before ``begin``.
    """

    __slots__ = ("_address", "_descriptor", "_file", "_memory", "hash_key", "number")

    def __init__(self, memory: SharedMemory) -> None:
        self._descriptor = memory.descriptor
        self._memory = memory.view(Area.LIMITS)
        self._file: mmap.mmap = self._memory.obj  # type: ignore[assignment]
        self._address = address_of(self._file)
        self.number = 0
        self.hash_key: Callable[[bytes], Key]

    def begin(self) -> None:
        """Take a number, and the key for hashes, which the first process makes; before anything is opened.

        Raises:
            OSError: There are too many processes.
        """
        with self._directory():
            self._claim_number()
            if not any(self._memory[_KEY]):
                self._memory[_KEY] = os.urandom(15) + b"\1"
            secret = bytes(self._memory[_KEY])
        self.hash_key = _Hashes(secret).__getitem__

    def open_conn(self, name: str, definition: str, size: int, results: LimitZoneMetrics) -> ConnZone | None:
        """Return a zone that counts sessions; see ``open_req``."""
        place = self._open(name, f"conn {definition}", size, CONN)
        return None if place is None else ConnZone(place, self.number, results)

    def open_req(self, name: str, definition: str, size: int, results: LimitZoneMetrics) -> ReqZone | None:
        """Return a zone that counts logins.

        Args:
            name: Its name.
            definition: Its key.
            size: In bytes.
            results: Counters.

        Returns:
            ``None`` if there is no place, because zones of earlier configurations are in use.
        """
        place = self._open(name, f"req {definition}", size, 0)
        return None if place is None else ReqZone(place, results)

    def close(self, zone: ConnZone | ReqZone) -> None:
        """This process does not use a zone any more; it has counted no sessions there."""
        zone.close()
        with self._directory():
            for part in self._parts():
                if part.offset == zone.offset:
                    self._set_user(part, self.number, uses=False)

    def reclaim(self) -> int:
        """Remove the counts of processes that were killed; returns how many there were."""
        if not any(self._memory[_KEY]):
            return 0
        found = 0
        with self._directory():
            for number in self._users():
                if number != self.number and self._lock_number(number):
                    self._remove(number)
                    self._unlock_number(number)
                    found += 1
        return found

    def entries(self) -> dict[str, tuple[int, int]]:
        """Return the entries in use and the places of each zone that some process uses."""
        if not any(self._memory[_KEY]):
            return {}
        with self._directory():
            return {
                part.name: entries_of(self._place(part)) for part in self._parts() if self._users_of(part)
            }

    # -- the directory

    @contextmanager
    def _directory(self) -> Iterator[None]:
        """Hold the lock of the directory; it is released when a process is killed."""
        if self._descriptor < 0:
            yield
            return
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, _LOCKS)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _LOCKS)

    def _open(self, name: str, definition: str, size: int, kind: int) -> Place | None:
        with self._directory():
            wanted = self.hash_key(f"{name} {definition} {size}".encode())[0]
            part = next((one for one in self._parts() if one.definition == wanted), None)
            part = part or self._make(name, wanted, size, kind)
            if part is None:
                return None
            self._set_user(part, self.number, uses=True)
            return self._place(part)

    def _make(self, name: str, definition: int, size: int, kind: int) -> Part | None:
        """Give a zone a place; zones that nobody uses lose theirs if there is no other."""
        offset = self._find_place(size)
        while offset < 0:
            unused = next((one for one in self._parts() if not self._users_of(one)), None)
            if unused is None:
                return None
            self._entry(unused.index)[:_ENTRY] = bytes(_ENTRY)
            offset = self._find_place(size)
        index = next(i for i in range(MAX_PARTS) if not any(self._entry(i)[:8]))
        self._file.madvise(mmap.MADV_REMOVE, offset, _pages(size))  # zero, and without pages
        entry = self._entry(index)
        make_zone(Place(self._memory, self._address, offset, size, kind))
        _FIELDS.pack_into(entry, 0, definition, offset, size, kind, name.encode())
        return Part(index, entry)

    def _find_place(self, size: int) -> int:
        """Return the offset of the first free place of a size, -1 for none."""
        parts = sorted(self._parts(), key=lambda part: part.offset)
        if len(parts) == MAX_PARTS:
            return -1
        end = _DATA
        for part in parts:
            if part.offset - end >= size:
                break
            end = _pages(part.offset + part.size)
        return end if end + size <= len(self._memory) else -1

    def _parts(self) -> list[Part]:
        found = (Part(index, self._entry(index)) for index in range(MAX_PARTS))
        return [part for part in found if part.definition]

    def _entry(self, index: int) -> memoryview:
        start = _DIRECTORY + index * _ENTRY
        return self._memory[start : start + _ENTRY]

    def _place(self, part: Part) -> Place:
        return Place(self._memory, self._address, part.offset, part.size, part.kind)

    # -- processes

    def _users_of(self, part: Part) -> int:
        return int.from_bytes(self._entry(part.index)[_USERS:], "little")

    def _set_user(self, part: Part, number: int, *, uses: bool) -> None:
        bit = 1 << number
        users = self._users_of(part) & ~bit | (bit if uses else 0)
        self._entry(part.index)[_USERS:] = users.to_bytes(_ENTRY - _USERS, "little")

    def _users(self) -> list[int]:
        users = 0
        for part in self._parts():
            users |= self._users_of(part)
        return [number for number in range(1, users.bit_length()) if users >> number & 1]

    def _claim_number(self) -> None:
        """Take the first free number, and remove what a killed process has left under it."""
        for number in range(1, MAX_PROCESSES + 1):
            if self._lock_number(number):
                self._remove(number)
                self.number = number
                processes = self._memory[PROCESSES].cast("H")
                processes[0] = max(processes[0], number)
                return
        raise OSError("there are too many processes")

    def _lock_number(self, number: int) -> bool:
        if self._descriptor < 0:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKS + number)
        except OSError:
            return False
        return True

    def _unlock_number(self, number: int) -> None:
        if self._descriptor >= 0:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _LOCKS + number)

    def _remove(self, number: int) -> None:
        """Remove the counts of a process, whose number is locked."""
        for part in self._parts():
            if self._users_of(part) >> number & 1:
                if part.kind == CONN:
                    ConnZone(self._place(part), number).remove_all()
                self._set_user(part, number, uses=False)


def _pages(size: int) -> int:
    """Round up to whole pages."""
    return -(-size // _PAGE) * _PAGE

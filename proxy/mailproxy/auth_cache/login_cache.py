# SPDX-License-Identifier: Apache-2.0
"""The entries of a cache: bounded memory, the entry that was unused for longest is dropped first.

Pure data without a clock: every method gets the time.  A key is a keyed hash, and an entry does not have the
client's password.  But it has the decision, and so a password of the upstream where the service sent one.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import islice
from typing import Any, Final

from mailproxy.protocols.types import AuthAllowed, AuthDenied, Secret

ENTRY_OVERHEAD: Final = 224
"""Bytes of an entry in the table itself, just after the table has grown, which is its worst case.

Per entry these are up to six places: each with 8 bytes of index and 8 of order, and two thirds of them with
24 bytes of hash, key and value; and 48 bytes of a list node.
"""
SWEEP_ENTRIES: Final = 1000
"""Entries that one sweep deletes at most; takes about a millisecond."""
_ALIGNMENT: Final = 16
"""The allocator rounds up to so many bytes."""
_LEAVES: Final = frozenset({bytes, str, int, float})


class CacheEntry:
    """One decision of the service.

    Attributes:
        decision: The decision.  Its password is ``None`` where ``has_client_password`` is set.
        fresh_until: Until when it is used without a request.
        head: The head of the response without passwords, where limits depend on its headers; else empty.
        has_client_password: Whether the upstream gets the client's own password.
        size: Bytes that the entry takes.
        stale_until: Until when it is used while the service fails; not before ``fresh_until``.
    """

    __slots__ = ("decision", "fresh_until", "has_client_password", "head", "size", "stale_until")

    def __init__(
        self,
        decision: AuthAllowed | AuthDenied,
        *,
        has_client_password: bool,
        fresh_until: float,
        stale_until: float,
        head: bytes = b"",
    ) -> None:
        self.decision = decision
        self.has_client_password = has_client_password
        self.head = head
        self.fresh_until = fresh_until
        self.stale_until = max(stale_until, fresh_until)
        self.size = 0


class LoginCache:
    """The entries of one cache.

    Args:
        size: The most bytes of all entries together.
        on_change: Called with the change of the number of entries and of their bytes.

    Attributes:
        used: Bytes of all entries.
    """

    __slots__ = ("_entries", "_on_change", "_size", "used")

    def __init__(self, size: int, on_change: Callable[[int, int], None]) -> None:
        self._entries: OrderedDict[bytes, CacheEntry] = OrderedDict()
        self._on_change = on_change
        self._size = size
        self.used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<LoginCache with {len(self._entries)} entries>"

    def find(self, key: bytes, now: float) -> CacheEntry | None:
        """Return the entry of a login, if it may be used now at least while the service fails."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.stale_until <= now:
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def store(self, key: bytes, entry: CacheEntry) -> int:
        """Keep a decision, and drop others that were unused for longest to make room for it.

        Returns:
            How many were dropped.  An entry that is larger than the cache is not kept.
        """
        self.drop(key)
        entry.size = size = ENTRY_OVERHEAD + size_of(key) + size_of(entry)
        if size > self._size:
            return 0
        evicted = 0
        while self.used + size > self._size:
            self.drop(next(iter(self._entries)))
            evicted += 1
        self._entries[key] = entry
        self.used += size
        self._on_change(1, size)
        return evicted

    def drop(self, key: bytes) -> None:
        """Delete the entry of a login, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.used -= entry.size
            self._on_change(-1, -entry.size)

    def sweep(self, now: float) -> bool:
        """Delete entries that are of no use any more, from the one that was unused for longest.

        It ends at the first that is still of use.  So an entry is deleted at the latest when as much time as
        it was of use has passed again.

        Returns:
            Whether there may be more of them.
        """
        useless: list[bytes] = []
        for key, entry in islice(self._entries.items(), SWEEP_ENTRIES):
            if entry.stale_until > now:
                break
            useless.append(key)
        for key in useless:
            self.drop(key)
        return len(useless) == SWEEP_ENTRIES

    def clear(self) -> None:
        """Delete all entries."""
        self._on_change(-len(self._entries), -self.used)
        self._entries.clear()
        self.used = 0


def size_of(value: Any) -> int:  # noqa: ANN401 -- a value of any type
    """Return the bytes that a value takes with all that it refers to, except for constants."""
    kind = value.__class__
    if kind in _LEAVES:
        return int(-(-value.__sizeof__() // _ALIGNMENT) * _ALIGNMENT)
    names = _attributes(kind)
    if names is None:
        return 0
    found = -(-sys.getsizeof(value) // _ALIGNMENT) * _ALIGNMENT
    for part in value if kind is tuple else [getattr(value, name) for name in names]:
        found += size_of(part)
    return found


@cache
def _attributes(kind: type) -> tuple[str, ...] | None:
    """Return the attributes of objects of a class; ``None`` if they are constants."""
    if kind is type(None) or issubclass(kind, bool | Enum):
        return None
    if kind is Secret:
        return ("_data",)
    if kind is CacheEntry:
        return CacheEntry.__slots__
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()

# SPDX-License-Identifier: Apache-2.0
"""A list of users and password hashes: its text, and the form that all workers of a pod share.

A line is a user and a hash with a colon between, as ``htpasswd`` writes it; what follows a second colon
is ignored, as in a password file of Dovecot.  Empty lines and lines that begin with ``#`` are ignored.
The list is checked as a whole: one with an invalid line is refused.

The compiled list has, in this order: ``HEADER``, the offsets of the entries and of their end, and the
entries, sorted by user: user, NUL, hash.  The first one has an empty user and a hash of no password, for
users that are not in the list.
"""

from __future__ import annotations

import mmap
from array import array
from bisect import bisect_left
from collections import Counter
from struct import Struct
from typing import Final

from mailproxy.routing.login_name import MAX_NAME, normalised, routed_name
from mailproxy.routing.table_compiler import MAX_REPORTED, TableRefused
from mailproxy.users.password_hash import HashCost, dummy_hash, hash_cost

MAX_LIST_BYTES: Final = 16 * 1024 * 1024
"""The largest text.  A Secret has at most 1 MiB: about 10,000 users."""
MAGIC: Final = b"users--1"
HEADER: Final = Struct("=8sQ")
"""Magic and number of entries."""
OFFSET: Final = "I"

_LINE: Final = "user:hash"


def compile_users(text: bytes) -> bytearray:
    """Compile a list.

    Args:
        text: Its lines.

    Raises:
        TableRefused: The text is too large, has no user, or lines are invalid.
    """
    if len(text) > MAX_LIST_BYTES:
        raise TableRefused([(0, f"has more than {MAX_LIST_BYTES} bytes: use an authentication service")])
    return _Compiler().run(text.removeprefix(b"\xef\xbb\xbf"))


class _Compiler:
    """One list while it is compiled."""

    def __init__(self) -> None:
        self._hashes: dict[bytes, bytes] = {}
        self._lines: dict[bytes, int] = {}
        self._costs: Counter[HashCost] = Counter()
        self._examples: dict[HashCost, bytes] = {}

    def run(self, text: bytes) -> bytearray:
        problems: list[tuple[int, str]] = []
        for number, raw in enumerate(text.split(b"\n"), 1):
            line = raw.removesuffix(b"\r")
            if not line.strip() or line.startswith(b"#"):
                continue
            try:
                self._add(line, number)
            except ValueError as error:
                problems.append((number, str(error)))
                if len(problems) >= MAX_REPORTED:
                    break
        if not problems and not self._hashes:
            problems.append((0, f'has no user: a line is "{_LINE}"'))
        if problems:
            raise TableRefused(problems)
        return self._pack()

    def _add(self, line: bytes, number: int) -> None:
        """Add a line.

        Raises:
            ValueError: It is invalid.  The message has no part of it.
        """
        user, colon, rest = line.partition(b":")
        if not colon:
            raise ValueError(f'a line is "{_LINE}"')
        if routed_name(user) is None:
            raise ValueError(f"a user has 1 to {MAX_NAME} bytes, no control character, and at most one @")
        hashed = rest.partition(b":")[0]
        cost = hash_cost(hashed)
        key = normalised(user)
        if key in self._lines:
            raise ValueError(f"the user is already in line {self._lines[key]}: remove one of the two")
        self._lines[key], self._hashes[key] = number, hashed
        self._costs[cost] += 1
        self._examples.setdefault(cost, hashed)

    def _pack(self) -> bytearray:
        [(most_frequent, _)] = self._costs.most_common(1)
        self._hashes[b""] = dummy_hash(self._examples[most_frequent])
        entries = [b"%b\0%b" % (user, self._hashes[user]) for user in sorted(self._hashes)]
        offset = HEADER.size + (len(entries) + 1) * array(OFFSET).itemsize
        offsets = array(OFFSET, [offset])
        for entry in entries:
            offset += len(entry)
            offsets.append(offset)
        return bytearray(HEADER.pack(MAGIC, len(entries)) + offsets.tobytes() + b"".join(entries))


class UserList:
    """A compiled list, as a worker uses it.

    Args:
        descriptor: Of a file with a compiled list, which is not closed.

    Raises:
        OSError: The file cannot be mapped.
        ValueError: It has no compiled list.
    """

    __slots__ = ("_data", "_indexes", "_offsets", "dummy")

    dummy: bytes
    """A hash of no password, with the costs of most users."""

    def __init__(self, descriptor: int) -> None:
        data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        magic, count = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ValueError("this is no compiled list of users")
        end = HEADER.size + (count + 1) * array(OFFSET).itemsize
        self._data = data
        self._offsets = memoryview(data)[HEADER.size : end].cast(OFFSET)
        self._indexes = range(count)
        self.dummy = self._entry(0)[1]

    def __len__(self) -> int:
        return len(self._indexes) - 1

    def __repr__(self) -> str:
        return f"<UserList of {len(self)}>"

    def find(self, user: bytes) -> bytes | None:
        """Return the hash of a user, ``None`` for one that is not in the list.

        Args:
            user: The login name as the client sent it.
        """
        if routed_name(user) is None:
            return None
        key = normalised(user)
        index = bisect_left(self._indexes, key, key=lambda each: self._entry(each)[0])
        if index == len(self._indexes):
            return None
        found, hashed = self._entry(index)
        return hashed if found == key else None

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        user, _, hashed = self._data[self._offsets[index] : self._offsets[index + 1]].partition(b"\0")
        return user, hashed

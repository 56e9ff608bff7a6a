# SPDX-License-Identifier: Apache-2.0
"""Compiles the text of a table of routes to a read-only hash table, which workers share.

A line is a login name, or ``@`` and a domain; blanks; the name of a group; and perhaps blanks and the
login name at the upstream.  ``#`` at the start of a field begins a comment.  The table is checked as a
whole: one with an invalid line, or with two different targets of one name, is refused.

The compiled table has, in this order: ``HEADER``, the slots (offsets of entries, 0 is none), the names of
the groups with a line end after each, and the entries: ``ENTRY``, key, and login.  Entries are found by
linear probing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from struct import Struct
from types import MappingProxyType
from typing import Final

from mailproxy.routing.login_name import MAX_NAME, normalised

MAX_TABLE_BYTES: Final = 32 * 1024 * 1024
"""The largest text: about a million lines.  ``file_watcher`` compares as many bytes of a file."""
MAX_REPORTED: Final = 10
"""Invalid lines that are reported of one table."""
MAGIC: Final = b"routes-1"
HEADER: Final = Struct("=8sQQQ")
"""Magic, number of slots, offset of the groups, offset of the first entry."""
SLOT: Final = "I"
ENTRY: Final = Struct("=HBH")
"""Lengths of key and login, and index of the group."""

_ENTRY_LINE: Final = re.compile(rb"^[ \t\r]*([^ \t\r\n#][^\n]*)", re.MULTILINE)
"""A line that is neither empty nor a comment, and what is in it behind the blanks."""
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_BLANKS: Final = re.compile(rb"[ \t]+")
_DOMAIN: Final = re.compile(
    rb"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
_MAX_QUOTED: Final = 80


class TableRefused(Exception):
    """A table has invalid lines.

    Attributes:
        problems: Numbers of lines (from 1; 0 for the whole file), and what is wrong with each: without
            any part of the line.
        lines: The beginning of such lines in quotes, by their numbers.
    """

    def __init__(
        self, problems: Collection[tuple[int, str]], lines: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        super().__init__("; ".join(reason for _, reason in problems))
        self.problems = tuple(problems)
        self.lines = lines


def slot_of(key: bytes, mask: int) -> int:
    """Return the first slot of a key.

    Args:
        key: A login name, or ``@`` and a domain; domains are in lower case.
        mask: The number of slots, which is a power of two, less one.
    """
    return int.from_bytes(blake2b(key, digest_size=4).digest(), "big") & mask


def compile_table(text: bytes, groups: Collection[str]) -> bytearray:
    """Compile a table.

    Args:
        text: Its lines.
        groups: The names that lines may have.

    Raises:
        TableRefused: The text is too large, or lines are invalid.
    """
    if len(text) > MAX_TABLE_BYTES:
        raise TableRefused([(0, f"has {len(text)} bytes, more than {MAX_TABLE_BYTES}: use several tables")])
    return _Compiler(text.removeprefix(b"\xef\xbb\xbf"), groups).run()


class _Compiler:
    """One table while it is compiled."""

    def __init__(self, text: bytes, groups: Collection[str]) -> None:
        self._text = text
        names = sorted(groups)
        self._groups = {name.encode(): index for index, name in enumerate(names)}
        entries = sum(1 for _ in _ENTRY_LINE.finditer(text))
        self._mask = (1 << max(2 * entries - 1, 1).bit_length()) - 1
        self._slots = array(SLOT, (0,)) * (self._mask + 1)
        heading = b"".join(name.encode() + b"\n" for name in names)
        self._start = HEADER.size + len(self._slots) * self._slots.itemsize
        self._entries = bytearray(heading)
        self._header = HEADER.pack(MAGIC, self._mask + 1, self._start, self._start + len(heading))
        self._problems: list[tuple[int, str]] = []
        self._lines: dict[int, str] = {}

    def run(self) -> bytearray:
        number, counted = 1, 0
        for match in _ENTRY_LINE.finditer(self._text):
            number += self._text.count(b"\n", counted, match.start(1))
            counted = match.start(1)
            stripped = match[1].rstrip(b" \t\r")
            try:
                self._add(*self._fields(stripped))
            except ValueError as error:
                self._problems.append((number, str(error)))
                self._lines[number] = _quote(stripped)
                if len(self._problems) >= MAX_REPORTED:
                    break
        if self._problems:
            raise TableRefused(self._problems, self._lines)
        table = bytearray(self._header)
        table += memoryview(self._slots).cast("B")
        table += self._entries
        return table

    def _fields(self, line: bytes) -> tuple[bytes, int, bytes]:
        """Return key, index of the group, and login of a line.

        Raises:
            ValueError: The line is invalid.  The message has no part of it.
        """
        if _CONTROLS.search(line):
            raise ValueError("there is a control character: remove it")
        fields = _BLANKS.split(line)
        for index, each in enumerate(fields):
            if each.startswith(b"#"):
                del fields[index:]
                break
        if not 2 <= len(fields) <= 3:
            raise ValueError('a line is "user-or-@domain upstream [login]"')
        group = self._groups.get(fields[1])
        if group is None:
            known = b", ".join(self._groups).decode()
            raise ValueError(f"the upstream is not in spec.upstreams ({known})")
        return _key(fields[0]), group, _login(fields[2]) if len(fields) == 3 else b""

    def _add(self, key: bytes, group: int, login: bytes) -> None:
        """Add an entry.

        Raises:
            ValueError: The key is there with another target.
        """
        slots, mask = self._slots, self._mask
        slot = slot_of(key, mask)
        entry = ENTRY.pack(len(key), len(login), group) + key + login
        while slots[slot]:
            at = slots[slot] - self._start
            length = ENTRY.unpack_from(self._entries, at)[0]
            if length == len(key) and self._entries.startswith(key, at + ENTRY.size):
                if self._entries.startswith(entry, at):
                    return
                raise ValueError("an earlier line has another target for this name: remove one of them")
            slot = (slot + 1) & mask
        slots[slot] = self._start + len(self._entries)
        self._entries += entry


def _key(text: bytes) -> bytes:
    """Check a login name, or ``@`` and a domain, and return it with its domain in lower case."""
    if len(text) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} bytes")
    if text.count(b"@") > 1:
        raise ValueError("a name has at most one @")
    local, at, domain = text.partition(b"@")
    if not local and domain.startswith(b"*"):
        raise ValueError("wildcards are not possible in a table: use a route with domains")
    if at and not _DOMAIN.fullmatch(domain):
        raise ValueError(
            "what follows the @ must be a domain as A-labels: example.org, xn--bcher-kva.example"
        )
    return normalised(text)


def _login(text: bytes) -> bytes:
    if len(text) > MAX_NAME:
        raise ValueError(f"a login has at most {MAX_NAME} bytes")
    return text


def _quote(text: bytes) -> str:
    shown = text.decode("utf-8", "backslashreplace")
    return repr(shown if len(shown) <= _MAX_QUOTED else shown[:_MAX_QUOTED] + "...")


def group_names(table: bytes | bytearray | memoryview) -> Iterator[str]:
    """Yield the names of the groups of a compiled table, by their index."""
    _, _, start, end = HEADER.unpack_from(table)
    yield from bytes(table[start:end]).decode().split("\n")[:-1]

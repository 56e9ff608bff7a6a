# SPDX-License-Identifier: Apache-2.0
"""Loads the tables of routes in the supervisor, and keeps the last good version of each."""

from __future__ import annotations

import os
import re
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from mailproxy.routing.table_compiler import MAX_TABLE_BYTES, TableRefused, compile_table
from mailproxy_config.errors import Problem
from mailproxy_config.model import ProxyConfig

_IN_SECRET: Final = re.compile("/secrets/[^/]+/[^/]+")
"""The path of a key of a Secret: see ``mailproxy_config.secret_refs.Mounts``."""


class TableFile:
    """A compiled table in a file without a name, for workers to map.

    Args:
        compiled: The table.
        digest: Of its text, and the groups that lines may have.
        groups: These groups.

    Raises:
        OSError: There is no memory or no descriptor.
    """

    def __init__(self, compiled: bytearray, digest: bytes, groups: frozenset[str]) -> None:
        self._descriptor = os.memfd_create("mailproxy-routes")
        weakref.finalize(self, os.close, self._descriptor)
        with open(self._descriptor, "wb", closefd=False) as file:
            file.write(compiled)
        self.digest = digest
        self.groups = groups

    def fileno(self) -> int:
        """Return the descriptor, which is closed with the last reference to this object."""
        return self._descriptor


@dataclass(frozen=True, slots=True)
class LoadedTables:
    """All tables of a configuration.

    Attributes:
        files: The tables, by the paths of their texts.
        errors: Lines of tables that are refused and have no earlier version.
        kept: Lines of tables whose earlier version is used.
    """

    files: Mapping[str, TableFile] = field(default_factory=dict)
    errors: tuple[Problem, ...] = ()
    kept: tuple[Problem, ...] = ()


def load_tables(config: ProxyConfig, previous: Mapping[str, TableFile]) -> LoadedTables:
    """Load the tables of all servers; blocks.

    A table that is refused stays as it was, if all groups of that time are still there.

    Args:
        config: The configuration.
        previous: The tables of the one before; those that have not changed are used again.
    """
    files: dict[str, TableFile] = {}
    errors: list[Problem] = []
    kept: list[Problem] = []
    for path, groups in _tables(config).items():
        last = previous.get(path)
        try:
            files[path] = _load(path, groups, last)
        except TableRefused as refused:
            problems = refused_lines(path, refused)
            if last is None or not last.groups <= groups:
                errors += problems
            else:
                files[path] = last
                kept += problems
    return LoadedTables(files, tuple(errors), tuple(kept))


def refused_lines(path: str, refused: TableRefused) -> list[Problem]:
    """Return what is wrong with a file, with its lines, unless it is in a Secret."""
    lines = {} if _IN_SECRET.search(path) else refused.lines
    return [
        Problem(f"{path}:{number}" if number else path, reason, lines.get(number, ""))
        for number, reason in refused.problems
    ]


def _tables(config: ProxyConfig) -> dict[str, frozenset[str]]:
    """Return the paths of all tables, with the names of the groups that exist."""
    return {
        route.table: frozenset(group.name for group in server.upstream_groups)
        for server in config.servers
        for route in server.route
        if route.table is not None
    }


def _load(path: str, groups: frozenset[str], last: TableFile | None) -> TableFile:
    try:
        text = read_table(path, MAX_TABLE_BYTES)
        digest = sha256("\n".join(sorted(groups)).encode() + b"\0" + text).digest()
        if last is not None and last.digest == digest:
            return last
        return TableFile(compile_table(text, groups), digest, groups)
    except OSError as error:
        raise TableRefused([(0, f"cannot be read: {error.strerror or error}")]) from error


def read_table(path: str, maximum: int) -> bytes:
    """Read a file, and make sure that it is not changed meanwhile.

    Args:
        path: The file.
        maximum: The largest size in bytes; of a larger file, one byte more is returned.

    Raises:
        OSError: It cannot be read.
        TableRefused: It is no regular file, too large, or was changed.
    """
    # Opening a pipe or a device could block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise TableRefused([(0, "is not a regular file")])
        text = file.read(maximum + 1)
        after = os.fstat(descriptor)
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size) or len(
        text
    ) < after.st_size <= maximum:
        raise TableRefused(
            [(0, "was changed while it was read: replace the file by renaming a complete one")]
        )
    return text

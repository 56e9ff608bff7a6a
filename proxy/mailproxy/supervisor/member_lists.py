# SPDX-License-Identifier: Apache-2.0
"""Reads the members of Services in the supervisor, and keeps the last valid version of each file.

The files are not part of the configuration: a change is sent to the workers as it is, and no server, socket
or session is touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mailproxy.file_watcher import FileWatcher
from mailproxy.routing.table_compiler import TableRefused
from mailproxy.routing.table_files import read_table
from mailproxy_config.errors import Problem
from mailproxy_config.model import ProxyConfig
from mailproxy_config.upstream_members import (
    MAX_DOCUMENT_BYTES,
    InvalidMembers,
    MemberDocument,
    MemberList,
    MemberState,
    parse_members,
)

Lists = Mapping[str, MemberList | None]
"""Lists by the name of the group; ``None`` for a group without one."""


@dataclass(slots=True)
class _MemberFile:
    """One file: its last valid version, and whether the newest one is invalid."""

    groups: frozenset[str]
    document: MemberDocument = field(default_factory=MemberDocument)
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class MembersRead:
    """What reading the files has changed.

    Attributes:
        changed: The lists that workers have to be sent.
        loaded: The files with a new valid version, and its generation.
        kept: The files that are invalid, and why; their last version is used.
    """

    changed: Lists = field(default_factory=dict)
    loaded: tuple[tuple[Path, int], ...] = ()
    kept: tuple[Problem, ...] = ()


class MemberLists:
    """The members of all groups of the running configuration."""

    def __init__(self) -> None:
        self._files: dict[Path, _MemberFile] = {}
        self._watcher = FileWatcher(())

    @property
    def is_changing(self) -> bool:
        """Whether a file was changing at the last poll; poll again soon."""
        return self._watcher.is_changing

    @property
    def kept(self) -> int:
        """The number of files of which an earlier version is used."""
        return sum(each.is_kept for each in self._files.values())

    def lists(self) -> dict[str, MemberList | None]:
        """Return the list of each group."""
        return {
            name: each.document.upstreams.get(name) for each in self._files.values() for name in each.groups
        }

    def counts(self) -> dict[tuple[str, ...], int]:
        """Return the number of members by group and state; groups without a list are left out."""
        found = ((name, each) for name, each in self.lists().items() if each is not None)
        return {(name, str(state)): each.count(state) for name, each in found for state in MemberState}

    def use(self, *configs: ProxyConfig) -> MembersRead:
        """Read the files that configurations name; blocks.  Known files are not read again."""
        before = self.lists()
        wanted: dict[Path, set[str]] = {}
        for config in configs:
            for name, path in _groups(config):
                wanted.setdefault(path, set()).add(name)
        known = self._files
        self._files = {
            path: _MemberFile(
                frozenset(names), *((known[path].document, known[path].is_kept) if path in known else ())
            )
            for path, names in wanted.items()
        }
        self._watcher.watch(wanted)
        return self._read(wanted.keys() - known.keys(), before)

    def poll(self) -> MembersRead:
        """Read the files that have changed since the last poll; blocks for some milliseconds."""
        return self._read(self._watcher.changed(), self.lists())

    def _read(self, paths: Collection[Path], before: Lists) -> MembersRead:
        loaded: list[tuple[Path, int]] = []
        kept: list[Problem] = []
        for path in sorted(paths):
            file = self._files[path]
            try:
                document = _load(path)
            except (InvalidMembers, TableRefused, OSError) as error:
                file.is_kept = True
                kept.append(Problem(str(path), str(error)))
                continue
            file.is_kept = False
            if document is not None:
                file.document = document
                loaded.append((path, document.generation))
        now = self.lists()
        gone = dict.fromkeys(before.keys() - now.keys())
        changed = {name: each for name, each in now.items() if name not in before or before[name] != each}
        return MembersRead({**gone, **changed}, tuple(loaded), tuple(kept))


def _load(path: Path) -> MemberDocument | None:
    """Read a file.

    Returns:
        ``None`` if there is none: the operator has not written it yet, or its ConfigMap was deleted.

    Raises:
        InvalidMembers: It is not complete and valid.
        TableRefused: It was changed while it was read.
        OSError: It cannot be read.
    """
    try:
        text = read_table(str(path), MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        return None
    return parse_members(text)


def _groups(config: ProxyConfig) -> Iterator[tuple[str, Path]]:
    for server in config.servers:
        for group in server.upstream_groups:
            if group.members is not None and group.members.file:
                yield group.name, Path(group.members.file)

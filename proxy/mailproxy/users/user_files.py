# SPDX-License-Identifier: Apache-2.0
"""Loads the lists of users in the supervisor, and keeps the last good version of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from mailproxy.routing.table_compiler import TableRefused
from mailproxy.routing.table_files import TableFile, read_table, refused_lines
from mailproxy.users.user_list import MAX_LIST_BYTES, compile_users
from mailproxy_config.errors import Problem
from mailproxy_config.model import ProxyConfig


@dataclass(frozen=True, slots=True)
class LoadedUsers:
    """All lists of users of a configuration.

    Attributes:
        files: The compiled lists, by the paths of their texts.
        errors: Lines of lists that are refused and have no earlier version.
        kept: Lines of lists whose earlier version is used.
    """

    files: Mapping[str, TableFile] = field(default_factory=dict)
    errors: tuple[Problem, ...] = ()
    kept: tuple[Problem, ...] = ()


def load_users(config: ProxyConfig, previous: Mapping[str, TableFile]) -> LoadedUsers:
    """Load the lists of users of all servers; blocks.

    A list that is refused stays as it was.

    Args:
        config: The configuration.
        previous: The lists of the one before; those that have not changed are used again.
    """
    files: dict[str, TableFile] = {}
    errors: list[Problem] = []
    kept: list[Problem] = []
    for path in dict.fromkeys(server.used_user_file for server in config.servers):
        if path is None:
            continue
        last = previous.get(path)
        try:
            files[path] = _load(path, last)
        except TableRefused as refused:
            problems = refused_lines(path, refused)
            if last is None:
                errors += problems
            else:
                files[path] = last
                kept += problems
    return LoadedUsers(files, tuple(errors), tuple(kept))


def _load(path: str, last: TableFile | None) -> TableFile:
    try:
        text = read_table(path, MAX_LIST_BYTES)
        digest = sha256(text).digest()
        if last is not None and last.digest == digest:
            return last
        return TableFile(compile_users(text), digest, frozenset())
    except OSError as error:
        raise TableRefused([(0, f"cannot be read: {error.strerror or error}")]) from error

# SPDX-License-Identifier: Apache-2.0
"""Finds the cause of errors in an ``nginx.conf``, so that what follows from it is not reported beside it.

A missing semicolon makes the next directive an argument of the one before; an
unknown directive leaves the one that was meant undefined.  ``separated`` cuts
such directives apart again, and ``Losses`` knows what a file would have said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from mailproxy_config.directives import DIRECTIVES, by_name
from mailproxy_config.errors import Problems
from mailproxy_config.nginx.syntax import Statement

BLOCKS: Final = frozenset({"mail", "server", "events", "http", "stream"})
_ARITIES: Final[Mapping[str, tuple[int, int | None]]] = {
    name: row.type.arity for name, row in by_name(DIRECTIVES).items()
}
_EVERYTHING: Final = "*"


def separated(statement: Statement, problems: Problems) -> Iterator[Statement]:
    """The statement, or several where a semicolon is missing at the end of a line, which is noted.

    An argument is taken for a directive only where it begins a line, where all
    arguments before it are what its directive wants, and all behind it what it wants itself.
    """
    name, start, where = statement.name, 0, statement.where
    for index, begins, before in _cuts(statement):
        ends = f'directive "{name[:64]}" is not terminated by ";"'
        problems.add(before, f'{ends}: is a ";" missing at the end of this line?')
        yield Statement(name, statement.arguments[start:index], None, where)
        name, start, where = statement.arguments[index], index + 1, begins
    yield (
        replace(statement, name=name, arguments=statement.arguments[start:], where=where)
        if start
        else statement
    )


def swallowed(statement: Statement) -> list[str]:
    """The names of directives among the arguments of a statement that has too many, or a wrong one."""
    return [word for word in statement.arguments if word in _ARITIES or word in BLOCKS]


def separator_hint(statement: Statement) -> str:
    """A question about a missing semicolon, where an argument has the name of a directive."""
    names = swallowed(statement)
    return f'; is a ";" missing before "{names[0]}"?' if names else ""


class Losses:
    """Directives that a level would have, were it not for an error that is reported already."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def add(self, level: str, *names: str) -> None:
        """Remember directives of a level (its path in a manifest); without names, all it may have had."""
        self._names.setdefault(level, set()).update(names or (_EVERYTHING,))

    def has(self, level: str, *names: str) -> bool:
        """Whether one of these directives was lost at a level, or at one from which it inherits."""
        known: set[str] = set()
        for each in {level, "spec.mail", "spec"}:
            known |= self._names.get(each, set())
        return _EVERYTHING in known or not known.isdisjoint(names)


def _cuts(statement: Statement) -> list[tuple[int, str, str]]:
    """The arguments at which a statement falls apart, with the line of each and the line before it."""
    cuts: list[tuple[int, str, str]] = []
    end, has_block = len(statement.arguments), statement.block is not None
    for index, where, before in reversed(statement.lines):
        name = statement.arguments[index]
        if index and _is_known(name) and _is_whole(name, end - index - 1, has_block=has_block):
            cuts.append((index, where, before))
            end, has_block = index, False
    while cuts and not _is_whole(statement.name, cuts[-1][0], has_block=False):
        cuts.pop()
    return cuts[::-1]


def _is_known(name: str) -> bool:
    return name in _ARITIES or name in BLOCKS


def _is_whole(name: str, count: int, *, has_block: bool) -> bool:
    """Whether a directive with so many arguments is complete; an unknown one may have any number."""
    if name in BLOCKS:
        return has_block and count == 0
    least, most = _ARITIES.get(name, (0, None))
    return not has_block and count >= least and (most is None or count <= most)

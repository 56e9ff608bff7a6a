# SPDX-License-Identifier: Apache-2.0
"""Errors of a configuration: all problems are collected and reported together, each with its path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

MAX_PROBLEMS: Final = 1000
"""Reading stops after this number of problems."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """An error in a configuration, or a notice.

    ``path`` is the location: ``spec.servers[1].listen[0].port`` in a manifest,
    ``nginx.conf:12`` in an nginx configuration, empty for the whole file.
    ``reason`` never contains a secret.  ``line`` is the quoted line of a table that is not in a Secret: it
    has names of users, so it is for the log and the terminal only.
    """

    path: str
    reason: str
    line: str = field(default="", compare=False)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.path, self.line, self.reason) if part)

    @property
    def without_line(self) -> str:
        """The text without names of users."""
        return f"{self.path}: {self.reason}" if self.path else self.reason


class ConfigError(Exception):
    """A configuration that cannot be used.

    Attributes:
        problems: All errors, in the order of the file; never empty.
        notices: Notices about the same configuration.
        partial: What could be read despite the errors, for further checks: of the type that the
            function which raised this returns, or ``None``.
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        *,
        notices: Iterable[Problem] = (),
        partial: Any = None,  # noqa: ANN401 -- of many types
    ) -> None:
        self.problems = tuple(problems)
        self.notices = tuple(notices)
        self.partial = partial
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


@dataclass(slots=True)
class Problems:
    """Collects errors and notices while a configuration is read."""

    found: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)

    def add(self, path: str, reason: str) -> None:
        """Add an error at ``path``.

        Raises:
            ConfigError: There are ``MAX_PROBLEMS`` errors now.
        """
        self.found.append(Problem(path, reason))
        if len(self.found) >= MAX_PROBLEMS:
            stopped = Problem("", f"reading stopped after {MAX_PROBLEMS} problems")
            raise ConfigError([*dict.fromkeys(self.found), stopped])

    def notice(self, path: str, reason: str) -> None:
        """Add a notice."""
        self.notices.append(Problem(path, reason))

    def raise_if_any(self, partial: Any = None) -> None:  # noqa: ANN401 -- see ConfigError
        """Raise if there are errors.

        Args:
            partial: What could be read despite the errors; see ``ConfigError``.

        Raises:
            ConfigError: With every error once.
        """
        if self.found:
            raise ConfigError(dict.fromkeys(self.found), notices=dict.fromkeys(self.notices), partial=partial)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a configuration: every problem at once, each with its place.

Nobody wants to mend a file one message at a time, so nothing here stops at the
first problem; see ``Problems``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

MAX_PROBLEMS: Final = 1000
"""After so many problems a file is not read any further: nobody mends more at once, and each costs time."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong, or merely worth telling (a notice).

    ``path`` is where: ``spec.servers[1].listen[0].port`` in a manifest,
    ``nginx.conf:12`` in an nginx configuration, empty for the whole file.
    ``reason`` never contains a secret.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class ConfigError(Exception):
    """A configuration that cannot be used.

    Attributes:
        problems: Everything that is wrong with it, in the order of the file; never empty.
        notices: What is worth telling beside that.
        partial: What could be read in spite of it, for whoever looks for more problems: of the
            type that the function which raises this would have returned, or ``None``.
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
    """Collects what is wrong, and what is only worth telling, while a configuration is read."""

    found: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)

    def add(self, path: str, reason: str) -> None:
        """Note something that is wrong at ``path``.

        Raises:
            ConfigError: It is problem number ``MAX_PROBLEMS``.
        """
        self.found.append(Problem(path, reason))
        if len(self.found) >= MAX_PROBLEMS:
            stopped = Problem("", f"reading stopped after {MAX_PROBLEMS} problems")
            raise ConfigError([*dict.fromkeys(self.found), stopped])

    def notice(self, path: str, reason: str) -> None:
        """Note something that is not wrong but that the reader should know."""
        self.notices.append(Problem(path, reason))

    def raise_if_any(self, partial: Any = None) -> None:  # noqa: ANN401 -- see ConfigError
        """Give up if anything is wrong.

        Args:
            partial: What could be read in spite of it; see ``ConfigError``.

        Raises:
            ConfigError: With every problem found so far, each once.
        """
        if self.found:
            raise ConfigError(dict.fromkeys(self.found), notices=dict.fromkeys(self.notices), partial=partial)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

# SPDX-License-Identifier: Apache-2.0
"""The levels of a configuration before inheritance: what was said where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .model import ListenConfig, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Who a resource is.  ``generation`` is 0 where it did not come from an API server."""

    name: str = ""
    namespace: str = "default"
    generation: int = 0
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The directives of one level, by nginx's names.

    ``given`` also names those whose value was no good, and those that a mistyped
    field was meant to be, so that nobody calls them missing.
    """

    values: Mapping[str, object]
    given: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """One server: what only servers have (``own``), and the level it inherits with."""

    name: str
    path: str
    own: Level
    level: Level

    @property
    def listen(self) -> tuple[ListenConfig, ...]:
        """Its listeners; empty where they are no good."""
        found = self.own.values.get("listen", ())
        assert isinstance(found, tuple)  # noqa: S101 -- the type of the row
        return found

    @property
    def protocol(self) -> Protocol | None:
        """The protocol that is written, if any."""
        found = self.own.values.get("protocol")
        return Protocol(str(found)) if found is not None else None

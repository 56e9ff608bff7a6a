# SPDX-License-Identifier: Apache-2.0
"""The search list of resolv.conf(5): the names that a short name may stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_DOMAINS: Final = 32
"""Domains that are used; the limit of Kubernetes."""
_MAX_NDOTS: Final = 15
_MAX_NAME: Final = 253


@dataclass(frozen=True, slots=True)
class SearchList:
    """``search`` and ``options ndots``; the default has no domains, for the names of a ``resolver``.

    Attributes:
        domains: What is appended to a name, in this order.
        ndots: A name with fewer dots is looked up with the domains first, others as they are first.
    """

    domains: tuple[str, ...] = ()
    ndots: int = 1

    def candidates(self, name: str) -> tuple[str, ...]:
        """Return the names to look up, in order; a name with a dot at its end is complete."""
        if name.endswith("."):
            return (name[:-1],)
        longer = tuple(f"{name}.{domain}" for domain in self.domains)
        fitting = tuple(candidate for candidate in longer if len(candidate) <= _MAX_NAME)
        return (name, *fitting) if name.count(".") >= self.ndots else (*fitting, name)


def system_search_list(resolv_conf: Path) -> SearchList:
    """Read the last ``search`` or ``domain``, and ``options ndots:N``."""
    try:
        lines = [line.split() for line in resolv_conf.read_text("ascii", "replace").splitlines()]
    except OSError:
        lines = []
    domains: list[str] = []
    ndots = 1
    for keyword, *words in filter(None, lines):
        if keyword == "search":
            domains = words
        elif keyword == "domain":
            domains = words[:1]
        elif keyword == "options":
            numbers = [word[6:] for word in words if word.startswith("ndots:")]
            ndots = next((min(int(number), _MAX_NDOTS) for number in numbers if number.isdecimal()), ndots)
    found = (domain.strip(".").lower() for domain in domains)
    return SearchList(tuple(filter(None, found))[:MAX_DOMAINS], ndots)

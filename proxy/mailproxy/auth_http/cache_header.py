# SPDX-License-Identifier: Apache-2.0
"""The header ``Auth-Cache`` of a response: what the authentication service allows the cache to do.

Its value is a list of ``no-store``, ``max-age=SECONDS`` and ``stale-if-error=SECONDS``, as in
``Cache-Control`` (RFC 9111 section 5.2.2, RFC 5861 section 4).  Unknown words are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_SECONDS: Final = 7 * 86400
"""The longest time in the header; a longer one is cut."""

_HEADER: Final = re.compile(rb"\nauth-cache:([^\r\n]*)", re.IGNORECASE)
_SECONDS: Final = re.compile(rb"[0-9]{1,18}")
_AGES: Final = {b"max-age": "max_age", b"stale-if-error": "stale_if_error"}


@dataclass(frozen=True, slots=True)
class CacheWish:
    """What the service wants for one response; ``None`` leaves it to the configuration."""

    no_store: bool = False
    max_age: int | None = None
    """Seconds."""
    stale_if_error: int | None = None
    """Seconds."""


NO_WISH: Final = CacheWish()
NO_STORE: Final = CacheWish(no_store=True)


def read_cache_wish(head: bytes) -> CacheWish:
    """Read the header of a response.

    A time that is no number forbids the cache to store the response: whoever sends the header wants
    to restrict the cache.

    Args:
        head: The head of the response.
    """
    values = _HEADER.findall(head)
    if not values:
        return NO_WISH
    ages: dict[str, int] = {}
    for item in b",".join(values).split(b","):
        word, _, value = item.strip(b" \t").partition(b"=")
        word = word.lower()
        if word == b"no-store":
            return NO_STORE
        name = _AGES.get(word)
        if name is None:
            continue
        if not _SECONDS.fullmatch(value):
            return NO_STORE
        ages[name] = min(int(value), MAX_SECONDS, ages.get(name, MAX_SECONDS))
    return CacheWish(max_age=ages.get("max_age"), stale_if_error=ages.get("stale_if_error"))

# SPDX-License-Identifier: Apache-2.0
"""Login names as routes compare them."""

from __future__ import annotations

import re
from typing import Final

MAX_NAME: Final = 255
"""Bytes of a login name that has a route."""

_CONTROLS: Final = re.compile(rb"[\x00-\x1f\x7f]")


def routed_name(user: bytes) -> tuple[bytes, bytes] | None:
    """Split a login name into the two parts that routes compare.

    Args:
        user: The name as the client sent it.

    Returns:
        Local part as written, and domain in lower case (ASCII only: domains are compared as A-labels);
        the domain of a name without ``@`` is empty.  ``None`` for a name that no route matches: empty,
        longer than ``MAX_NAME``, with a control character, or with more than one ``@``.
    """
    if not user or len(user) > MAX_NAME or user.count(b"@") > 1 or _CONTROLS.search(user):
        return None
    local, _, domain = user.partition(b"@")
    return local, domain.lower()


def normalised(user: bytes) -> bytes:
    """Return a login name with its domain in lower case: the key of tables and of ``hash``."""
    local, at, domain = user.partition(b"@")
    return local + at + domain.lower()

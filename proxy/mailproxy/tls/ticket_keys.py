# SPDX-License-Identifier: Apache-2.0
"""The keys that seal and open TLS session tickets (RFC 5077); they change while contexts use them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

KEY_BYTES: Final = 80
"""A ticket key as OpenSSL and nginx lay it out: name 16, HMAC 32, AES 32."""
SHORT_KEY_BYTES: Final = 48
"""nginx's older form: name 16, AES 16, HMAC 16."""


@dataclass(frozen=True, slots=True)
class TicketKey:
    """One key that seals and opens session tickets.  A secret."""

    name: bytes
    aes: bytes = field(repr=False)
    hmac: bytes = field(repr=False)

    @classmethod
    def parse(cls, content: bytes) -> TicketKey:
        """Read what an ``ssl_session_ticket_key`` file holds.

        Raises:
            ValueError: It has neither 48 nor 80 bytes.
        """
        if len(content) == KEY_BYTES:
            return cls(content[:16], content[48:], content[16:48])
        if len(content) == SHORT_KEY_BYTES:
            return cls(content[:16], content[16:32], content[32:])
        msg = f"{len(content)} bytes, where a ticket key has 48 or 80"
        raise ValueError(msg)


class TicketKeys:
    """Keys of which the first seals tickets and each opens them.

    Contexts that were built with them use what ``replace`` puts in their place.

    Args:
        keys: One or more, as ``TicketKey.parse`` reads them.

    Raises:
        ValueError: There is none, or one has another length.
    """

    __slots__ = ("keys",)

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.keys: tuple[TicketKey, ...]
        self.replace(keys)

    @classmethod
    def random(cls) -> TicketKeys:
        """Make one key that nobody else has."""
        return cls([new_key()])

    def replace(self, keys: Iterable[bytes]) -> None:
        """Seal with the first of these from now on, and open with all of them.

        Raises:
            ValueError: There is none, or one has another length; the keys stay.
        """
        parsed = tuple(map(TicketKey.parse, keys))
        if not parsed:
            raise ValueError("no ticket key")
        self.keys = parsed


def new_key() -> bytes:
    """Make a random key."""
    return os.urandom(KEY_BYTES)

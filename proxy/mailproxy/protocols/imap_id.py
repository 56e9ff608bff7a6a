# SPDX-License-Identifier: Apache-2.0
"""The arguments of IMAP ID (RFC 2971): what clients and other proxies write about themselves before login."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

MAX_PAIRS: Final = 30
"""Pairs of one ID command (RFC 2971 section 3.3)."""
MAX_KEY: Final = 30
"""Bytes of a key."""
MAX_VALUE: Final = 1024
"""Bytes of a value."""
ID_LINE: Final = re.compile(rb"([A-Za-z0-9._-]{1,32}) +ID(?: +|\Z)", re.IGNORECASE)
"""The start of the command.  Group: the tag."""

_TOKEN: Final = re.compile(
    rb' *(?:(\()|(\))|"((?:[^"\\\r\n\0]|\\["\\])*+)"|\{([0-9]{1,9})(\+?)\}\Z|(NIL)(?=[ )]|\Z)|\Z)',
    re.IGNORECASE,
)
_OPEN, _CLOSE, _QUOTED, _SIZE, _PLUS, _NIL = range(1, 7)
_ESCAPED: Final = re.compile(rb'\\(["\\])')

Pair = tuple[bytes, bytes | None]
"""A key, and its value; ``None`` is NIL."""


class InvalidId(Exception):
    """The arguments are not those of ID."""


@dataclass(slots=True)
class IdParser:
    """Parses the arguments piece by piece, as literals divide them.

    Attributes:
        is_complete: Whether the last argument has come.
        literal: The size of the literal that follows, ``None`` where there is none.
        synchronizing: Whether that literal needs a continuation reply.
        skips_literal: Whether a literal follows arguments that are invalid, and is not requested:
            the connection must be closed, as it would be parsed as commands.
    """

    is_complete: bool = False
    literal: int | None = None
    synchronizing: bool = False
    skips_literal: bool = False
    _is_list: bool = False
    _strings: list[bytes | None] = field(default_factory=list)

    def feed(self, line: bytes) -> None:
        """Parse the rest of a line, without its line end.

        Raises:
            InvalidId: It does not have the form of RFC 2971, or has too many or too long strings.
        """
        at = 0
        self.literal = None
        self.skips_literal = line.endswith(b"+}")
        while True:
            found = _TOKEN.match(line, at)
            if found is None:
                raise InvalidId
            at = found.end()
            kind = found.lastindex
            if kind is None:
                break
            self._take(kind, found)
        if not self.is_complete and self.literal is None:
            raise InvalidId

    def feed_literal(self, data: bytes) -> None:
        """Add a literal.

        Raises:
            InvalidId: There are too many strings.
        """
        self._add(data)

    def pairs(self) -> list[Pair]:
        """Return keys and values.

        Raises:
            InvalidId: A key has no value, or key or value are too long.
        """
        keys, values = self._strings[::2], self._strings[1::2]
        if len(keys) != len(values):
            raise InvalidId
        found: list[Pair] = []
        for key, value in zip(keys, values, strict=True):
            if not key or len(key) > MAX_KEY or (value is not None and len(value) > MAX_VALUE):
                raise InvalidId
            found.append((key, value))
        return found

    def _take(self, kind: int, found: re.Match[bytes]) -> None:
        if self.is_complete or self.literal is not None or (kind == _OPEN) == self._is_list:
            self._take_nil_or_fail(kind)
        elif kind == _OPEN:
            self._is_list = True
        elif kind == _CLOSE:
            self.is_complete = True
        elif kind == _QUOTED:
            self._add(_ESCAPED.sub(rb"\1", found[_QUOTED]))
        elif kind == _NIL:
            self._add(None)
        else:
            self.literal, self.synchronizing = int(found[_SIZE]), not found[_PLUS]

    def _take_nil_or_fail(self, kind: int) -> None:
        """Accept NIL instead of the list."""
        if kind != _NIL or self.is_complete or self._is_list:
            raise InvalidId
        self.is_complete = True

    def _add(self, data: bytes | None) -> None:
        if len(self._strings) == 2 * MAX_PAIRS:
            raise InvalidId
        self._strings.append(data)


def own_pairs(pairs: Sequence[Pair]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the pairs of a client that may be sent on: without keys that begin with ``x-``.

    A client must not name its own address.  Keys and values with bytes that a quoted string does not
    have, and NIL, are left out.
    """
    return tuple(
        (key, value)
        for key, value in pairs
        if value is not None and not key.lower().startswith(b"x-") and _is_text(key) and _is_text(value)
    )


def quoted(text: bytes) -> bytes:
    """Return printable text as a quoted string (RFC 9051 section 4.3)."""
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _is_text(data: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in data)

# SPDX-License-Identifier: Apache-2.0
"""Finding the end of a response's body (RFC 9112 sections 6 and 7.1).

The data is not needed: a body is only skipped, so that its connection can be
used for another request.  A body that is malformed or too long has no certain
end, and its connection is closed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_BODY: Final = 64 * 1024
"""The longest body that is skipped, in bytes, chunk sizes and trailer included."""
MAX_CHUNK_LINE: Final = 256
"""The longest line with a chunk's size and extensions, in bytes."""
MAX_TRAILER: Final = 4096
"""The longest trailer section, in bytes."""

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t !-~\x80-\xff]*)?\r\n")
_TRAILER_LINE: Final = re.compile(rb"[\t !-~\x80-\xff]*\r\n")
_CRLF: Final = b"\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
"""A chunked body without data and trailers."""
_NO_CONTENT: Final = frozenset({204, 304})
MAX_DIGITS: Final = 18
"""Of a decimal number; more do not fit the machine word into which nginx reads it."""


@dataclass(frozen=True, slots=True)
class BodyFraming:
    """Where the body ends: after ``length`` bytes, after its last chunk, or with the connection.

    ``empty`` is a body of this framing without data.
    """

    length: int | None = None
    chunked: bool = False
    until_close: bool = False
    empty: bytes | None = field(default=None, compare=False, repr=False)


_UNTIL_CLOSE: Final = BodyFraming(until_close=True)
_CHUNKED: Final = BodyFraming(chunked=True, empty=LAST_CHUNK)


class BadBody(Exception):
    """The end of the body is not certain, or too far away."""


class SizedBody:
    """Skips one body of a known length.

    Attributes:
        is_complete: Whether the end was found.
    """

    __slots__ = ("_left", "is_complete")

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_complete = not length

    def feed(self, data: bytes) -> int:
        """Skip received bytes; return how many of them belong to this body."""
        taken = min(self._left, len(data))
        self._left -= taken
        self.is_complete = not self._left
        return taken


class ChunkedBody:
    """Skips one chunked body.

    Attributes:
        is_complete: Whether the end was found.
    """

    __slots__ = ("_data_left", "_in_trailer", "_rest", "_seen", "_trailer", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        self._rest = b""  # of a line that is not complete
        self._data_left = 0  # of a chunk, its CRLF included
        self._in_trailer = False
        self._trailer = 0
        self._seen = 0

    def feed(self, data: bytes) -> int:
        """Skip received bytes.

        Returns:
            How many of them belong to this body; all of them while it is not complete.

        Raises:
            BadBody: The body is malformed or longer than ``MAX_BODY``.
        """
        buffer, position = self._rest + data, 0
        before = len(self._rest)
        self._rest = b""
        while not self.is_complete:
            position = self._data(buffer, position) if self._data_left else position
            end = -1 if self._data_left else buffer.find(b"\n", position)
            if end < 0:
                self._keep(buffer[position:], len(data))
                return len(data)
            self._line(buffer[position : end + 1])
            position = end + 1
        self._count(position - before)
        return position - before

    def _count(self, size: int) -> None:
        self._seen += size
        if self._seen > MAX_BODY:
            raise BadBody(f"a body of more than {MAX_BODY} bytes")

    def _keep(self, rest: bytes, size: int) -> None:
        """More bytes must follow: keep the beginning of a line."""
        self._count(size)
        if len(rest) > (MAX_TRAILER if self._in_trailer else MAX_CHUNK_LINE):
            raise BadBody("a line that is too long")
        self._rest = rest

    def _data(self, buffer: bytes, position: int) -> int:
        """Skip a chunk's data, and check the CRLF after it."""
        for index in range(max(self._data_left - 2, 0), self._data_left):
            at = position + index
            if at < len(buffer) and buffer[at] != _CRLF[index - self._data_left]:
                raise BadBody("a chunk's data is longer than its size")
        taken = min(self._data_left, len(buffer) - position)
        self._data_left -= taken
        return position + taken

    def _line(self, line: bytes) -> None:
        if self._in_trailer:
            self._trailer += len(line)
            if self._trailer > MAX_TRAILER or not _TRAILER_LINE.fullmatch(line):
                raise BadBody("a bad trailer section")
            self.is_complete = line == _CRLF
            return
        found = _SIZE_LINE.fullmatch(line)
        if found is None or len(line) > MAX_CHUNK_LINE:
            raise BadBody("a bad chunk size")
        size = int(found[1], 16)
        if size > MAX_BODY:
            raise BadBody(f"a body of more than {MAX_BODY} bytes")
        self._in_trailer = size == 0
        self._data_left = size + len(_CRLF) if size else 0


Body = SizedBody | ChunkedBody


def body_of(framing: BodyFraming) -> Body | None:
    """Return what skips a body; ``None`` where it is too long, or ends with its connection."""
    if framing.chunked:
        return ChunkedBody()
    if framing.length is None or framing.length > MAX_BODY:
        return None
    return SizedBody(framing.length)


def framing_of(
    version: bytes | None, status: int | None, headers: Mapping[bytes, bytes]
) -> tuple[BodyFraming, bool]:
    """Return a body's framing, and whether its connection is kept alive (RFC 9112 sections 6.3 and 9.3)."""
    if version is None:
        return _UNTIL_CLOSE, False
    options = headers.get(b"connection")
    keeps_alive = version == b"1.1" if options is None else _keeps_alive(version, options.lower())
    if status is None or status < 200 or status in _NO_CONTENT:
        # Whether a body follows depends on the status; some services send one where none may be.
        return _UNTIL_CLOSE, False
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        is_certain = version == b"1.1" and coding.lower() == b"chunked" and b"content-length" not in headers
        return (_CHUNKED, keeps_alive) if is_certain else (_UNTIL_CLOSE, False)
    length = headers.get(b"content-length", b"")
    if length.isdigit() and len(length) <= MAX_DIGITS:
        return BodyFraming(int(length), empty=b"" if int(length) == 0 else None), keeps_alive
    return _UNTIL_CLOSE, False


def _keeps_alive(version: bytes, connection: bytes) -> bool:
    if version == b"1.1" and connection in {b"", b"keep-alive"}:
        return True
    options = {option.strip(b" \t") for option in connection.split(b",")}
    if b"close" in options:
        return False
    return version == b"1.1" or (version == b"1.0" and b"keep-alive" in options)

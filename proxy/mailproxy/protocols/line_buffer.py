# SPDX-License-Identifier: Apache-2.0
"""One bounded buffer between the bytes of a peer and the lines a protocol is made of.

The limit holds for one command, not for what a client sends in one go: lines
that arrive together are handed out one by one, and the room they took is free
again.  Nothing is asked of the peer while a whole line is still at hand, so a
command that was received is executed even if the peer has closed meanwhile.

What a line means is the protocols' business; nothing is parsed here.
"""

from __future__ import annotations

from mailproxy.errors import LineTooLong
from mailproxy.protocols.sansio import ProtocolGenerator, Receive

_CR = 13


class LineReader:
    """Cuts what a peer says into lines and literals, within ``limit`` bytes per piece.

    Attributes:
        limit: The bytes that the buffer holds, and the longest line with its line end.
        held: What was received and is not done with; empty when nothing is left of it.
        consumed: The bytes of the command at hand so far, line ends included:
            its first line, and the lines and literals that continue it.
    """

    __slots__ = ("_start", "consumed", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.consumed = 0
        self.held = b""
        self._start = 0

    def just_line(self, data: bytes) -> bytes | None:
        """Take what was received while nothing was held: just one line, as nearly always.

        Args:
            data: At least one, at most ``limit``.

        Returns:
            The line, as ``line`` would give it; or ``None`` where it is
            anything else, which ``line`` then goes on with.
        """
        length = data.find(b"\n") + 1
        if length != len(data):
            self.held = data
            return None
        self.consumed = length
        return data[:-2] if data.endswith(b"\r\n") else data[:-1]

    def line(self, limit: int | None = None) -> ProtocolGenerator[bytes]:
        """Give the next line without its LF, and without a CR directly before that.

        A CR that is still in the line stood before something else: protocols
        take such a line for a syntax error.

        Args:
            limit: For a line that continues a command: what is left of the
                limit that all of its lines and literals share (IMAP).  ``None``
                for a line that begins one.

        Raises:
            LineTooLong: ``limit`` bytes hold no line end.
            PeerGone: The peer closed, broke off, or the deadline passed, with
                no whole line left.
            ShuttingDown: The proxy drains.
        """
        most = self.limit if limit is None or limit > self.limit else limit
        buffer, start = self.held, self._start
        end = buffer.find(b"\n", start, start + most) if buffer else -1
        while end < 0:
            length = len(buffer) - start
            if length >= most:
                raise LineTooLong(buffer[start:], most)
            chunk: bytes = yield Receive(self.limit - length)
            self.held = buffer = buffer[start:] + chunk
            start = self._start = 0
            end = buffer.find(b"\n", length, most)
        length = end + 1 - start
        self.consumed = length if limit is None else self.consumed + length
        if end + 1 == len(buffer):
            self.held, self._start = b"", 0
        else:
            self._start = end + 1
        if end > start and buffer[end - 1] == _CR:
            end -= 1
        return buffer[start:end]

    def data(self, count: int) -> ProtocolGenerator[bytes]:
        """Give exactly ``count`` bytes, whatever they are (an IMAP literal).

        Raises:
            LineTooLong: ``count`` is more than the buffer holds; nothing was read for it.
            PeerGone: The peer closed, broke off, or the deadline passed before they were there.
            ShuttingDown: The proxy drains.
        """
        if count > self.limit:
            raise LineTooLong(self.held[self._start :], self.limit)
        buffer, start = self.held, self._start
        while (held := len(buffer) - start) < count:
            chunk: bytes = yield Receive(self.limit - held)
            buffer = buffer[start:] + chunk
            self.held, start, self._start = buffer, 0, 0
        self.consumed += count
        end = start + count
        if end == len(buffer):
            self.held, self._start = b"", 0
        else:
            self._start = end
        return buffer[start:end]

    def rest(self) -> bytes:
        """Hand over everything that is unread, and forget it: it has one owner at a time."""
        held = self.held
        if not held:
            return held
        unread = held[self._start :]
        self.held, self._start = b"", 0
        return unread

    def clear(self) -> bytes:
        """Drop everything that is unread, and return it only to be counted.

        What was sent in clear must not survive the start of TLS (RFC 3207 section 4.2).
        """
        return self.rest()

# SPDX-License-Identifier: Apache-2.0
"""One bounded buffer between the octets of a peer and the lines a protocol is made of.

The limit holds for one command, not for what a client sends in one go: lines
that arrive together are handed out one by one, and the room they took is free
again.  Nothing is asked of the peer while a whole line is still at hand, so a
command that was received is executed even if the peer has closed meanwhile.

What a line means is the protocols' business; nothing is parsed here.
"""

from __future__ import annotations

from mailproxy.dialogue.actions import Dialogue, Receive, receive_at_most
from mailproxy.errors import LineTooLong

_LF, _CR = b"\n\r"


class LineReader:
    """Cuts what a peer says into lines and literals, within ``limit`` octets per piece.

    Attributes:
        limit: The octets that the buffer holds, and the longest line with its line end.
        consumed: All octets handed out so far, line ends included.  A caller that
            bounds a command of several pieces takes the difference.
    """

    __slots__ = ("_buffer", "_receive", "_start", "consumed", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._receive = receive_at_most(limit)
        self.consumed = 0
        self._buffer = b""
        self._start = 0

    def line(self, limit: int | None = None) -> Dialogue[bytes]:
        """Give the next line without its LF, and without a CR directly before that.

        A CR that is still in the line stood before something else: protocols
        take such a line for a syntax error.

        Args:
            limit: For this line, less than the buffer's own limit (an IMAP
                command's literals and lines share one limit).

        Raises:
            LineTooLong: ``limit`` octets hold no line end.
            PeerGone: The peer closed, broke off, or the deadline passed, with
                no whole line left.
            ShuttingDown: The proxy drains.
        """
        most = self.limit if limit is None or limit > self.limit else limit
        buffer, start = self._buffer, self._start
        end = buffer.find(b"\n", start, start + most) if buffer else -1
        while end < 0:
            held = len(buffer) - start
            if held >= most:
                raise LineTooLong(buffer[start:], most)
            if held:
                buffer = buffer[start:] + (yield Receive(self.limit - held))
            else:
                chunk: bytes = yield self._receive
                if chunk[-1] == _LF and len(chunk) <= most and _LF not in (line := chunk[:-1]):
                    # just what was waited for, as nearly always
                    self._buffer, self._start = b"", 0
                    self.consumed += len(chunk)
                    return line[:-1] if line and line[-1] == _CR else line
                buffer = chunk
            self._buffer, start, self._start = buffer, 0, 0
            end = buffer.find(b"\n", held, most)
        self.consumed += end + 1 - start
        if end + 1 == len(buffer):
            self._buffer, self._start = b"", 0
        else:
            self._start = end + 1
        if end > start and buffer[end - 1] == _CR:
            end -= 1
        return buffer[start:end]

    def octets(self, count: int) -> Dialogue[bytes]:
        """Give exactly ``count`` octets, whatever they are (an IMAP literal).

        Raises:
            LineTooLong: ``count`` is more than the buffer holds; nothing was read for it.
            PeerGone: The peer closed, broke off, or the deadline passed before they were there.
            ShuttingDown: The proxy drains.
        """
        if count > self.limit:
            raise LineTooLong(self._buffer[self._start :], self.limit)
        buffer, start = self._buffer, self._start
        while (held := len(buffer) - start) < count:
            chunk: bytes = yield Receive(self.limit - held)
            buffer = buffer[start:] + chunk
            self._buffer, start, self._start = buffer, 0, 0
        self.consumed += count
        self._start = start + count
        return buffer[start : start + count]

    def has_line(self) -> bool:
        """Whether a whole line is at hand, so that nothing need be received for it."""
        return self._buffer.find(b"\n", self._start) >= 0

    def rest(self) -> bytes:
        """Hand over everything that is unread, and forget it: it has one owner at a time."""
        unread = self._buffer[self._start :]
        self._buffer, self._start = b"", 0
        return unread

    def clear(self) -> bytes:
        """Drop everything that is unread, and return it only to be counted.

        What was sent in clear must not survive the start of TLS (RFC 3207 section 4.2).
        """
        return self.rest()

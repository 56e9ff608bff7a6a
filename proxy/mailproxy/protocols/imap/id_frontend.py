# SPDX-License-Identifier: Apache-2.0
"""The IMAP server side that responds to ID and ENABLE before login (``imap_id_command answer``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from mailproxy.enums import CloseReason, ProtocolErrorKind
from mailproxy.errors import LineTooLong
from mailproxy.protocols.frontend import CommandResult
from mailproxy.protocols.imap import replies
from mailproxy.protocols.imap.frontend import ImapFrontend
from mailproxy.protocols.imap_id import ID_LINE, IdParser, InvalidId, Pair, own_pairs
from mailproxy.protocols.sansio import ProtocolGenerator, send
from mailproxy.protocols.types import SessionEnd

_ENABLE_LINE: Final = re.compile(
    rb"([A-Za-z0-9._-]{1,32}) +ENABLE(?: +[^ (){%*\"\\\x00-\x1f\x7f]+)+ *", re.IGNORECASE
)
"""ENABLE with at least one capability (RFC 5161 section 3.1).  Group: the tag."""


class ImapIdFrontend(ImapFrontend):
    """The same with ID, which is remembered for the upstream, and ENABLE, which has no effect yet."""

    __slots__ = ()

    def _handle_other(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        found = ID_LINE.match(line)
        if found is not None:
            self._tag = found[1]
            return self._id(line[found.end() :])
        found = _ENABLE_LINE.fullmatch(line)
        if found is not None:
            self._tag = found[1]
            return self._enable()
        return super()._handle_other(line)

    def _enable(self) -> ProtocolGenerator[CommandResult]:
        yield from send(replies.enable_ignored(self._tag))
        return None

    def _id(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        """ID: remember the pairs of the first one, without those that only a proxy may send."""
        parser = IdParser()
        try:
            yield from self._read_arguments(parser, line)
            pairs = parser.pairs()
        except InvalidId:
            ended = yield from self.count_error(ProtocolErrorKind.BAD_ARGUMENTS)
            if ended is None and parser.skips_literal:
                return SessionEnd(CloseReason.PROTOCOL_ERROR)
            return ended
        if not self.client.id_pairs:
            self.client.id_pairs = own_pairs(pairs)
        return (yield from self._answer_id(pairs))

    def _answer_id(self, _pairs: Sequence[Pair]) -> ProtocolGenerator[CommandResult]:
        yield from send(replies.id_completed(self._tag))
        return None

    def _read_arguments(self, parser: IdParser, line: bytes) -> ProtocolGenerator[None]:
        """Read the literals among the arguments, and the lines after them.

        Raises:
            InvalidId: The arguments are malformed.
            LineTooLong: A literal would not fit; it was neither read nor requested.
        """
        parser.feed(line)
        while parser.literal is not None:
            if parser.literal >= self._room():
                raise LineTooLong(b"", self.reader.limit)
            if parser.synchronizing:
                yield from send(replies.CONTINUE)
            parser.feed_literal((yield from self.reader.read_exactly(parser.literal)))
            parser.feed((yield from self.reader.read_line(self._room())))

# SPDX-License-Identifier: Apache-2.0
"""POP3 commands before login: the parser of their lines, with nginx's rules."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.client_lines import classify_bad_line

SASL_LINE: Final = 4096
"""Bytes of the longest line in a SASL exchange, which has its own limit (RFC 5034 section 4)."""
MAX_ARGUMENTS: Final = 3
_CR: Final = 13

USER: Final = b"USER"
PASS: Final = b"PASS"
APOP: Final = b"APOP"
QUIT: Final = b"QUIT"
CAPA: Final = b"CAPA"
AUTH: Final = b"AUTH"
NOOP: Final = b"NOOP"
STLS: Final = b"STLS"

_WORDS: Final = {word: word for word in (USER, PASS, APOP, QUIT, CAPA, AUTH, NOOP, STLS)}
_TO_THE_END: Final = frozenset((USER, PASS))
"""Commands whose one argument may contain spaces, also at its end."""

USER_LINE: Final = re.compile(rb"[Uu][Ss][Ee][Rr] +([^ \r\n\0][^\r\n\0]*+)\r?\n")
"""USER with a name that is safe to send to an upstream, with the line end.  Group: the name."""
PASS_LINE: Final = re.compile(rb"[Pp][Aa][Ss][Ss] +([^ \r\n\0][^\r\n\0]*+)\r?\n")
"""PASS with a safe password, with the line end.  Group: the password."""


class Command(NamedTuple):
    """A known command: its word in capitals, and its arguments."""

    word: bytes
    arguments: tuple[bytes, ...]


def parse_line(line: bytes) -> Command | ProtocolErrorKind:
    """Parse a command line, without its line end.

    Returns:
        The command, or the kind of its syntax error.
    """
    if _CR in line:
        return ProtocolErrorKind.CONTROL_CHAR
    word, _, rest = line.partition(b" ")
    known = _WORDS.get(word.upper())
    if known is None:
        return classify_bad_line(line)
    if known in _TO_THE_END:
        text = rest.lstrip(b" ")
        return Command(known, (text,) if text else ())
    arguments = tuple(filter(None, rest.split(b" ")))
    if len(arguments) > MAX_ARGUMENTS:
        return ProtocolErrorKind.BAD_ARGUMENTS
    return Command(known, arguments)

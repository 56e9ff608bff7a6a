# SPDX-License-Identifier: Apache-2.0
"""SMTP commands before login: the parser of their lines, with nginx's rules."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.client_lines import classify_bad_line

MAX_ARGUMENTS: Final = 11
_CR: Final = 13

HELO: Final = b"HELO"
EHLO: Final = b"EHLO"
AUTH: Final = b"AUTH"
QUIT: Final = b"QUIT"
NOOP: Final = b"NOOP"
MAIL: Final = b"MAIL"
RSET: Final = b"RSET"
RCPT: Final = b"RCPT"
VRFY: Final = b"VRFY"
EXPN: Final = b"EXPN"
HELP: Final = b"HELP"
STARTTLS: Final = b"STARTTLS"

_WORDS: Final = {
    word: word for word in (HELO, EHLO, AUTH, QUIT, NOOP, MAIL, RSET, RCPT, VRFY, EXPN, HELP, STARTTLS)
}

USUAL: Final = re.compile(
    rb"(?:[Ee][Hh][Ll][Oo] +([^ \0-\x1f\x7f]+)|[Aa][Uu][Tt][Hh] +[Pp][Ll][Aa][Ii][Nn] +([^ \r\n]+)) *\r?\n"
)
"""The two commands of nearly every login, with the line end: EHLO, and AUTH PLAIN with its response.

Groups: the argument of EHLO; the response.
"""


class Command(NamedTuple):
    """A known command: its word in capitals, its arguments, and the line as the client wrote it."""

    word: bytes
    arguments: tuple[bytes, ...]
    text: bytes
    """Without the spaces at its end, otherwise unchanged."""


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
    arguments = tuple(filter(None, rest.split(b" ")))
    if len(arguments) > MAX_ARGUMENTS:
        return ProtocolErrorKind.BAD_ARGUMENTS
    return Command(known, arguments, line.rstrip(b" "))

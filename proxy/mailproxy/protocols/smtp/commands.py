# SPDX-License-Identifier: Apache-2.0
"""SMTP command lines, as nginx reads them: which words there are, and what their arguments may be."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.frontend import classify_bad_line

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
    rb"(?:[Ee][Hh][Ll][Oo] +([^ \0-\x1f\x7f]+)|[Aa][Uu][Tt][Hh] +[Pp][Ll][Aa][Ii][Nn] +([^ \r]+)) *"
)
"""The two commands that nearly every login consists of: EHLO, and AUTH PLAIN with its response.

Groups: the name of the client; the response.
"""


class Command(NamedTuple):
    """A command that we know: its word in capitals, its arguments, and the line as it was written."""

    word: bytes
    arguments: tuple[bytes, ...]
    text: bytes
    """Without spaces at its end; inside, nothing is changed."""


def parse(line: bytes) -> Command | ProtocolErrorKind:
    """Read one command line, without its line end.

    Returns:
        The command; or, for a syntax error, what to count it as.
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

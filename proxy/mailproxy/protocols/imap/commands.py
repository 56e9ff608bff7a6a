# SPDX-License-Identifier: Apache-2.0
"""IMAP commands before login: the parser of their lines.

The grammar is nginx's: tag, word and at most three arguments, each an atom, a
quoted string or a literal (RFC 9051 section 4.3; non-synchronizing literals
RFC 7888).  Parsing stops where a line announces a literal, and continues with
the literal and the line after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mailproxy.enums import ProtocolErrorKind

MAX_ARGUMENTS: Final = 3
NO_TAG: Final = b"*"
"""The tag in the reply to a line that has none."""

WORDS: Final = frozenset((b"LOGIN", b"AUTHENTICATE", b"CAPABILITY", b"NOOP", b"LOGOUT", b"STARTTLS"))

PLAIN_LOGIN: Final = re.compile(
    rb"([A-Za-z0-9._-]{1,32}) +[Ll][Oo][Gg][Ii][Nn] +"
    rb"([^ \"{\r\n\0][^ \r\n\0]*+) +([^ \"{\r\n\0][^ \r\n\0]*+) *\r?\n"
)
"""The most frequent line, with its end: LOGIN with two atoms.  Groups: tag, user, password."""

_TAG: Final = re.compile(rb"([A-Za-z0-9._-]{1,32}) ")
_WORD: Final = re.compile(rb" *([A-Za-z]+)(?= |\Z)")
_ARGUMENT: Final = re.compile(
    rb' *(?:\Z|"((?:[^"\\]|\\.)*+)"|\{([0-9]*)(\+?)\}\Z|([^ "{][^ ]*+))',
    re.DOTALL,
)
_QUOTED, _SIZE, _PLUS, _ATOM = 1, 2, 3, 4
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_CR: Final = 13
_MAX_DIGITS: Final = 18  # then the number fits the 64-bit integer that nginx reads it into


@dataclass(slots=True)
class Command:
    """A complete command whose arguments are not checked.

    ``word`` is one of ``WORDS``; the arguments are without quotes and
    backslashes, and may contain any byte.
    """

    tag: bytes
    word: bytes
    arguments: list[bytes]


@dataclass(slots=True)
class Rejected:
    """A line that is no command.

    ``tag`` is ``*`` if it has none.  ``closes`` is whether the connection must
    be closed, because a literal may follow that must not be parsed as commands.
    """

    tag: bytes
    kind: ProtocolErrorKind
    closes: bool


@dataclass(slots=True)
class Unfinished:
    """A command with a literal of ``size`` bytes to come; a synchronizing one needs a continuation reply."""

    command: Command
    size: int
    synchronizing: bool


def tag_of(line: bytes) -> bytes:
    """Return the tag at the start of a line, ``*`` if it has none."""
    found = _TAG.match(line)
    return found[1] if found else NO_TAG


def parse_line(line: bytes) -> Command | Unfinished | Rejected:
    """Parse a command's first line, without its line end."""
    tag = _TAG.match(line)
    if tag is None:
        return _rejected(NO_TAG, line, ProtocolErrorKind.UNKNOWN_COMMAND)
    found = _WORD.match(line, tag.end())
    word = found[1].upper() if found else b""
    if found is None or word not in WORDS:
        return _rejected(tag[1], line, ProtocolErrorKind.UNKNOWN_COMMAND)
    return _arguments(Command(tag[1], word, []), line, found.end())


def parse_continuation(unfinished: Unfinished, data: bytes, line: bytes) -> Command | Unfinished | Rejected:
    """Parse a literal and the line after it.

    Args:
        unfinished: The command so far; its argument list is extended.
        data: The literal.
        line: The rest of the line, without its line end.
    """
    command = unfinished.command
    command.arguments.append(data)
    if line and not line.startswith(b" "):
        return _rejected(command.tag, line, ProtocolErrorKind.LITERAL_INVALID)
    return _arguments(command, line, 0)


def _arguments(command: Command, line: bytes, at: int) -> Command | Unfinished | Rejected:
    arguments = command.arguments
    if _CR in line:
        return _arguments_before_cr(command, line, at)
    while found := _ARGUMENT.match(line, at):
        at = found.end()
        form = found.lastindex
        if form is None:
            return command
        if len(arguments) == MAX_ARGUMENTS:
            return _rejected(command.tag, line, ProtocolErrorKind.BAD_ARGUMENTS)
        if form == _PLUS:
            return _literal(command, found, line)
        arguments.append(found[_ATOM] if form == _ATOM else _unescaped(found[_QUOTED]))
    is_literal = line[at:].lstrip(b" ").startswith(b"{")
    kind = ProtocolErrorKind.LITERAL_INVALID if is_literal else ProtocolErrorKind.BAD_ARGUMENTS
    return _rejected(command.tag, line, kind)


def _arguments_before_cr(command: Command, line: bytes, at: int) -> Unfinished | Rejected:
    """Accept CRs only where nginx does: between the brace of a literal and the line end."""
    bare = line.rstrip(b"\r")
    read = _arguments(command, bare, at) if b"\r" not in bare else None
    if isinstance(read, Unfinished):
        return read
    return _rejected(command.tag, line, ProtocolErrorKind.CONTROL_CHAR)


def _literal(command: Command, found: re.Match[bytes], line: bytes) -> Unfinished | Rejected:
    digits = found[_SIZE]
    if len(digits) > _MAX_DIGITS:
        return _rejected(command.tag, line, ProtocolErrorKind.LITERAL_INVALID)
    return Unfinished(command, int(digits or b"0"), not found[_PLUS])


def _unescaped(quoted: bytes) -> bytes:
    return _ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted


def _rejected(tag: bytes, line: bytes, kind: ProtocolErrorKind) -> Rejected:
    return Rejected(tag, kind, line.endswith(b"+}"))

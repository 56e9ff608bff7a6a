# SPDX-License-Identifier: Apache-2.0
"""What an IMAP client may say before login, from bytes to commands.

The grammar is nginx's: tag, word and at most three arguments, each an atom, a
quoted string or a literal (RFC 9051 section 4.3; non-synchronizing literals
RFC 7888).  A literal's bytes come from elsewhere; reading stops where one is
announced, and goes on when they are there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mailproxy.enums import ProtocolErrorKind

MAX_ARGUMENTS: Final = 3
NO_TAG: Final = b"*"
"""Stands for the tag in the reply to a line that has none."""

WORDS: Final = frozenset((b"LOGIN", b"AUTHENTICATE", b"CAPABILITY", b"NOOP", b"LOGOUT", b"STARTTLS"))

PLAIN_LOGIN: Final = re.compile(
    rb"([A-Za-z0-9._-]{1,32}) +[Ll][Oo][Gg][Ii][Nn] +([^ \"{\r\0][^ \r\0]*+) +([^ \"{\r\0][^ \r\0]*+) *"
)
"""By far the commonest line: LOGIN with two atoms.  Groups: tag, user, password."""

_TAG: Final = re.compile(rb"([A-Za-z0-9._-]{1,32}) ")
_WORD: Final = re.compile(rb" *([A-Za-z]+)(?= |\Z)")
_ARGUMENT: Final = re.compile(
    rb' *(?:\Z|"((?:[^"\\]|\\.)*+)"|\{([0-9]*)(\+?)\}\Z|([^ "{][^ ]*+))',
    re.DOTALL,
)
_QUOTED, _SIZE, _PLUS, _ATOM = 1, 2, 3, 4
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_CR: Final = 13
_MAX_DIGITS: Final = 18  # then it fits the machine word that nginx would read it into


@dataclass(slots=True)
class Command:
    """A command that is understood, if not necessarily one that makes sense.

    ``word`` is one of ``WORDS``; the arguments are what was meant, without
    quotes and backslashes, and may hold any byte.
    """

    tag: bytes
    word: bytes
    arguments: list[bytes]


@dataclass(slots=True)
class Rejected:
    """A line that is no command.

    ``tag`` is ``*`` where none could be read.  ``closes`` where a literal may
    follow that nobody waits for: it must not be read as commands.
    """

    tag: bytes
    kind: ProtocolErrorKind
    closes: bool


@dataclass(slots=True)
class Unfinished:
    """A command that announces ``size`` bytes of a literal; a synchronizing one waits for our word."""

    command: Command
    size: int
    synchronizing: bool


def tag_of(line: bytes) -> bytes:
    """Give the tag that a line begins with, ``*`` if it has none."""
    found = _TAG.match(line)
    return found[1] if found else NO_TAG


def begin(line: bytes) -> Command | Unfinished | Rejected:
    """Read a command's first line, which has no line end."""
    tag = _TAG.match(line)
    if tag is None:
        return _rejected(NO_TAG, line, ProtocolErrorKind.UNKNOWN_COMMAND)
    found = _WORD.match(line, tag.end())
    word = found[1].upper() if found else b""
    if found is None or word not in WORDS:
        return _rejected(tag[1], line, ProtocolErrorKind.UNKNOWN_COMMAND)
    return _arguments(Command(tag[1], word, []), line, found.end())


def go_on(unfinished: Unfinished, data: bytes, line: bytes) -> Command | Unfinished | Rejected:
    """Read on behind a literal.

    Args:
        unfinished: Where reading stopped; it is used up by this.
        data: The literal.
        line: What followed it up to the line end, which is not part of it.
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
    """Take CRs only where nginx does: any number of them between a literal's brace and the line's end."""
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

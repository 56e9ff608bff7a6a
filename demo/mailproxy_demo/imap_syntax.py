# SPDX-License-Identifier: Apache-2.0
"""The grammar of IMAP as far as the demo's server needs it (RFC 3501 section 9).

A command is words and nested lists; literals have been read by then and
stand among the words.  What is written back is quoted here as well.
"""

from __future__ import annotations

import re
from typing import TypeAlias

Word: TypeAlias = "str | list[Word]"

MAX_DEPTH = 8
_LITERAL = re.compile(rb"\{(\d{1,9})(\+?)\}$")
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<open>\() | (?P<close>\))
      | "(?P<quoted>(?:[^"\\]|\\["\\])*)"
      | \0(?P<literal>\d+)\0
      | (?P<atom>[^\s()"\[\0]+(?:\[[^\]]*\](?:<[\d.]+>)?)?)
    )""",
    re.VERBOSE,
)


class BadSyntax(Exception):
    """A command that does not parse."""


def announced_literal(line: bytes) -> tuple[int, bool] | None:
    """Tell the size of the literal that a line announces at its end, and whether the client waits for us."""
    found = _LITERAL.search(line)
    return (int(found[1]), not found[2]) if found else None


def placeholder(index: int) -> bytes:
    """Stand in for the literal of that number in a command line; NUL cannot occur there otherwise."""
    return b"\0%d\0" % index


def words(text: str, literals: list[str]) -> list[Word]:
    """Cut a command line into words and lists.

    Args:
        text: The line, with a placeholder for each literal.
        literals: The literals, by number.

    Raises:
        BadSyntax: It does not parse.
    """
    stack: list[list[Word]] = [[]]
    at, text = 0, text.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or token.end() == at:
            raise BadSyntax
        at = token.end()
        _place(token, literals, stack)
    if len(stack) != 1:
        raise BadSyntax
    return stack[0]


def _place(token: re.Match[str], literals: list[str], stack: list[list[Word]]) -> None:
    kind = token.lastgroup
    if kind == "open":
        if len(stack) > MAX_DEPTH:
            raise BadSyntax
        stack.append([])
    elif kind == "close":
        if len(stack) == 1:
            raise BadSyntax
        closed = stack.pop()
        stack[-1].append(closed)
    elif kind == "literal":
        index = int(token["literal"])
        if index >= len(literals):
            raise BadSyntax
        stack[-1].append(literals[index])
    elif kind == "quoted":
        stack[-1].append(re.sub(r"\\(.)", r"\1", token["quoted"]))
    else:
        stack[-1].append(token["atom"])


def chosen_numbers(text: str, largest: int) -> set[int]:
    """Read a sequence set such as ``1,3:5,7:*``.

    Raises:
        BadSyntax: It is none.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        ends = [largest if end == "*" else _number(end) for end in part.split(":")]
        if len(ends) > 2:
            raise BadSyntax
        low, high = min(ends), max(ends)
        numbers.update(range(low, min(high, max(low, largest)) + 1))
    return numbers


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", text):
        raise BadSyntax
    return int(text)


def string(text: str | None) -> bytes:
    """Write a string, or NIL for nothing; a literal where quoting cannot express it."""
    if text is None:
        return b"NIL"
    data = text.encode("utf-8", "surrogateescape")
    if any(byte in data for byte in (b"\r", b"\n", b"\0")) or not data.isascii():
        return literal(data)
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def literal(data: bytes) -> bytes:
    """Write bytes as a literal."""
    return b"{%d}\r\n" % len(data) + data

# SPDX-License-Identifier: Apache-2.0
"""The syntax of ``nginx.conf``: directives and blocks with file and line.

crossplane splits the text into tokens.  It is imported when the first text is read, because
a proxy run by the operator does not need it.  After a missing semicolon,
``split_missing_semicolons`` separates the directives, and ``LostDirectives`` prevents errors
that are only consequences of another one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from typing import Final

from mailproxy_config.decode import MAX_FILE_BYTES, MAX_NGINX_TOKENS, decode_text
from mailproxy_config.directives import DIRECTIVES, by_name
from mailproxy_config.errors import ConfigError, Problems

_MAX_FILES: Final = 256
_MAX_INCLUDED: Final = 4 * MAX_FILE_BYTES
_MAX_LEVELS: Final = 64
_END_OF_FILE: Final = "unexpected end of file"
_NO_SEMICOLON: Final = 'is not terminated by ";"'
_WORDS: Final = re.compile(
    r"""\s+|\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|["']|[;{}]|(?:\\.|[^\s;{}\\])+|\\""",
    re.DOTALL,
)
"""The tokens of a text; a single quotation mark is an unclosed one."""

_NEVER_INSIDE: Final = {
    "server": ("server", "mail", "http", "stream", "events"),
    "mail": ("mail", "http", "stream", "events"),
    "http": ("mail", "http", "stream", "events"),
    "stream": ("mail", "http", "stream", "events"),
    "events": ("mail", "http", "stream", "events", "server"),
}
"""Blocks that are not allowed in a block: if there is one, a brace is missing."""

_ESCAPE: Final = re.compile(r"""\\(["'\\trn])""")
_ESCAPED: Final = {"t": "\t", "r": "\r", "n": "\n"}


_Token = tuple[str, int, bool]


@dataclass(frozen=True, slots=True)
class Statement:
    """A directive with its arguments; ``block`` is ``None`` if it ends in a semicolon.

    ``lines`` has, for each unquoted argument at the start of a line, its index, its file and line,
    and the file and line of the word before it, where a semicolon may be missing.
    """

    name: str
    arguments: tuple[str, ...]
    block: tuple[Statement, ...] | None
    location: str
    lines: tuple[tuple[int, str, str], ...] = ()


class NginxSyntaxError(Exception):
    """The text cannot be read any further; ``location`` is file and line."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(reason)
        self.location = location


@dataclass(slots=True)
class ConfigFiles:
    """The main file and its includes.

    ``base`` is the directory of the main file, to which all paths are relative.  ``main`` is the
    absolute path of the main file, or empty.  ``broken`` is the number of files that could not be
    read completely.
    """

    base: str
    problems: Problems
    main: str = ""
    broken: int = field(default=0, init=False)
    _opened: int = field(default=0, init=False)
    _data: int = field(default=0, init=False)
    _tokens: int = field(default=0, init=False)

    def statements(self, text: str, name: str) -> tuple[Statement, ...]:
        """Read the text of a file, and report its errors."""
        unclosed: list[str] = []
        try:
            return tuple(_statements(self._limited(_tokens(text, name), name), name, unclosed))
        except NginxSyntaxError as problem:
            self._report_unreadable(
                problem.location, f"{problem}{_hint_about_end(str(problem), text, unclosed)}"
            )
            return ()

    def _limited(self, tokens: Iterator[_Token], name: str) -> Iterator[_Token]:
        """The tokens.

        Raises:
            NginxSyntaxError: All files together have more than ``MAX_NGINX_TOKENS``.
        """
        for token in tokens:
            self._tokens += 1
            if self._tokens > MAX_NGINX_TOKENS:
                reason = f"is too large: it has more than {MAX_NGINX_TOKENS} words with all that it includes"
                raise NginxSyntaxError(f"{name}:{token[1]}", reason)
            yield token

    def _report_unreadable(self, location: str, reason: str) -> None:
        """Report that a file cannot be read."""
        self.broken += 1
        self.problems.add(location, reason)

    def with_includes(
        self, block: tuple[Statement, ...], inside: tuple[str, ...] = ()
    ) -> Iterator[Statement]:
        """The statements of a block, with ``include`` replaced by the statements of the files."""
        for statement in block:
            if statement.name == "include" and statement.block is None:
                yield from self._included(statement, inside)
            else:
                yield statement

    def path(self, written: str) -> str:
        """An absolute path; relative ones are relative to the main file."""
        return os.path.normpath(os.path.join(self.base, written))

    def _included(self, statement: Statement, inside: tuple[str, ...]) -> Iterator[Statement]:
        if len(statement.arguments) != 1:
            self._report_unreadable(statement.location, 'invalid number of arguments in "include" directive')
            return
        pattern = self.path(statement.arguments[0])
        for path in sorted(glob(pattern)) if has_magic(pattern) else [pattern]:
            if path in (self.main, *inside):
                self._report_unreadable(statement.location, f"{path} includes itself")
                continue
            text = self._text(path, statement.location)
            yield from self.with_includes(self.statements(text, path), (*inside, path))

    def _text(self, path: str, location: str) -> str:
        """The text of an included file; if it cannot be read, report it and return nothing."""
        self._opened += 1
        if self._opened > _MAX_FILES:
            self._report_unreadable(location, f"more than {_MAX_FILES} files are included")
            return ""
        if os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):
            self._report_unreadable(location, f"cannot read {path}: it is a pipe")
            return ""
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            self._data += len(content)
            if self._data > _MAX_INCLUDED:
                self._report_unreadable(
                    location, f"the included files have more than {_MAX_INCLUDED} bytes together"
                )
                return ""
            return decode_text(content, path)
        except OSError as error:
            self._report_unreadable(location, f"cannot read {path}: {error.strerror}")
        except ConfigError as error:
            self._report_unreadable(location, str(error))
        return ""


def _hint_about_end(problem: str, text: str, unclosed: list[str]) -> str:
    """What may be missing at an unexpected end: a quotation mark, or a brace of ``unclosed``."""
    if problem.endswith(_NO_SEMICOLON) or problem.startswith(_END_OF_FILE):
        for word in _WORDS.finditer(text):
            if word[0] in {'"', "'"}:
                line = text.count("\n", 0, word.start()) + 1
                return f"; the quotation mark ({word[0]}) in line {line} is not closed"
    return unclosed[0] if unclosed and problem.startswith(_END_OF_FILE) else ""


def _statements(
    tokens: Iterator[_Token], name: str, unclosed: list[str], level: int = 0, outer: tuple[str, int] = ("", 0)
) -> Iterator[Statement]:
    """The statements up to the end of the block or text.

    Args:
        tokens: The remaining tokens.
        name: The name of the file.
        unclosed: Collects hints about missing braces.
        level: The number of enclosing blocks.
        outer: Directive and line of the innermost enclosing block.
    """
    for word, line, quoted in tokens:
        location = f"{name}:{line}"
        if word.startswith("#") and not quoted:
            continue
        if word == "}" and not quoted and level:
            return
        if word in {"{", "}", ";"} and not quoted:
            hint = '; remove it, a "}" needs none' if word == ";" else ""
            raise NginxSyntaxError(location, f'unexpected "{word}"{hint}')
        arguments, end, lines = _arguments(tokens, name, line, word)
        if level == _MAX_LEVELS and end == "{":
            raise NginxSyntaxError(location, f"more than {_MAX_LEVELS} nested blocks")
        if end == "{" and not unclosed and word in _NEVER_INSIDE.get(outer[0], ()):
            unclosed.append(
                f'; does the "{outer[0]}" of line {outer[1]} lack a "}}" before the "{word}" of line {line}?'
            )
        inner = _statements(tokens, name, unclosed, level + 1, (word, line))
        block = tuple(inner) if end == "{" else None
        yield Statement(_unescaped(word), arguments, block, location, lines)


def _arguments(
    tokens: Iterator[_Token], name: str, line: int, directive: str
) -> tuple[tuple[str, ...], str, tuple[tuple[int, str, str], ...]]:
    """The arguments of a directive, its end (semicolon or brace), and the arguments that start a line."""
    found: list[str] = []
    begins: list[tuple[int, str, str]] = []
    last = line
    for word, here, quoted in tokens:
        if not quoted and word in {";", "{"}:
            return tuple(found), word, tuple(begins)
        if not quoted and word == "}":
            break
        if not quoted and word.startswith("#"):
            continue
        if here > last and not quoted:
            begins.append((len(found), f"{name}:{here}", f"{name}:{last}"))
        found.append(_unescaped(word))
        last = here
    raise NginxSyntaxError(f"{name}:{line}", f'directive "{directive[:64]}" {_NO_SEMICOLON}')


def _tokens(text: str, name: str) -> Iterator[_Token]:
    """Words, braces and semicolons, each with its line and whether it was quoted."""
    from crossplane.errors import NgxParserBaseException  # noqa: PLC0415 -- see the module's docstring
    from crossplane.lexer import lex  # noqa: PLC0415

    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise NginxSyntaxError(f"{name}:{line}", "is not text: it contains a NUL character")
    # crossplane reads only files, and loses a last word without white space after it.
    file = os.memfd_create("nginx.conf")
    try:
        with open(file, "w", encoding="utf-8", closefd=False) as writer:
            writer.write(text + "\n")
        yield from lex(f"/proc/self/fd/{file}")
    except NgxParserBaseException as error:
        location = f"{name}:{error.lineno}" if error.lineno else name
        raise NginxSyntaxError(location, str(error.strerror)) from None
    finally:
        os.close(file)


def _unescaped(word: str) -> str:
    """A word without escapes, as nginx stores it."""
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), word)


BLOCKS: Final = frozenset({"mail", "server", "events", "http", "stream"})
_ARITIES: Final[Mapping[str, tuple[int, int | None]]] = {
    name: row.type.arity for name, row in by_name(DIRECTIVES).items()
}

_EVERYTHING: Final = "*"


def split_missing_semicolons(statement: Statement, problems: Problems) -> Iterator[Statement]:
    """Split a statement at line ends where a semicolon is missing, and report them.

    An argument is taken for a directive only if it starts a line, and both parts then have a
    valid number of arguments.
    """
    name, start, location = statement.name, 0, statement.location
    for index, begins, before in _split_points(statement):
        ends = f'directive "{name[:64]}" is not terminated by ";"'
        problems.add(before, f'{ends}: is a ";" missing at the end of this line?')
        yield Statement(name, statement.arguments[start:index], None, location)
        name, start, location = statement.arguments[index], index + 1, begins
    yield (
        replace(statement, name=name, arguments=statement.arguments[start:], location=location)
        if start
        else statement
    )


def swallowed_directives(statement: Statement) -> list[str]:
    """Names of directives among the arguments of an invalid statement."""
    return [word for word in statement.arguments if word in _ARITIES or word in BLOCKS]


def missing_semicolon_hint(statement: Statement) -> str:
    """A hint if an argument has the name of a directive."""
    names = swallowed_directives(statement)
    return f'; is a ";" missing before "{names[0]}"?' if names else ""


class LostDirectives:
    """Directives that are missing only because of a reported error."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def add(self, level: str, *names: str) -> None:
        """Add directives of a level (its path in a manifest); without names, all directives."""
        self._names.setdefault(level, set()).update(names or (_EVERYTHING,))

    def has(self, level: str, *names: str) -> bool:
        """Whether one of these directives is lost in a level, or in one from which it inherits."""
        known: set[str] = set()
        for each in {level, "spec.mail", "spec"}:
            known |= self._names.get(each, set())
        return _EVERYTHING in known or not known.isdisjoint(names)


def _split_points(statement: Statement) -> list[tuple[int, str, str]]:
    """The arguments at which a statement is split, with their line and the line before."""
    cuts: list[tuple[int, str, str]] = []
    end, has_block = len(statement.arguments), statement.block is not None
    for index, location, before in reversed(statement.lines):
        name = statement.arguments[index]
        if (
            index
            and (name in _ARITIES or name in BLOCKS)
            and _is_whole(name, end - index - 1, has_block=has_block)
        ):
            cuts.append((index, location, before))
            end, has_block = index, False
    while cuts and not _is_whole(statement.name, cuts[-1][0], has_block=False):
        cuts.pop()
    return cuts[::-1]


def _is_whole(name: str, count: int, *, has_block: bool) -> bool:
    """Whether a directive can have this number of arguments; an unknown one can have any."""
    if name in BLOCKS:
        return has_block and count == 0
    least, most = _ARITIES.get(name, (0, None))
    return not has_block and count >= least and (most is None or count <= most)

# SPDX-License-Identifier: Apache-2.0
"""Types of directive values, and the row of the table of directives.

A ``ValueType`` has a schema (which the API server checks), ``read`` (deeper validation and
conversion to a model value), ``write`` (the manifest value of a model value) and ``nginx``
(the manifest value of nginx's arguments).  Types with fields of their own are in
``structured_values``, ``secret_refs``, ``tls_directives`` and ``listen_directive``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from mailproxy_config import units
from mailproxy_config.errors import Problems
from mailproxy_config.schema import Array, Boolean, Integer, IntOrString, Rule, Schema, String, matches

Raw = Any
"""A value of YAML or JSON."""


INVALID_ITEM: Final = object()
"""Replaces an item of a list that does not match its schema; the indexes of the others do not change."""


CONTROL_CHARACTERS: Final = r"[\x00-\x1f\x7f]"
MIN_BUFFER: Final = 128
"""nginx accepts any size and fails with small ones; this is its fixed buffer for POP3."""


@dataclass(frozen=True, slots=True)
class ErrorPath:
    """The path of a value, and where errors at this path are collected."""

    text: str
    problems: Problems

    def item(self, index: int) -> ErrorPath:
        """The path of an item of this list."""
        return ErrorPath(f"{self.text}[{index}]", self.problems)

    def field(self, name: str) -> ErrorPath:
        """The path of a field of this object."""
        return ErrorPath(f"{self.text}.{name}", self.problems)

    def try_read(self, read: Callable[[], object], otherwise: Any = None) -> Any:  # noqa: ANN401 -- its type is the reader's
        """Return the result of ``read``; if it raises ``ValueError``, add an error, return ``otherwise``."""
        try:
            return read()
        except ValueError as error:
            self.problems.add(self.text, str(error))
            return otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueType:
    """One type of directive values.

    Attributes:
        syntax: Description of the type for the reference page.
        schema: Schema of the manifest value.
        read: Converts a manifest value that matches the schema to a model value.  Raises
            ``ValueError`` for the whole value, and adds errors of its parts to the path.
        write: Converts a model value to a manifest value.
        nginx: Converts nginx's arguments to a manifest value; raises ``ValueError``.
        arity: Minimum and maximum number of nginx's arguments; ``None`` is no maximum.
        appends: Whether nginx appends the values of repeated directives instead of rejecting them.
        unordered: Whether the value is a set, in which repeated items count once.
        itemwise: Whether ``read`` skips ``INVALID_ITEM`` items of a list.
    """

    syntax: str
    schema: Schema
    read: Callable[[Any, ErrorPath], object]
    write: Callable[[Any], Raw]
    nginx: Callable[[Sequence[str]], Raw]
    arity: tuple[int, int | None] = (1, 1)
    appends: bool = False
    unordered: bool = False
    itemwise: bool = False


def identity(value: Any, _: ErrorPath | None = None) -> Any:  # noqa: ANN401 -- the type of what came in
    """A reader or writer for values that are the same in manifest and model."""
    return value


def parse_nginx_text(arguments: Sequence[str]) -> str:
    """The only argument."""
    return arguments[0]


def parse_nginx_flag(arguments: Sequence[str]) -> bool:
    """``on`` or ``off``, in any case."""
    word = arguments[0].lower()
    if word not in {"on", "off"}:
        raise ValueError(f'invalid value "{arguments[0]}", it must be "on" or "off"')
    return word == "on"


def parse_nginx_number(arguments: Sequence[str]) -> int:
    """Decimal digits."""
    text = arguments[0]
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise ValueError(f'invalid number "{text[:40]}"')
    return int(text)


def control_character_rule(what: str) -> Rule:
    """A rule against control characters: a line end in a value would start a new line of the protocol."""
    return Rule(
        expression=f"!self.matches('{CONTROL_CHARACTERS.replace(chr(92), 2 * chr(92))}')",
        message=f"{what} must not contain control characters such as CR or LF",
        predicate=lambda text: not matches(CONTROL_CHARACTERS, text),
    )


def pattern_rule(grammar: str, message: str) -> Rule:
    """A rule for an integer, or text that matches a pattern."""
    return Rule(
        expression=f"type(self) == int || (size(self) > 0 && self.matches('{grammar}'))",
        message=message,
        predicate=lambda value: isinstance(value, int) or (value != "" and matches(grammar, value)),
    )


MSEC_SHAPE: Final = IntOrString(
    rules=(
        pattern_rule(
            units.MSEC_TIME_PATTERN,
            "must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds",
        ),
    )
)

SEC_SHAPE: Final = IntOrString(
    rules=(
        pattern_rule(
            units.SEC_TIME_PATTERN,
            "must be a time such as 30s, 5m or 1d, without milliseconds; a bare number is seconds",
        ),
    )
)

SIZE_SHAPE: Final = IntOrString(
    max_length=16,
    rules=(pattern_rule(units.SIZE_PATTERN, "must be a size such as 4k or 10m; a bare number is bytes"),),
)


FLAG: Final = ValueType(
    syntax="boolean", schema=Boolean(), read=identity, write=identity, nginx=parse_nginx_flag
)

NUMBER: Final = ValueType(
    syntax="number", schema=Integer(), read=identity, write=identity, nginx=parse_nginx_number
)

MSEC_TIME: Final = ValueType(
    syntax="time",
    schema=MSEC_SHAPE,
    read=lambda value, _: units.parse_msec_time(value),
    write=units.format_time,
    nginx=parse_nginx_text,
)

SEC_TIME: Final = ValueType(
    syntax="time (whole seconds)",
    schema=SEC_SHAPE,
    read=lambda value, _: units.parse_sec_time(value),
    write=units.format_time,
    nginx=parse_nginx_text,
)


def _buffer(value: int | str, _: ErrorPath) -> int:
    data = units.parse_size(value)
    if data < MIN_BUFFER:
        raise ValueError(f"{value} is too small: a buffer has at least {MIN_BUFFER} bytes")
    return data


SIZE: Final = ValueType(
    syntax="size",
    schema=SIZE_SHAPE,
    read=lambda value, _: units.parse_size(value),
    write=units.format_size,
    nginx=parse_nginx_text,
)

BUFFER: Final = ValueType(
    syntax="size", schema=SIZE_SHAPE, read=_buffer, write=units.format_size, nginx=parse_nginx_text
)


def text(*, max_length: int, syntax: str = "text", rules: tuple[Rule, ...] = ()) -> ValueType:
    """Text that is used unchanged."""
    schema = String(max_length=max_length, rules=rules)
    return ValueType(syntax=syntax, schema=schema, read=identity, write=identity, nginx=parse_nginx_text)


def choice(
    words: Mapping[str, str],
    kind: Callable[[str], object],
    *,
    also: Sequence[str] = (),
    case_matters: bool = False,
) -> ValueType:
    """An enumeration.

    Args:
        words: nginx's words, each with the manifest's.
        kind: Converts a manifest's word to a model value.
        also: Words of the manifest that nginx does not have.
        case_matters: Whether nginx compares its words case-sensitively.
    """

    def nginx(arguments: Sequence[str]) -> str:
        word = words.get(arguments[0] if case_matters else arguments[0].lower())
        if word is None:
            raise ValueError(f'invalid value "{arguments[0]}", it must be one of {", ".join(words)}')
        return word

    allowed = (*words.values(), *also)
    return ValueType(
        syntax=" | ".join(allowed),
        schema=String(max_length=64, enum=allowed, spellings=words),
        read=lambda value, _: kind(value),
        write=str,
        nginx=nginx,
    )


def enum_set(words: Sequence[str], kind: Callable[[str], object]) -> ValueType:
    """A set of words in any order; nginx appends the words of repeated directives."""
    spelling = {word.lower(): word for word in words}

    def nginx(arguments: Sequence[str]) -> list[str]:
        unknown = [word for word in arguments if word.lower() not in spelling]
        if unknown:
            raise ValueError(f'invalid value "{unknown[0]}", the valid words are {", ".join(words)}')
        return list(dict.fromkeys(spelling[word.lower()] for word in arguments))

    return ValueType(
        syntax="list of " + ", ".join(words),
        schema=Array(items=String(max_length=64, enum=tuple(words)), max_items=len(words), min_items=1),
        read=lambda value, _: frozenset(map(kind, value)),
        write=lambda value: sorted(map(str, value)),
        nginx=nginx,
        arity=(1, None),
        appends=True,
        unordered=True,
    )


def read_items(
    values: Iterable[Any], path: ErrorPath, read: Callable[[Any, ErrorPath], Any]
) -> tuple[Any, ...]:
    """Read the items of a list, each with its own path; items with errors are left out."""
    found = []
    for index, value in enumerate(values):
        here = path.item(index)
        if value is not INVALID_ITEM:
            found.append(here.try_read(lambda value=value, here=here: read(value, here), INVALID_ITEM))  # type: ignore[misc]
    return tuple(item for item in found if item is not INVALID_ITEM)


def string_list(
    read: Callable[[Any, ErrorPath], Any],
    *,
    syntax: str,
    max_items: int,
    max_length: int,
    rules: tuple[Rule, ...] = (),
) -> ValueType:
    """A list of texts in order; nginx appends those of repeated directives."""
    return ValueType(
        syntax=syntax,
        schema=Array(items=String(max_length=max_length, min_length=1, rules=rules), max_items=max_items),
        read=lambda value, path: read_items(value, path, read),
        write=list,
        nginx=list,
        arity=(1, None),
        appends=True,
        itemwise=True,
    )


def _capability(value: str, _: ErrorPath) -> str:
    if not value.isascii():
        raise ValueError("a capability must be ASCII")
    return value


CAPABILITIES: Final = string_list(
    _capability,
    syntax="list of text",
    max_items=32,
    max_length=256,
    rules=(control_character_rule("a capability"),),
)


class Context(StrEnum):
    """A context in which nginx allows a directive."""

    MAIN = "main"
    EVENTS = "events"
    MAIL = "mail"
    SERVER = "server"


class Inheritance(StrEnum):
    """How a server inherits the value of the mail level."""

    VALUE = "value"
    """The value of the server, else of the mail level, else the built-in default."""
    LIST = "list"
    """The same for lists: they are replaced, not merged."""
    NONE = "none"
    """Not inherited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One directive: a row of the table.

    Attributes:
        name: nginx's name, and the attribute of ``ServerConfig``.
        module: Its nginx module, without ``ngx_`` and ``_module``.
        type: The type of its value.
        meaning: Description for ``kubectl explain`` and the reference page.
        default: The built-in default as a manifest value; ``None`` if there is none.
        contexts: Contexts in which it is allowed.
        inheritance: How a server inherits it.
        part_of: The directive whose field contains its value, if it has no field of its own.
        field: The field of the manifest.
        is_ours: Whether it is an extension that nginx does not have (also allowed in an ``nginx.conf``).
    """

    name: str
    module: str
    type: ValueType
    meaning: str
    default: Raw = None
    contexts: tuple[Context, ...] = (Context.MAIL, Context.SERVER)
    inheritance: Inheritance = Inheritance.VALUE
    part_of: str = ""
    field: str = ""
    is_ours: bool = False

    def __post_init__(self) -> None:
        if not self.field:
            object.__setattr__(self, "field", lower_camel_case(self.name))

    def builtin(self) -> object:
        """The built-in default as a model value; ``None`` if there is none.

        Raises:
            AssertionError: The row is wrong.
        """
        if self.default is None:
            return None
        problems = Problems()
        value = self.type.read(self.default, ErrorPath(self.field, problems))
        assert not problems, self.name  # noqa: S101 -- a mistake in the table, not in a configuration
        return value


def lower_camel_case(name: str) -> str:
    """``auth_http_timeout`` is ``authHttpTimeout``."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def describe(name: str, meaning: str, default: Raw, *, is_ours: bool = False) -> str:
    """Build the description of a directive or parameter for ``kubectl explain``.

    Args:
        name: nginx's name for it.
        meaning: What it does.
        default: The built-in default, as text: a default in the schema would prevent inheritance.
        is_ours: Whether nginx does not have it.
    """
    unless_set = format_default(default)
    where = f"Not in nginx; name in an nginx.conf for MailProxy: {name}" if is_ours else f"In nginx: {name}"
    return f"{meaning} {where}." + (f" Default: {unless_set}." if unless_set else "")


def format_default(value: Raw) -> str:
    """A default as YAML shows it; empty if there is none."""
    if value in (None, "", []):
        return ""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {inner}' for name, inner in value.items())}}}"
    return value if isinstance(value, str) else json.dumps(value)

# SPDX-License-Identifier: Apache-2.0
"""Decodes configuration files: limits of size and depth, text, and JSON.

The size of a file does not limit the work: three megabytes of YAML can have a million
tokens.  So values, levels and tokens are counted while they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mailproxy_config.errors import ConfigError, Problem

MAX_VALUES: Final = 50_000
"""Values in all documents of a file; values repeated by YAML aliases count each time."""

MAX_LEVELS: Final = 100
"""Nested lists and objects.  The deepest part of a pod template has about 12."""

MAX_TOKENS: Final = 40_000
"""YAML tokens in all documents of a file.

A value has two to four.  The largest ``MailProxy``, with 32 servers, has about 25,000;
scanning this many takes one or two seconds.
"""

MAX_NGINX_TOKENS: Final = 250_000
"""Words, braces and semicolons of an ``nginx.conf`` with its includes."""


_REMEDY: Final = "put other resources into files of their own"


def too_large(source: str) -> ConfigError:
    """The error for a file with more than ``MAX_VALUES`` values."""
    return ConfigError([Problem(source, f"is too large: it has more than {MAX_VALUES} values; {_REMEDY}")])


def too_many_tokens(source: str, line: int) -> ConfigError:
    """The error for YAML with more than ``MAX_TOKENS`` tokens, reached in ``line``."""
    reason = f"is too large: it has more than {MAX_TOKENS} tokens of YAML up to line {line}; {_REMEDY}"
    return ConfigError([Problem(source, reason)])


def too_deep(source: str) -> ConfigError:
    """The error for lists and objects nested more than ``MAX_LEVELS`` deep."""
    reason = f"is nested too deeply: the maximum is {MAX_LEVELS} nested lists and objects"
    return ConfigError([Problem(source, reason)])


def check_json_text(text: str, source: str) -> None:
    """Reject JSON with too many values before it is parsed; commas in strings count as well.

    Raises:
        ConfigError: It has too many.
    """
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise too_large(source)


def check_levels(document: Any, source: str) -> None:  # noqa: ANN401 -- any JSON value
    """Reject a document that is nested too deeply, because its readers are recursive.

    Raises:
        ConfigError: It is.
    """
    waiting = [(document, 1)]
    while waiting:
        value, level = waiting.pop()
        if level > MAX_LEVELS:
            raise too_deep(source)
        if isinstance(value, Mapping):
            waiting += ((inner, level + 1) for inner in value.values())
        elif isinstance(value, list):
            waiting += ((inner, level + 1) for inner in value)


MAX_FILE_BYTES: Final = 3 * 1024 * 1024
"""Maximum size of a configuration file."""


def decode_text(data: bytes, source: str = "") -> str:
    """Decode UTF-8, with or without a byte order mark.

    Args:
        data: The content of the file, at least up to ``MAX_FILE_BYTES + 1``.
        source: The path of the file for the error; empty if it has none.

    Raises:
        ConfigError: It is too large, or not text; the path contains the line.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([Problem(source, f"is larger than {MAX_FILE_BYTES} bytes")])
    nul = data.find(b"\0")
    if nul >= 0:
        raise ConfigError([Problem(_line(data, nul, source), "is not text: it contains a NUL character")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = _line(error.object, error.start, source)  # its object lacks the byte order mark
        raise ConfigError([Problem(where, f"is not UTF-8 text: {error.reason}")]) from None


def _line(data: bytes, at: int, source: str) -> str:
    number = data.count(b"\n", 0, at) + 1
    return f"{source}:{number}" if source else f"line {number}"


def parse_json(text: str, source: str = "") -> object:
    """Parse JSON without duplicate names.

    Raises:
        ConfigError: It is not valid, too large, or nested too deeply.
    """
    check_json_text(text, source)
    try:
        document = json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError([Problem(source, f"not valid JSON: {error.msg} in line {error.lineno}")]) from None
    except RecursionError:
        raise too_deep(source) from None
    except ValueError as error:
        raise ConfigError([Problem(source, f"not valid JSON: {error}")]) from None
    check_levels(document, source)
    return document


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = _repeated(name for name, _ in pairs)
        raise ValueError(f"{twice[:64]!r} is duplicate in one object")
    return found


def _repeated(names: Iterable[str]) -> str:
    """The first duplicate name; there must be one."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError(names)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")

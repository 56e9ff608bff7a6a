# SPDX-License-Identifier: Apache-2.0
"""How large a configuration may be once it is read, whichever kind of file it stands in.

The size of a file says little about the work that it makes: three megabytes of
YAML can be a million tokens, each read by Python code.  So everything is
counted while it is read, and reading stops at the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .errors import ConfigError, Problem

MOST_VALUES: Final = 50_000
"""Values in all documents of a file together, those that YAML aliases repeat included."""
MOST_LEVELS: Final = 100
"""Lists and objects inside each other.  The deepest part of a pod template has about 12."""
MOST_TOKENS: Final = 40_000
"""Tokens of YAML in all documents of a file together.

Two to four make a value.  The largest ``MailProxy``, of 32 servers, has about
25,000; scanning this many takes a second or two.
"""
MOST_NGINX_TOKENS: Final = 250_000
"""Words, braces and semicolons of an ``nginx.conf``, with all files that it includes."""

_REMEDY: Final = "put other resources into files of their own"


def too_large(source: str) -> ConfigError:
    """The error for a file with more than ``MOST_VALUES`` values."""
    return ConfigError([Problem(source, f"is too large: it has more than {MOST_VALUES} values; {_REMEDY}")])


def too_many_tokens(source: str, line: int) -> ConfigError:
    """The error for YAML with more than ``MOST_TOKENS`` tokens, the last of them in a line."""
    reason = f"is too large: it has more than {MOST_TOKENS} tokens of YAML up to line {line}; {_REMEDY}"
    return ConfigError([Problem(source, reason)])


def too_deep(source: str) -> ConfigError:
    """The error for lists and objects nested more than ``MOST_LEVELS`` deep."""
    reason = f"is nested too deeply: at most {MOST_LEVELS} lists and objects may stand inside each other"
    return ConfigError([Problem(source, reason)])


def check_json_text(text: str, source: str) -> None:
    """Refuse JSON with too many values before it is parsed; commas inside of strings count as well.

    Raises:
        ConfigError: It is too large.
    """
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise too_large(source)


def check_levels(document: Any, source: str) -> None:  # noqa: ANN401 -- any JSON value
    """Refuse a document that is nested too deeply: who reads it calls itself for every level.

    Raises:
        ConfigError: It is.
    """
    waiting = [(document, 1)]
    while waiting:
        value, level = waiting.pop()
        if level > MOST_LEVELS:
            raise too_deep(source)
        if isinstance(value, Mapping):
            waiting += ((inner, level + 1) for inner in value.values())
        elif isinstance(value, list):
            waiting += ((inner, level + 1) for inner in value)

# SPDX-License-Identifier: Apache-2.0
"""Bytes of a configuration file as text, or why they are none."""

from __future__ import annotations

from typing import Final

from mailproxy_config.errors import ConfigError, Problem

LARGEST_FILE: Final = 3 * 1024 * 1024
"""The bytes that a configuration file may have."""


def plain_text(data: bytes, source: str = "") -> str:
    """Read bytes as UTF-8, with a byte order mark or without.

    Args:
        data: What stands in the file, or its first ``LARGEST_FILE`` bytes and one more.
        source: The file's path, for the problem; empty where it has none.

    Raises:
        ConfigError: They are too many, or no text, told with the line.
    """
    if len(data) > LARGEST_FILE:
        raise ConfigError([Problem(source, f"is larger than {LARGEST_FILE} bytes")])
    nul = data.find(b"\0")
    if nul >= 0:
        raise ConfigError([Problem(_line(data, nul, source), "is not text: it has a NUL in it")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = _line(error.object, error.start, source)  # its object lacks the byte order mark
        raise ConfigError([Problem(where, f"is not UTF-8 text: {error.reason}")]) from None


def _line(data: bytes, at: int, source: str) -> str:
    number = data.count(b"\n", 0, at) + 1
    return f"{source}:{number}" if source else f"line {number}"

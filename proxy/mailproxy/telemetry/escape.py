# SPDX-License-Identifier: Apache-2.0
"""How arbitrary bytes and times become text that cannot break a log line.

Everything that leaves here is printable ASCII: line ends, terminal controls,
quotes, invalid UTF-8, U+2028 and text that changes direction all arrive as
escapes.
"""

from __future__ import annotations

import time
from json import encoder
from typing import Final

USER_LIMIT: Final = 256
"""Bytes of a user name that the log keeps."""
MARK: Final = "..."
"""Stands where something was cut off."""

whole: Final = encoder.encode_basestring_ascii
"""Puts text between quotation marks, escaped as JSON has it; ``quoted`` without its limit."""


def quoted(text: str, limit: int) -> str:
    """Put text between quotation marks, escaped as JSON has it, and cut after ``limit`` characters."""
    if len(text) <= limit:
        return whole(text)
    return whole(text[:limit] + MARK)


def quoted_bytes(data: bytes, limit: int) -> str:
    r"""Put bytes between quotation marks: UTF-8 where it is, ``\\xNN`` where it is not."""
    if len(data) <= limit:
        return whole(data.decode("utf-8", "backslashreplace"))
    return whole(data[:limit].decode("utf-8", "backslashreplace") + MARK)


def is_plain(text: str) -> bool:
    """Whether text may stand between quotation marks as it is."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


class Stamp:
    """The time of day as RFC 3339 has it, in UTC with milliseconds; seconds are formatted once."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, now: float) -> str:
        """Write a Unix time down, e.g. ``2026-11-23T04:05:06.789Z``."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return f"{self._prefix}{int((now - second) * 1000):03d}Z"

# SPDX-License-Identifier: Apache-2.0
"""Times and sizes as nginx writes them.

A time is ``1m30s``: units in descending order; a number without unit is in seconds.
*msec* times have milliseconds, *sec* times have months and years instead.  A size is
``512``, ``4k`` or ``10m``.  YAML may contain either as an integer.

The patterns have the same meaning for Python and for RE2 in the Kubernetes API server;
the rules of the CRD are built from them.
"""

from __future__ import annotations

import re
from typing import Final

from mailproxy_config.model import ByteCount, Seconds

MAX_SECONDS: Final = 2**31 - 1
MAX_BYTES: Final = 2**31 - 1
MSEC_TIME_PATTERN: Final = (
    r"^([0-9]+w *)?([0-9]+d *)?([0-9]+h *)?([0-9]+m *)?(([0-9]+s *)?([0-9]+ms *)?|[0-9]+ +)([0-9]+)?$"
)
SEC_TIME_PATTERN: Final = (
    r"^([0-9]+y *)?([0-9]+M *)?([0-9]+w *)?([0-9]+d *)?([0-9]+h *)?([0-9]+m *)?"
    r"([0-9]+s *|[0-9]+ +)?([0-9]+)?$"
)
SIZE_PATTERN: Final = r"^[0-9]+[kKmM]?$"
_MSEC_TIME = re.compile(MSEC_TIME_PATTERN, re.ASCII)
_SEC_TIME = re.compile(SEC_TIME_PATTERN, re.ASCII)
_SIZE = re.compile(SIZE_PATTERN, re.ASCII)
_COMPONENT = re.compile(r"([0-9]+)(ms|[smhdwMy]?)", re.ASCII)
_MILLISECONDS: Final = {
    "ms": 1,
    "": 1000,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "M": 2_592_000_000,
    "y": 31_536_000_000,
}
_PRINTED: Final = tuple((unit, _MILLISECONDS[unit]) for unit in ("d", "h", "m", "s", "ms"))
_FACTORS: Final = {"k": 1024, "m": 1024 * 1024}


def parse_msec_time(text: str | int) -> Seconds:
    """Parse a time that may have milliseconds: ``60s``, ``1m30s``, ``500ms``, ``60``.

    Raises:
        ValueError: It is not a time, or longer than ``MAX_SECONDS``.
    """
    if _matches(_MSEC_TIME, text):
        return _seconds(str(text))
    raise ValueError("must be a time such as 60s, 1m30s, 24h or 500ms; a bare number is seconds")


def parse_sec_time(text: str | int) -> Seconds:
    """Parse a time in whole seconds: ``30s``, ``5m``, ``1d``, ``1M`` (30 days), ``30``.

    Raises:
        ValueError: It is not a time, or longer than ``MAX_SECONDS``.
    """
    if _matches(_SEC_TIME, text):
        return _seconds(str(text))
    raise ValueError("must be a time such as 30s, 5m or 1d, without milliseconds; a bare number is seconds")


def parse_size(text: str | int) -> ByteCount:
    """Parse a size in bytes: ``512``, ``4k`` (4096), ``10m``.  nginx has no ``g``.

    Raises:
        ValueError: It is not a size, or larger than ``MAX_BYTES``.
    """
    if not _matches(_SIZE, text):
        raise ValueError("must be a size such as 4k or 10m; a bare number is bytes")
    digits = str(text).lower().rstrip("km")
    data = _number(digits) * _FACTORS.get(str(text).lower()[len(digits) :], 1)
    if data > MAX_BYTES:
        raise ValueError(f"{_quote(text)} is more than {MAX_BYTES} bytes")
    return ByteCount(data)


def format_time(seconds: float) -> str:
    """Format a time in seconds: ``90.0`` is ``1m30s``, ``0`` is ``0s``.

    Fractions of a millisecond are rounded.
    """
    left = round(seconds * 1000)
    parts = []
    for unit, milliseconds in _PRINTED:
        count, left = divmod(left, milliseconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_size(data: int) -> str:
    """Format a size with the largest unit that divides it: ``4096`` is ``4k``."""
    for unit in ("m", "k"):
        if data and data % _FACTORS[unit] == 0:
            return f"{data // _FACTORS[unit]}{unit}"
    return str(data)


def _matches(grammar: re.Pattern[str], text: str | int) -> bool:
    """Whether the text is not empty and matches the pattern."""
    words = str(text)
    # fullmatch, because "$" of Python also matches before a final line feed.
    return bool(words) and not isinstance(text, bool) and grammar.fullmatch(words) is not None


def _seconds(text: str) -> Seconds:
    """Sum the components of a valid time."""
    milliseconds = sum(_number(digits) * _MILLISECONDS[unit] for digits, unit in _COMPONENT.findall(text))
    if milliseconds > MAX_SECONDS * 1000:
        raise ValueError(f"{_quote(text)} is more than {MAX_SECONDS} seconds")
    return Seconds(milliseconds / 1000)


def _number(digits: str) -> int:
    """Convert digits; more than 19 significant digits become a number above every limit."""
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= 19 else 10**19


def _quote(text: str | int) -> str:
    """The text for a message, at most 40 characters."""
    words = str(text)
    return words if len(words) <= 40 else words[:40] + "..."

# SPDX-License-Identifier: Apache-2.0
"""What clients may be offered before login: what is configured, and all upstreams have as well.

Nothing of an upstream's reply is sent to clients but numbers, and words that this module has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from mailproxy_config.model import Protocol, ServerConfig

Offer = frozenset[str]
"""The capabilities of one upstream in upper case: IMAP words, or lines of the reply to EHLO."""

SMTP_EXTENSIONS: Final = (
    *("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES", "CHUNKING", "BINARYMIME"),
)
"""Extensions that work for a client that logs in at the proxy; the others are about the connection."""
_IMAP_BASES: Final = ("IMAP4rev1", "IMAP4rev2")
_OF_THE_PROXY: Final = frozenset({"SASL-IR", "STARTTLS", "LOGINDISABLED"})
"""IMAP words about what the proxy does itself, as are those with ``AUTH=``."""
_APPEND_LIMIT: Final = "APPENDLIMIT="
_NEVER: Final = frozenset({"XCLIENT", "XFORWARD", "ETRN", "VRFY", "STARTTLS", "AUTH"})
_EHLO_LINE: Final = re.compile(rb"^250[- ]([^\r\n]*)", re.MULTILINE)
_MAX_DIGITS: Final = 20
"""Of a size (RFC 1870 section 4)."""


def read_imap_offer(words: bytes) -> Offer:
    """Read the words of a CAPABILITY response.

    Raises:
        ValueError: There is neither IMAP4rev1 nor IMAP4rev2 among them.
    """
    offer = frozenset(words.decode("ascii", "replace").upper().split())
    if offer.isdisjoint(base.upper() for base in _IMAP_BASES):
        raise ValueError("upstream lists neither IMAP4rev1 nor IMAP4rev2")
    return offer


def read_smtp_offer(reply: bytes) -> Offer:
    """Read the lines of a reply to EHLO; the first one is a host name."""
    lines = [line.decode("ascii", "replace") for line in _EHLO_LINE.findall(reply)]
    return frozenset(" ".join(line.upper().split()) for line in lines[1:])


def common_capabilities(server: ServerConfig, offers: Sequence[Offer]) -> tuple[str, ...]:
    """Return what clients of a server may be offered.

    Args:
        server: The server, with the capabilities that are configured.
        offers: Those of at least one upstream.
    """
    if server.protocol is Protocol.IMAP:
        return _common_imap(server.imap_capabilities, offers)
    return _common_smtp(server.smtp_capabilities or SMTP_EXTENSIONS, offers)


def _common_imap(configured: Sequence[str], offers: Sequence[Offer]) -> tuple[str, ...]:
    found = [common for word in configured if (common := _imap_word(word, offers)) is not None]
    if not any(base.upper() in map(str.upper, found) for base in _IMAP_BASES):
        found[:0] = [base for base in _IMAP_BASES if _all_have(base.upper(), offers)][:1]
    return tuple(found)


def _imap_word(word: str, offers: Sequence[Offer]) -> str | None:
    """Return a configured word, with the smallest limit, or ``None`` if an upstream does not have it."""
    upper = word.upper()
    if upper in _OF_THE_PROXY or upper.startswith("AUTH="):
        return word
    if upper.startswith(_APPEND_LIMIT):
        limits = [_number(_append_limit(offer)) for offer in offers]
        smallest = _smallest([_number(upper.removeprefix(_APPEND_LIMIT)), *limits])
        return None if 0 in limits or not smallest else f"{_APPEND_LIMIT}{smallest}"
    if upper == "LITERAL-":  # what LITERAL+ allows, and less
        return word if all({"LITERAL-", "LITERAL+"} & offer for offer in offers) else None
    return word if _all_have(upper, offers) else None


def _append_limit(offer: Offer) -> str:
    return next((word.removeprefix(_APPEND_LIMIT) for word in offer if word.startswith(_APPEND_LIMIT)), "")


def _common_smtp(configured: Sequence[str], offers: Sequence[Offer]) -> tuple[str, ...]:
    found = [common for line in configured if (common := _smtp_line(line, offers)) is not None]
    if "CHUNKING" not in map(str.upper, found):  # RFC 3030 section 3 demands both
        found = [line for line in found if line.upper() != "BINARYMIME"]
    return tuple(found)


def _smtp_line(line: str, offers: Sequence[Offer]) -> str | None:
    """Return a configured line, with the smallest size, or ``None`` if an upstream does not have it."""
    keyword, _, value = line.partition(" ")
    keyword = keyword.upper()
    if keyword in _NEVER:
        return None
    if keyword == "SIZE":
        lines = [_size_line(offer) for offer in offers]
        size = _smallest(_number(text) for text in (value, *(found for found in lines if found is not None)))
        return None if None in lines else f"SIZE {size}" if size else "SIZE"
    return line if _all_have(" ".join(line.upper().split()), offers) else None


def _size_line(offer: Offer) -> str | None:
    """Return the parameter of SIZE, which may be empty; ``None`` without SIZE."""
    return next((line[5:] for line in offer if line == "SIZE" or line.startswith("SIZE ")), None)


def _all_have(word: str, offers: Iterable[Offer]) -> bool:
    return all(word in offer for offer in offers)


def _number(text: str) -> int:
    """Return a number, 0 for none."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0


def _smallest(numbers: Iterable[int]) -> int:
    """Return the smallest number that is a limit; 0 if there is none."""
    return min((number for number in numbers if number), default=0)

# SPDX-License-Identifier: Apache-2.0
"""What a server replied, made fit for a log: it may repeat the command that it answers, and the password."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator, Set
from typing import Final

from mailproxy.protocols.types import Secret

LOGGED_REPLY: Final = 190
"""Bytes of a reply that a log keeps."""
WITHHELD: Final = b"***"
"""Stands for a reply that repeats a password, or a part of one."""
_PART: Final = 8
"""Bytes of a password in a row that are too many for a log."""
_SEARCHED: Final = LOGGED_REPLY + 64
"""Bytes of a reply that are searched: those that are logged, and the rest of a password that begins there."""
_WORD: Final = 4
"""A shorter password counts only where it stands as a word: every reply has an ``a`` somewhere."""


def reply_for_log(reply: bytes, user: bytes, password: Secret | None) -> bytes:
    """Give the first bytes of a reply, on one line; ``***`` where it repeats the password.

    The whole reply is withheld, because a hole in a well-known sentence would
    show the password that was cut out of it.

    Args:
        reply: What came; the last line end is left out.
        user: The user name that went with the password.
        password: What must not be logged, in clear or as base64 of ``AUTH PLAIN``.
    """
    text = reply.strip(b"\r\n")
    if password is not None and _repeats(text[:_SEARCHED].lower(), user, password.reveal()):
        return WITHHELD
    return text[:LOGGED_REPLY] + (b"..." if len(text) > LOGGED_REPLY else b"")


def _repeats(text: bytes, user: bytes, password: bytes) -> bool:
    words = _words(text)
    return any(_holds(text, words, secret.lower()) for secret in _spellings(user, password))


def _spellings(user: bytes, password: bytes) -> Iterator[bytes]:
    """Everything by which a password may come back; a server that lost its place takes it for a command."""
    if not password:
        return
    yield password
    yield from {*password.split()} - {password}
    for message in (password, b"\0" + user + b"\0" + password):
        yield b2a_base64(message, newline=False).rstrip(b"=")


def _holds(text: bytes, words: Set[bytes], secret: bytes) -> bool:
    if len(secret) < _WORD:
        return secret in words
    part = min(_PART, len(secret))
    # A client chooses the length of the one, so the shorter of both is walked over.
    short, long = (secret, text) if len(secret) < len(text) else (text, secret)
    return any(short[start : start + part] in long for start in range(len(short) - part + 1))


def _words(text: bytes) -> Set[bytes]:
    """The words of a text, with and without the signs around them."""
    words = text.split()
    return {*words, *(word.strip(b"\"'`<>()[]{}.,:;!?") for word in words)}

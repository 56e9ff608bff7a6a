# SPDX-License-Identifier: Apache-2.0
"""What a server replied, made fit for a log: it may repeat the command that it answers, and the password."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator
from typing import Final

from mailproxy.dialogue.values import Secret

LOGGED_REPLY: Final = 190
"""Bytes of a reply that a log keeps."""
WITHHELD: Final = b"***"
"""Stands for a reply that repeats a password, or a part of one."""
_PART: Final = 8
"""Bytes of a password in a row that are too many for a log."""
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
    if password is not None and _repeats(text.lower(), user, password.reveal()):
        return WITHHELD
    return text[:LOGGED_REPLY] + (b"..." if len(text) > LOGGED_REPLY else b"")


def _repeats(text: bytes, user: bytes, password: bytes) -> bool:
    return any(_holds(text, secret.lower()) for secret in _spellings(user, password))


def _spellings(user: bytes, password: bytes) -> Iterator[bytes]:
    """Everything by which a password may come back; a server that lost its place takes it for a command."""
    if not password:
        return
    yield password
    yield from password.split()
    for message in (password, b"\0" + user + b"\0" + password):
        yield b2a_base64(message, newline=False).rstrip(b"=")


def _holds(text: bytes, secret: bytes) -> bool:
    if len(secret) < _WORD:
        return secret in _words(text)
    part = min(_PART, len(secret))
    return any(secret[start : start + part] in text for start in range(len(secret) - part + 1))


def _words(text: bytes) -> list[bytes]:
    """The words of a text, without the signs around them."""
    return [word.strip(b"\"'`<>()[]{}.,:;!?") for word in text.split()] + text.split()

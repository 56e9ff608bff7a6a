# SPDX-License-Identifier: Apache-2.0
"""The mailbox of the demo: what SMTP delivers, IMAP and POP3 show.

It lives in memory and is bounded in both directions: a message that is too
large is refused, and the oldest message goes when there are too many.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime

MAX_MESSAGES = 200
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Account:
    """The one user of the demo and the password, which is no secret: the summary prints it."""

    user: str = "alice"
    password: str = "wonderland"  # noqa: S105  it is printed for everyone to try

    def admits(self, user: str, password: str) -> bool:
        """Tell whether these credentials are the account's own."""
        return hmac.compare_digest(
            f"{user}\0{password}".encode(errors="surrogateescape"),
            f"{self.user}\0{self.password}".encode(),
        )


@dataclass(slots=True)
class Message:
    """One message: its bytes with CRLF line ends, and what IMAP remembers about it."""

    uid: int
    data: bytes
    received: datetime
    flags: set[str] = field(default_factory=set)


class Mailbox:
    """A bounded list of messages that tells waiting readers when it grows.

    Attributes:
        messages: Oldest first.
        uid_next: The UID that the next message gets.
        uid_validity: Never changes: the mailbox does not outlive the process.
        next_delivery: Set, and replaced, when a message arrives.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.uid_next = 1
        self.uid_validity = 1
        self.next_delivery = asyncio.Event()

    def deliver(self, data: bytes, flags: frozenset[str] = frozenset()) -> Message:
        """Add a message and wake whoever waits for it.

        Args:
            data: The message; bare line feeds become CRLF.
            flags: Flags it starts with.
        """
        message = Message(self.uid_next, _with_crlf(data), datetime.now(UTC), set(flags))
        self.uid_next += 1
        self.messages.append(message)
        del self.messages[:-MAX_MESSAGES]
        self.next_delivery.set()
        self.next_delivery = asyncio.Event()
        return message

    def remove(self, uids: frozenset[int]) -> None:
        """Remove messages for good."""
        self.messages = [message for message in self.messages if message.uid not in uids]


def _with_crlf(data: bytes) -> bytes:
    text = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return text if text.endswith(b"\r\n") else text + b"\r\n"

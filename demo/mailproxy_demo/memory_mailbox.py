# SPDX-License-Identifier: Apache-2.0
"""The mailbox of the demo, in memory, with the interfaces that Twisted's IMAP and POP3 servers read.

SMTP delivers into it, IMAP and POP3 read it.  A message larger than ``MAX_BYTES`` is refused, and the oldest
message is removed when there are more than ``MAX_MESSAGES``.
"""

from __future__ import annotations

import email
import io
from collections.abc import Collection, Iterable
from email.message import Message as MimeMessage
from email.utils import format_datetime, localtime
from typing import IO, Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.mail import imap4, pop3
from twisted.mail.interfaces import (
    IMailboxIMAP,
    IMailboxIMAPInfo,
    IMessageIMAP,
    IMessageIMAPFile,
    IMessageIMAPPart,
)
from zope.interface import implementer

MAX_MESSAGES = 200
MAX_BYTES = 1024 * 1024
FLAGS = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")


@implementer(IMessageIMAPPart)
class MessagePart:
    """A message, or one MIME part of it.

    Args:
        data: Header and body, lines ended by CRLF.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.body = data.partition(b"\r\n\r\n")[2]
        self._mime: MimeMessage = email.message_from_bytes(data)

    def getHeaders(self, negate: bool, *names: bytes | str) -> MimeMessage:
        """Return the header fields of these names, or all others.  Bytes outside of ASCII become ``?``."""
        chosen = {(name.decode() if isinstance(name, bytes) else name).lower() for name in names}
        found = MimeMessage()
        for name, value in self._mime.items():
            if (name.lower() in chosen) is not negate:
                found[name] = str(value).encode("ascii", "replace").decode()
        return found

    def getBodyFile(self) -> IO[bytes]:
        """Return the body."""
        return io.BytesIO(self.body)

    def getSize(self) -> int:
        """Return the size of the body, in bytes."""
        return len(self.body)

    def isMultipart(self) -> bool:
        """Return whether there are parts."""
        return self._mime.is_multipart()

    def getSubPart(self, part: int) -> MessagePart:
        """Return a part by its index.

        Raises:
            IndexError: There is no such part.
        """
        parts: Any = self._mime.get_payload() if self._mime.is_multipart() else []
        found = parts[part]
        return MessagePart(_with_crlf(found.as_bytes()))


@implementer(IMessageIMAP, IMessageIMAPFile)
class Message(MessagePart):
    r"""A message of the mailbox.

    Attributes:
        uid: Its UID, unique for the life of the mailbox.
        flags: IMAP flags, such as ``\Seen``.
        received: When it was delivered, as in a Date header.
    """

    def __init__(self, uid: int, data: bytes, flags: Iterable[str], received: str) -> None:
        super().__init__(data)
        self.uid = uid
        self.flags = set(flags)
        self.received = received

    def getSize(self) -> int:
        """Return the size of header and body, in bytes."""
        return len(self.data)

    def getUID(self) -> int:
        """Return the UID."""
        return self.uid

    def getFlags(self) -> list[str]:
        """Return the flags."""
        return sorted(self.flags)

    def getInternalDate(self) -> str:
        """Return when the message was delivered."""
        return self.received

    def open(self) -> IO[bytes]:
        """Return header and body."""
        return io.BytesIO(self.data)


class Mailbox:
    """The messages, and the IMAP sessions that have selected them.

    Attributes:
        messages: Oldest first.
        uid_next: The UID that the next message gets.
        selected: Sessions that are notified of new messages.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.uid_next = 1
        self.selected: set[ImapMailbox] = set()

    def deliver(self, data: bytes, flags: Iterable[str] = (), received: str = "") -> int:
        """Add a message; bare line feeds become CRLF.

        Returns:
            Its UID.
        """
        uid = self.uid_next
        message = Message(uid, _with_crlf(data), flags, received or format_datetime(localtime()))
        self.uid_next += 1
        self.messages.append(message)
        del self.messages[:-MAX_MESSAGES]
        for session in self.selected:
            session.add_delivered(message)
        return uid

    def remove(self, removed: Collection[Message]) -> None:
        """Remove messages."""
        self.messages = [message for message in self.messages if message not in removed]


@implementer(IMailboxIMAPInfo)
class MailboxInfo:
    """INBOX as LIST shows it: without attributes.  Twisted takes them from ``getFlags``."""

    def getFlags(self) -> list[str]:
        """Return the attributes of the mailbox."""
        return []

    def getHierarchicalDelimiter(self) -> str:
        """Return the separator of names."""
        return "/"


@implementer(IMailboxIMAP)
class ImapMailbox(MailboxInfo):
    """INBOX as one IMAP session sees it.

    A message that another session removes keeps its number here until the client selects INBOX again, which
    RFC 2180 section 4.1.1 allows.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._messages: list[Message] = []
        self._listeners: list[imap4.IMAP4Server] = []
        self._is_writable = True

    def refresh(self, *, is_writable: bool) -> None:
        """Take over the current messages, unless the session has INBOX selected."""
        if not self._listeners:
            self._messages = list(self._mailbox.messages)
            self._is_writable = is_writable

    def add_delivered(self, message: Message) -> None:
        """Append a message and notify the client."""
        self._messages.append(message)
        for listener in self._listeners:
            listener.newMessages(len(self._messages), None)

    def addListener(self, listener: imap4.IMAP4Server) -> None:
        """Notify a session of new messages from now on."""
        self._listeners.append(listener)
        self._mailbox.selected.add(self)

    def removeListener(self, listener: imap4.IMAP4Server) -> None:
        """Stop notifying a session."""
        self._listeners.remove(listener)
        self.close()

    def close(self) -> None:
        """Stop following deliveries."""
        self._mailbox.selected.discard(self)

    def getFlags(self) -> list[str]:
        """Return the flags that messages can have."""
        return list(FLAGS)

    def getUIDValidity(self) -> int:
        """Return the validity of UIDs, which never changes: the mailbox ends with the process."""
        return 1

    def getUIDNext(self) -> int:
        """Return the UID of the next message."""
        return self._mailbox.uid_next

    def getUID(self, message: int) -> int:
        """Return the UID of a sequence number."""
        return self._messages[message - 1].uid

    def getMessageCount(self) -> int:
        """Return the number of messages."""
        return len(self._messages)

    def getRecentCount(self) -> int:
        r"""Return the number of messages with the flag ``\Recent``, which this mailbox does not keep."""
        return 0

    def getUnseenCount(self) -> int:
        """Return the number of messages that were not read."""
        return sum("\\Seen" not in message.flags for message in self._messages)

    def isWriteable(self) -> bool:
        """Return whether the client can change flags and remove messages."""
        return self._is_writable

    def destroy(self) -> None:
        """Refuse to delete INBOX.

        Raises:
            imap4.MailboxException: Always.
        """
        raise imap4.MailboxException("INBOX cannot be deleted")

    def requestStatus(self, names: Iterable[str]) -> dict[str, int]:
        """Return the items of a STATUS command."""
        found: dict[str, int] = imap4.statusRequestHelper(self, names)
        return found

    def addMessage(
        self, message: IO[bytes], flags: Iterable[str] = (), date: bytes | str | None = None
    ) -> Deferred[int]:
        """Add a message, as APPEND and COPY do.

        Returns:
            Its UID, or ``imap4.MailboxException`` when it is too large.
        """
        data = message.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return fail(imap4.MailboxException("the message is too large"))
        received = date.decode("ascii", "replace") if isinstance(date, bytes) else date
        return succeed(self._mailbox.deliver(data, flags, received or ""))

    def expunge(self) -> list[int]:
        r"""Remove the messages with the flag ``\Deleted``.

        Returns:
            Their numbers, highest first, so that none changes by the removal of another.
        """
        removed = {message for message in self._messages if "\\Deleted" in message.flags}
        numbers = [number for number, message in enumerate(self._messages, 1) if message in removed]
        self._messages = [message for message in self._messages if message not in removed]
        self._mailbox.remove(removed)
        return numbers[::-1]

    def fetch(self, messages: imap4.MessageSet, uid: bool) -> list[tuple[int, Message]]:
        """Return messages with their sequence numbers.

        Args:
            messages: Sequence numbers, or UIDs.
            uid: Whether they are UIDs.
        """
        messages.last = self._messages[-1].uid if uid and self._messages else len(self._messages)
        return [
            (number, message)
            for number, message in enumerate(self._messages, 1)
            if (message.uid if uid else number) in messages
        ]

    def store(
        self,
        messages: imap4.MessageSet,
        flags: Iterable[str],
        mode: int,
        uid: bool,
    ) -> dict[int, list[str]]:
        """Change flags: ``mode`` 1 adds them, -1 removes them, 0 replaces all flags.

        Returns:
            The flags of each message, by sequence number.

        Raises:
            imap4.ReadOnlyMailbox: The client opened the mailbox with EXAMINE.
        """
        if not self._is_writable:
            raise imap4.ReadOnlyMailbox("INBOX")
        chosen = self.fetch(messages, uid)
        for _, message in chosen:
            kept = message.flags if mode else set()
            message.flags = kept - set(flags) if mode < 0 else kept | set(flags)
        return {number: message.getFlags() for number, message in chosen}


class ImapAccount(imap4.MemoryAccount):
    """The folders of a login: INBOX alone."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__("INBOX")
        self.inbox = ImapMailbox(mailbox)
        self.addMailbox("INBOX", self.inbox)
        self.subscribe("INBOX")

    def select(self, name: str, readwrite: bool = True) -> ImapMailbox | None:
        """Return INBOX; ``None`` for any other name."""
        if name.upper() != "INBOX":
            return None
        self.inbox.refresh(is_writable=bool(readwrite))
        return self.inbox

    def create(self, pathspec: str) -> bool:
        """Refuse another folder."""
        return False

    def listMailboxes(self, ref: str, wildcard: str) -> list[tuple[str, MailboxInfo]]:
        """Return the folders of which the names match."""
        return [(name, MailboxInfo()) for name, _ in super().listMailboxes(ref, wildcard)]


class WholeLines(io.BytesIO):
    """A file of which each read ends at the end of a line.

    Twisted transforms a message in chunks, and looks for leading dots within each chunk.
    """

    def read(self, size: int | None = -1) -> bytes:
        """Read whole lines, about ``size`` bytes of them."""
        return b"".join(self.readlines(size if size is not None else -1))


class Pop3Mailbox(pop3.Mailbox):
    """The messages at the time of the login, as POP3 numbers them (RFC 1939 section 3)."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._messages = list(mailbox.messages)
        self._deleted: set[int] = set()

    def _message(self, index: int) -> Message:
        if not 0 <= index < len(self._messages):
            raise ValueError
        return self._messages[index]

    def listMessages(self, i: int | None = None) -> Any:
        """Return the size of one message or of all, in bytes; 0 when it is marked as deleted."""
        if i is None:
            return [self.listMessages(index) for index in range(len(self._messages))]
        return 0 if i in self._deleted else len(self._message(i).data)

    def getMessage(self, i: int) -> Any:
        """Return a message, lines ended by LF: the protocol makes CRLF of them."""
        return WholeLines(self._message(i).data.replace(b"\r\n", b"\n"))

    def getUidl(self, i: int) -> bytes:
        """Return the unique identifier of a message."""
        return b"demo-%d" % self._message(i).uid

    def deleteMessage(self, i: int) -> None:
        """Mark a message as deleted."""
        self._message(i)
        self._deleted.add(i)

    def undeleteMessages(self) -> None:
        """Unmark all messages."""
        self._deleted.clear()

    def sync(self) -> None:
        """Remove the marked messages, at QUIT."""
        self._mailbox.remove([self._messages[index] for index in self._deleted])


def _with_crlf(data: bytes) -> bytes:
    text = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return text if text.endswith(b"\r\n") else text + b"\r\n"

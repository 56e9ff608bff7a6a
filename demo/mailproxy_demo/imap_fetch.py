# SPDX-License-Identifier: Apache-2.0
"""What FETCH can tell about a message, and what SEARCH asks about it: pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from email.parser import BytesHeaderParser
from email.utils import getaddresses

from mailproxy_demo.imap_syntax import BadSyntax, Word, chosen_numbers, literal, string
from mailproxy_demo.memory_mailbox import Message

_MACROS: dict[str, list[Word]] = {
    "ALL": ["FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE"],
    "FAST": ["FLAGS", "INTERNALDATE", "RFC822.SIZE"],
    "FULL": ["FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE"],
}
_BODY = re.compile(
    r"BODY(?P<peek>\.PEEK)?\[(?P<section>[^\]]*)\](?:<(?P<first>\d+)\.(?P<count>\d+)>)?", re.IGNORECASE
)
_FIELDS = re.compile(r"HEADER\.FIELDS(?P<other>\.NOT)?\s*\((?P<names>[^)]*)\)", re.IGNORECASE)


def wanted_items(word: Word) -> list[str]:
    """List the data items of a FETCH: a macro, one item, or a parenthesised list.

    Raises:
        BadSyntax: Lists within the list.
    """
    items = _MACROS.get(word.upper(), [word]) if isinstance(word, str) else word
    names = [item for item in items if isinstance(item, str)]
    if len(names) != len(items) or not names:
        raise BadSyntax
    return names


def marks_seen(items: Sequence[str]) -> bool:
    """Tell whether fetching these items marks the message as seen."""
    bodies = [_BODY.fullmatch(item) for item in items]
    return any(body and not body["peek"] for body in bodies) or any(
        item.upper() in {"RFC822", "RFC822.TEXT"} for item in items
    )


def fetched(message: Message, items: Sequence[str]) -> bytes:
    """Write the parenthesised answer to a FETCH of these items.

    Raises:
        BadSyntax: An item this server does not know.
    """
    return b"(" + b" ".join(_item(message, item) for item in items) + b")"


def _item(message: Message, item: str) -> bytes:
    write = _ITEMS.get(item.upper())
    return item.upper().encode() + b" " + write(message) if write else _body(message, item)


def _body(message: Message, item: str) -> bytes:
    asked = _BODY.fullmatch(item)
    if asked is None:
        raise BadSyntax
    data, suffix = _section(message.data, asked["section"]), ""
    if asked["first"]:
        first = int(asked["first"])
        data, suffix = data[first : first + int(asked["count"])], f"<{first}>"
    return f"BODY[{asked['section']}]{suffix} ".encode() + literal(data)


def _section(data: bytes, section: str) -> bytes:
    header, _, text = data.partition(b"\r\n\r\n")
    fields = _FIELDS.fullmatch(section)
    if fields:
        return _some_fields(header, fields["names"].replace('"', "").lower().split(), bool(fields["other"]))
    match section.upper():
        case "":
            return data
        case "HEADER":
            return header + b"\r\n\r\n"
        case "TEXT" | "1":
            return text
        case _:
            raise BadSyntax


def _some_fields(header: bytes, names: list[str], others: bool) -> bytes:
    kept = [
        field
        for field in re.split(rb"\r\n(?![ \t])", header)
        if (field.partition(b":")[0].decode("ascii", "replace").strip().lower() in names) is not others
    ]
    return b"".join(field + b"\r\n" for field in kept) + b"\r\n"


def _envelope(message: Message) -> bytes:
    header = BytesHeaderParser().parsebytes(message.data)

    def text(name: str) -> str | None:
        value = header.get(name)
        return None if value is None else re.sub(r"\r?\n[ \t]+", " ", str(value))

    def people(name: str, otherwise: str = "") -> bytes:
        values = header.get_all(name) or (header.get_all(otherwise) if otherwise else None) or []
        pairs = [pair for pair in getaddresses([str(value) for value in values]) if pair[1]]
        return b"(" + b"".join(_address(*pair) for pair in pairs) + b")" if pairs else b"NIL"

    return b"(" + b" ".join([
        string(text("Date")), string(text("Subject")),
        people("From"), people("Sender", "From"), people("Reply-To", "From"),
        people("To"), people("Cc"), people("Bcc"),
        string(text("In-Reply-To")), string(text("Message-ID")),
    ]) + b")"  # fmt: skip


def _address(name: str, address: str) -> bytes:
    local, _, domain = address.rpartition("@")
    return b"(" + b" ".join([string(name or None), b"NIL", string(local), string(domain)]) + b")"


_ITEMS: dict[str, Callable[[Message], bytes]] = {
    "UID": lambda message: b"%d" % message.uid,
    "FLAGS": lambda message: b"(" + " ".join(sorted(message.flags)).encode() + b")",
    "INTERNALDATE": lambda message: string(message.received.strftime("%d-%b-%Y %H:%M:%S +0000")),
    "RFC822.SIZE": lambda message: b"%d" % len(message.data),
    "ENVELOPE": _envelope,
    "RFC822": lambda message: literal(message.data),
    "RFC822.HEADER": lambda message: literal(_section(message.data, "HEADER")),
    "RFC822.TEXT": lambda message: literal(_section(message.data, "TEXT")),
}


class Search:
    """The criteria of one SEARCH, all of which a message must meet."""

    def __init__(self, criteria: Sequence[Word], messages: Sequence[Message]) -> None:
        self._words = list(criteria)
        self._messages = messages

    def found(self) -> list[tuple[int, Message]]:
        """Return sequence numbers and messages that meet every criterion.

        Raises:
            BadSyntax: A criterion this server does not know.
        """
        found = list(enumerate(self._messages, start=1))
        while self._words:
            key = self._next().upper()
            if key == "CHARSET":
                self._next()
                continue
            keep = self._matching(key)
            found = [pair for pair in found if pair[0] in keep]
        return found

    def _next(self) -> str:
        word = self._words.pop(0) if self._words else []
        if not isinstance(word, str):
            raise BadSyntax
        return word

    def _matching(self, key: str) -> set[int]:
        numbered = list(enumerate(self._messages, start=1))
        if key == "ALL":
            return {number for number, _ in numbered}
        if key == "NOT":
            return {number for number, _ in numbered} - self._matching(self._next().upper())
        if key in _FLAG_KEYS:
            flag, present = _FLAG_KEYS[key]
            return {number for number, message in numbered if (flag in message.flags) is present}
        if key == "UID":
            largest = max((message.uid for message in self._messages), default=1)
            uids = chosen_numbers(self._next(), largest)
            return {number for number, message in numbered if message.uid in uids}
        if key in {"FROM", "TO", "CC", "SUBJECT", "HEADER", "TEXT", "BODY"}:
            return self._containing(key)
        return chosen_numbers(key, len(self._messages))

    def _containing(self, key: str) -> set[int]:
        name = self._next() if key == "HEADER" else key
        text = self._next().lower().encode("utf-8", "surrogateescape")
        section = {"TEXT": "", "BODY": "TEXT"}.get(key, f"HEADER.FIELDS ({name})")
        return {
            number
            for number, message in enumerate(self._messages, start=1)
            if text in _section(message.data, section).lower()
        }


_FLAG_KEYS = {
    f"{prefix}{name}": (f"\\{name.capitalize()}", prefix == "")
    for name in ("SEEN", "DELETED", "FLAGGED", "ANSWERED", "DRAFT")
    for prefix in ("", "UN")
}

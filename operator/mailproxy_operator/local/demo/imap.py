# SPDX-License-Identifier: Apache-2.0
"""The demo's IMAP4rev1 server: one mailbox, INBOX, as much as a mail program needs to read it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from mailproxy_operator.local.demo.imap_fetch import Search, fetched, marks_seen, wanted_items
from mailproxy_operator.local.demo.imap_syntax import (
    BadSyntax,
    Word,
    announced_literal,
    chosen_numbers,
    placeholder,
    words,
)
from mailproxy_operator.local.demo.mailbox import MAX_BYTES, Account, Mailbox, Message
from mailproxy_operator.local.demo.sasl import plain_credentials
from mailproxy_operator.local.demo.wire import MAX_LINE, NotFoundOrConflict, Wire

MAX_LITERALS = 16
_CAPABILITY = b"CAPABILITY IMAP4rev1 LITERAL+ IDLE UIDPLUS AUTH=PLAIN"
_FLAGS = r"\Answered \Flagged \Deleted \Seen \Draft"


@dataclass(slots=True)
class _Command:
    """One command: its tag, its upper-case name, and its words; ``uid`` for the UID form."""

    tag: bytes
    name: str
    words: list[Word]
    uid: bool = False

    def text(self, index: int) -> str:
        word = self.words[index] if index < len(self.words) else []
        if not isinstance(word, str):
            raise BadSyntax
        return word


class _Session:
    """One connection: who is in, which view of the mailbox is open."""

    def __init__(self, wire: Wire, mailbox: Mailbox, account: Account) -> None:
        self.wire = wire
        self.mailbox = mailbox
        self.account = account
        self.logged_in = False
        self.selected = False
        self.view: list[Message] = []

    async def refresh(self) -> None:
        """Tell what was removed and what has come since the client last looked."""
        if not self.selected:
            return
        present = {message.uid for message in self.mailbox.messages}
        for number in range(len(self.view), 0, -1):
            if self.view[number - 1].uid not in present:
                del self.view[number - 1]
                await self.wire.say(b"* %d EXPUNGE" % number)
        if len(self.view) != len(self.mailbox.messages):
            self.view = list(self.mailbox.messages)
            await self.wire.say(b"* %d EXISTS" % len(self.view))

    def chosen(self, command: _Command) -> Iterator[tuple[int, Message]]:
        """Go through the messages that a command's first word chooses."""
        last = max((message.uid for message in self.view), default=1) if command.uid else len(self.view)
        numbers = chosen_numbers(command.text(0), last)
        for number, message in enumerate(list(self.view), start=1):
            if (message.uid if command.uid else number) in numbers:
                yield number, message


async def converse(wire: Wire, mailbox: Mailbox, account: Account) -> None:
    """Serve one IMAP connection (RFC 3501; RFC 2177 for IDLE, RFC 7888 for literals)."""
    session = _Session(wire, mailbox, account)
    await wire.say(b"* OK [" + _CAPABILITY + b"] MailProxy demo ready")
    while True:
        try:
            command = await _received(wire)
        except BadSyntax:
            await wire.say(b"* BAD Syntax error")
            continue
        if command.name == "LOGOUT":
            await wire.say(b"* BYE Logging out", command.tag + b" OK LOGOUT completed")
            return
        await _answer(session, command)


async def _answer(session: _Session, command: _Command) -> None:
    handle = _ANY_STATE.get(command.name)
    if handle is None and session.logged_in:
        handle = _AUTHENTICATED.get(command.name)
    if handle is None and session.selected:
        handle = _SELECTED.get(command.name)
    try:
        if handle is None:
            raise BadSyntax
        reply = await handle(session, command)
    except BadSyntax:
        reply = b"BAD Command not understood, or not now"
    await session.wire.say(command.tag + b" " + reply)


async def _received(wire: Wire) -> _Command:
    """Read a command with its literals.

    Raises:
        BadSyntax: It does not parse.
        NotFoundOrConflict: It is larger than this server takes.
    """
    text, literals = b"", list[str]()
    while True:
        text += await wire.line()
        announced = announced_literal(text)
        if announced is None:
            break
        size, waits = announced
        if size > MAX_BYTES or len(literals) >= MAX_LITERALS or len(text) > MAX_LINE:
            raise NotFoundOrConflict
        if waits:
            await wire.say(b"+ OK")
        text = text[: text.rindex(b"{")] + placeholder(len(literals))
        literals.append((await wire.exactly(size)).decode("utf-8", "surrogateescape"))
    return _parsed(text, literals)


def _parsed(text: bytes, literals: list[str]) -> _Command:
    rest = words(text.decode("utf-8", "surrogateescape"), literals)
    if len(rest) < 2:
        raise BadSyntax
    tag, name = rest.pop(0), rest.pop(0)
    if not isinstance(tag, str) or not isinstance(name, str) or not tag or not name:
        raise BadSyntax
    uid = name.upper() == "UID" and bool(rest)
    name = rest.pop(0) if uid else name
    if not isinstance(name, str):
        raise BadSyntax
    return _Command(tag.encode("utf-8", "surrogateescape"), name.upper(), rest, uid)


async def _capability(session: _Session, _: _Command) -> bytes:
    await session.wire.say(b"* " + _CAPABILITY)
    return b"OK CAPABILITY completed"


async def _noop(session: _Session, _: _Command) -> bytes:
    await session.refresh()
    return b"OK Completed"


async def _login(session: _Session, command: _Command) -> bytes:
    return _admitted(session, command.text(0), command.text(1))


async def _authenticate(session: _Session, command: _Command) -> bytes:
    if command.text(0).upper() != "PLAIN":
        return b"NO Unsupported mechanism"
    initial = command.words[1:]
    if not initial:
        await session.wire.say(b"+ ")
    message = command.text(1) if initial else await session.wire.line()
    return _admitted(session, *plain_credentials(message))


def _admitted(session: _Session, user: str, password: str) -> bytes:
    session.logged_in = session.logged_in or session.account.admits(user, password)
    if not session.logged_in:
        return b"NO [AUTHENTICATIONFAILED] Invalid login or password"
    return b"OK [" + _CAPABILITY + b"] Logged in"


async def _select(session: _Session, command: _Command) -> bytes:
    if command.text(0).upper() != "INBOX":
        return b"NO No such mailbox"
    session.selected, session.view = True, list(session.mailbox.messages)
    await session.wire.say(
        b"* %d EXISTS" % len(session.view),
        b"* 0 RECENT",
        f"* FLAGS ({_FLAGS})".encode(),
        f"* OK [PERMANENTFLAGS ({_FLAGS})] Kept until the demo ends".encode(),
        b"* OK [UIDVALIDITY %d] Valid" % session.mailbox.uid_validity,
        b"* OK [UIDNEXT %d] Next" % session.mailbox.uid_next,
    )
    return b"OK [READ-WRITE] SELECT completed"


async def _status(session: _Session, command: _Command) -> bytes:
    messages = session.mailbox.messages
    values = {
        "MESSAGES": len(messages),
        "RECENT": 0,
        "UIDNEXT": session.mailbox.uid_next,
        "UIDVALIDITY": session.mailbox.uid_validity,
        "UNSEEN": sum("\\Seen" not in message.flags for message in messages),
    }
    asked = command.words[1] if len(command.words) > 1 else []
    names = [name.upper() for name in asked if isinstance(name, str)]
    answer = " ".join(f"{name} {values[name]}" for name in names if name in values)
    await session.wire.say(f"* STATUS INBOX ({answer})".encode())
    return b"OK STATUS completed"


async def _list(session: _Session, command: _Command) -> bytes:
    pattern = command.text(1)
    if pattern == "":
        await session.wire.say(f'* {command.name} (\\Noselect) "/" ""'.encode())
    elif pattern in {"*", "%"} or pattern.upper() == "INBOX":
        await session.wire.say(f'* {command.name} () "/" INBOX'.encode())
    return b"OK Completed"


async def _append(session: _Session, command: _Command) -> bytes:
    if command.text(0).upper() != "INBOX":
        return b"NO [TRYCREATE] No such mailbox"
    flags = command.words[1] if len(command.words) > 2 and isinstance(command.words[1], list) else []
    data = command.text(len(command.words) - 1).encode("utf-8", "surrogateescape")
    message = session.mailbox.deliver(data, frozenset(flag for flag in flags if isinstance(flag, str)))
    await session.refresh()
    return b"OK [APPENDUID %d %d] APPEND completed" % (session.mailbox.uid_validity, message.uid)


async def _idle(session: _Session, _: _Command) -> bytes:
    await session.wire.say(b"+ idling")
    done: bytes | None = None
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(_watch(session))
        with suppress(NotFoundOrConflict):
            done = await session.wire.line()
        watch.cancel()
    if done is None:
        raise NotFoundOrConflict
    return b"OK IDLE completed" if done.upper() == b"DONE" else b"BAD Expected DONE"


async def _watch(session: _Session) -> None:
    with suppress(NotFoundOrConflict):
        while True:
            delivery = session.mailbox.next_delivery
            await session.refresh()
            await delivery.wait()


async def _search(session: _Session, command: _Command) -> bytes:
    found = Search(command.words, session.view).found()
    numbers = [message.uid if command.uid else number for number, message in found]
    await session.wire.say(" ".join(["* SEARCH", *map(str, numbers)]).encode())
    return b"OK SEARCH completed"


async def _fetch(session: _Session, command: _Command) -> bytes:
    if len(command.words) != 2:
        raise BadSyntax
    items = wanted_items(command.words[1])
    if command.uid and "UID" not in (item.upper() for item in items):
        items = ["UID", *items]
    for number, message in session.chosen(command):
        await session.wire.say(b"* %d FETCH " % number + fetched(message, items))
        if marks_seen(items):
            message.flags.add("\\Seen")
    return b"OK FETCH completed"


async def _store(session: _Session, command: _Command) -> bytes:
    action, _, silent = command.text(1).upper().partition(".")
    given = command.words[2] if len(command.words) > 2 else []
    flags = {flag for flag in ([given] if isinstance(given, str) else given) if isinstance(flag, str)}
    for number, message in session.chosen(command):
        match action:
            case "FLAGS":
                message.flags = set(flags)
            case "+FLAGS":
                message.flags |= flags
            case "-FLAGS":
                message.flags -= flags
            case _:
                raise BadSyntax
        if not silent:
            items = ["UID", "FLAGS"] if command.uid else ["FLAGS"]
            await session.wire.say(b"* %d FETCH " % number + fetched(message, items))
    return b"OK STORE completed"


async def _expunge(session: _Session, _: _Command) -> bytes:
    marked = frozenset(message.uid for message in session.view if "\\Deleted" in message.flags)
    session.mailbox.remove(marked)
    await session.refresh()
    return b"OK EXPUNGE completed"


async def _close(session: _Session, _: _Command) -> bytes:
    session.mailbox.remove(frozenset(m.uid for m in session.view if "\\Deleted" in m.flags))
    session.selected, session.view = False, []
    return b"OK CLOSE completed"


_ANY_STATE = {"CAPABILITY": _capability, "NOOP": _noop, "LOGIN": _login, "AUTHENTICATE": _authenticate}
_AUTHENTICATED = {
    "SELECT": _select,
    "EXAMINE": _select,
    "STATUS": _status,
    "LIST": _list,
    "LSUB": _list,
    "APPEND": _append,
    "IDLE": _idle,
}
_SELECTED = {
    "SEARCH": _search,
    "FETCH": _fetch,
    "STORE": _store,
    "EXPUNGE": _expunge,
    "CLOSE": _close,
    "CHECK": _noop,
}

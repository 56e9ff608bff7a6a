# SPDX-License-Identifier: Apache-2.0
"""The demo's POP3 server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mailproxy_demo.memory_mailbox import Account, Mailbox, Message
from mailproxy_demo.wire import Wire

_CAPABILITIES = (b"+OK", b"TOP", b"UIDL", b"USER", b"PIPELINING", b".")


@dataclass(slots=True)
class _Session:
    """A maildrop as it was when the client logged in (RFC 1939 section 3)."""

    wire: Wire
    messages: list[Message] = field(default_factory=list)
    deleted: set[int] = field(default_factory=set)

    def present(self) -> list[tuple[int, Message]]:
        numbered = enumerate(self.messages, start=1)
        return [(number, message) for number, message in numbered if number not in self.deleted]

    def chosen(self, word: str) -> Message | None:
        number = int(word) if word.isdecimal() else 0
        return next((message for at, message in self.present() if at == number), None)


async def converse(wire: Wire, mailbox: Mailbox, account: Account) -> None:
    """Serve one POP3 connection (RFC 1939, RFC 2449)."""
    await wire.say(b"+OK MailProxy demo ready")
    if not await _logged_in(wire, account):
        return
    session = _Session(wire, list(mailbox.messages))
    await wire.say(b"+OK %d messages" % len(session.messages))
    while True:
        verb, *words = (await wire.line()).decode("ascii", "replace").split() or [""]
        if verb.upper() == "QUIT":
            mailbox.remove(frozenset(session.messages[number - 1].uid for number in session.deleted))
            await wire.say(b"+OK Bye")
            return
        handle = _COMMANDS.get(verb.upper())
        if handle is None:
            await wire.say(b"-ERR Unknown command")
        else:
            await handle(session, words)


async def _logged_in(wire: Wire, account: Account) -> bool:
    user = ""
    while True:
        verb, _, rest = (await wire.line()).decode("utf-8", "surrogateescape").partition(" ")
        match verb.upper():
            case "USER":
                user = rest
                await wire.say(b"+OK")
            case "PASS" if account.admits(user, rest):
                return True
            case "PASS":
                await wire.say(b"-ERR [AUTH] Invalid login or password")
            case "CAPA":
                await wire.say(*_CAPABILITIES)
            case "QUIT":
                await wire.say(b"+OK Bye")
                return False
            case _:
                await wire.say(b"-ERR Log in first")


async def _stat(session: _Session, _: list[str]) -> None:
    present = session.present()
    await session.wire.say(b"+OK %d %d" % (len(present), sum(len(message.data) for _, message in present)))


async def _list(session: _Session, words: list[str]) -> None:
    await _listing(session, words, lambda message: str(len(message.data)))


async def _uidl(session: _Session, words: list[str]) -> None:
    await _listing(session, words, lambda message: f"demo-{message.uid}")


async def _listing(session: _Session, words: list[str], value: Callable[[Message], str]) -> None:
    if words:
        message = session.chosen(words[0])
        await session.wire.say(f"+OK {words[0]} {value(message)}".encode() if message else _NO_SUCH)
        return
    lines = [f"{number} {value(message)}".encode() for number, message in session.present()]
    await session.wire.say(b"+OK", *lines, b".")


async def _retr(session: _Session, words: list[str]) -> None:
    message = session.chosen(words[0] if words else "")
    if message is None:
        await session.wire.say(_NO_SUCH)
    else:
        await session.wire.say(b"+OK %d bytes" % len(message.data), *_stuffed(message.data), b".")


async def _top(session: _Session, words: list[str]) -> None:
    message = session.chosen(words[0] if words else "")
    if message is None or len(words) < 2 or not words[1].isdecimal():
        await session.wire.say(_NO_SUCH)
        return
    header, _, body = message.data.partition(b"\r\n\r\n")
    lines = body.splitlines()[: int(words[1])]
    await session.wire.say(b"+OK", *_stuffed(header), b"", *_stuffed(b"\r\n".join(lines)), b".")


def _stuffed(data: bytes) -> list[bytes]:
    lines = data.removesuffix(b"\r\n").split(b"\r\n") if data else []
    return [b"." + line if line.startswith(b".") else line for line in lines]


async def _dele(session: _Session, words: list[str]) -> None:
    message = session.chosen(words[0] if words else "")
    if message is None:
        await session.wire.say(_NO_SUCH)
    else:
        session.deleted.add(int(words[0]))
        await session.wire.say(b"+OK Deleted")


async def _rset(session: _Session, _: list[str]) -> None:
    session.deleted.clear()
    await session.wire.say(b"+OK")


async def _noop(session: _Session, _: list[str]) -> None:
    await session.wire.say(b"+OK")


async def _capa(session: _Session, _: list[str]) -> None:
    await session.wire.say(*_CAPABILITIES)


_NO_SUCH = b"-ERR No such message"
_COMMANDS = {
    "STAT": _stat,
    "LIST": _list,
    "UIDL": _uidl,
    "RETR": _retr,
    "TOP": _top,
    "DELE": _dele,
    "RSET": _rset,
    "NOOP": _noop,
    "CAPA": _capa,
}

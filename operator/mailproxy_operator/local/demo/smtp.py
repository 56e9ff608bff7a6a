# SPDX-License-Identifier: Apache-2.0
"""The demo's SMTP server: a submission backend behind the proxy, and on its own.

It trusts XCLIENT, as a backend of nginx does: whoever the proxy has
identified may send.  Without XCLIENT a client logs in with AUTH.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mailproxy_operator.local.demo.mailbox import MAX_BYTES, Account, Mailbox
from mailproxy_operator.local.demo.sasl import decoded, plain_credentials
from mailproxy_operator.local.demo.wire import NotFoundOrConflict, Wire

MAX_RECIPIENTS = 100
_CAPABILITIES = (
    b"250-demo.invalid",
    b"250-PIPELINING",
    b"250-8BITMIME",
    b"250-ENHANCEDSTATUSCODES",
    b"250-SIZE %d" % MAX_BYTES,
    b"250-AUTH PLAIN LOGIN",
    b"250 XCLIENT ADDR NAME LOGIN PROTO HELO PORT",
)
_GREETING = b"220 demo.invalid ESMTP MailProxy demo"


@dataclass(slots=True)
class _Session:
    """What one connection has said so far."""

    wire: Wire
    mailbox: Mailbox
    account: Account
    user: str = ""
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)

    def forget_message(self) -> None:
        self.sender = None
        self.recipients.clear()


async def converse(wire: Wire, mailbox: Mailbox, account: Account) -> None:
    """Serve one SMTP connection (RFC 5321, RFC 4954, Postfix's XCLIENT)."""
    session = _Session(wire, mailbox, account)
    await wire.say(_GREETING)
    while True:
        verb, _, rest = (await wire.line()).decode("utf-8", "surrogateescape").partition(" ")
        if verb.upper() == "QUIT":
            await wire.say(b"221 2.0.0 Bye")
            return
        handle = _COMMANDS.get(verb.upper())
        if handle is None:
            await wire.say(b"502 5.5.2 Command not recognized")
        else:
            await handle(session, rest.strip())


async def _hello(session: _Session, _: str) -> None:
    session.forget_message()
    await session.wire.say(*_CAPABILITIES)


async def _helo(session: _Session, _: str) -> None:
    session.forget_message()
    await session.wire.say(b"250 demo.invalid")


async def _xclient(session: _Session, rest: str) -> None:
    attributes = dict(word.partition("=")[::2] for word in rest.split())
    if attributes.get("LOGIN"):
        session.user = attributes["LOGIN"]
    await session.wire.say(_GREETING)


async def _auth(session: _Session, rest: str) -> None:
    mechanism, _, initial = rest.partition(" ")
    match mechanism.upper():
        case "PLAIN":
            user, password = plain_credentials(initial or await _challenge(session, b"334 "))
        case "LOGIN":
            user = decoded(initial or await _challenge(session, b"334 VXNlcm5hbWU6")).decode(errors="replace")
            password = decoded(await _challenge(session, b"334 UGFzc3dvcmQ6")).decode(errors="replace")
        case _:
            await session.wire.say(b"504 5.5.4 Unrecognized authentication type")
            return
    if session.account.admits(user, password):
        session.user = user
        await session.wire.say(b"235 2.7.0 Authentication successful")
    else:
        await session.wire.say(b"535 5.7.8 Authentication failed")


async def _challenge(session: _Session, challenge: bytes) -> bytes:
    await session.wire.say(challenge)
    return await session.wire.line()


async def _mail(session: _Session, rest: str) -> None:
    address = _path(rest, "FROM:")
    if not session.user:
        await session.wire.say(b"530 5.7.0 Authentication required")
    elif address is None:
        await session.wire.say(b"501 5.5.4 Syntax: MAIL FROM:<address>")
    else:
        session.forget_message()
        session.sender = address
        await session.wire.say(b"250 2.1.0 Ok")


async def _rcpt(session: _Session, rest: str) -> None:
    address = _path(rest, "TO:")
    if session.sender is None:
        await session.wire.say(b"503 5.5.1 Need MAIL command first")
    elif not address:
        await session.wire.say(b"501 5.5.4 Syntax: RCPT TO:<address>")
    elif len(session.recipients) >= MAX_RECIPIENTS:
        await session.wire.say(b"452 4.5.3 Too many recipients")
    else:
        session.recipients.append(address)
        await session.wire.say(b"250 2.1.5 Ok")


def _path(rest: str, keyword: str) -> str | None:
    if not rest.upper().startswith(keyword):
        return None
    path = rest[len(keyword) :].strip()
    return path[1:].partition(">")[0] if path.startswith("<") and ">" in path else None


async def _data(session: _Session, _: str) -> None:
    if not session.recipients:
        await session.wire.say(b"503 5.5.1 Need RCPT command first")
        return
    await session.wire.say(b"354 End data with <CR><LF>.<CR><LF>")
    data = await _message(session.wire)
    if data is None:
        await session.wire.say(b"552 5.3.4 Message too large")
    else:
        message = session.mailbox.deliver(_trace(session) + data)
        await session.wire.say(b"250 2.0.0 Ok: queued as %d" % message.uid)
    session.forget_message()


def _trace(session: _Session) -> bytes:
    recipients = ", ".join(session.recipients)
    text = f"Return-Path: <{session.sender}>\r\nDelivered-To: {recipients}\r\n"
    return text.encode("utf-8", "surrogateescape")


async def _message(wire: Wire) -> bytes | None:
    """Read until the lone dot; ``None`` when it was more than a mailbox takes."""
    lines: list[bytes] = []
    size = 0
    while (line := await wire.line()) != b".":
        size += len(line) + 2
        if size > 2 * MAX_BYTES:
            raise NotFoundOrConflict
        if size <= MAX_BYTES:
            lines.append(line.removeprefix(b"."))
    return b"".join(line + b"\r\n" for line in lines) if size <= MAX_BYTES else None


async def _rset(session: _Session, _: str) -> None:
    session.forget_message()
    await session.wire.say(b"250 2.0.0 Ok")


async def _noop(session: _Session, _: str) -> None:
    await session.wire.say(b"250 2.0.0 Ok")


async def _vrfy(session: _Session, _: str) -> None:
    await session.wire.say(b"252 2.0.0 Cannot verify, send some mail")


_COMMANDS = {
    "EHLO": _hello,
    "HELO": _helo,
    "XCLIENT": _xclient,
    "AUTH": _auth,
    "MAIL": _mail,
    "RCPT": _rcpt,
    "DATA": _data,
    "RSET": _rset,
    "NOOP": _noop,
    "VRFY": _vrfy,
}

# SPDX-License-Identifier: Apache-2.0
"""Commands of SMTP clients before the login."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import GRANT, SMTP_OK, Dialogue, SendPieces, Step, WaitForReply, b64
from support.parity.server_blocks import Block

BLOCKS: Final = (
    Block("smtp", "smtp"),
    Block(
        "smtp-caps",
        "smtp",
        'smtp_capabilities "SIZE 10485760" ENHANCEDSTATUSCODES 8BITMIME DSN; smtp_auth login plain cram-md5;',
    ),
    Block("smtp-none", "smtp", "smtp_auth none;"),
    Block("smtp-none-caps", "smtp", 'smtp_auth none; smtp_capabilities PIPELINING "SIZE 1";'),
    Block("smtp-external", "smtp", "smtp_auth external;"),
    Block("smtp-small", "smtp", "smtp_client_buffer 256;"),
    Block("smtp-max2", "smtp", "max_errors 2;"),
    Block("smtp-delay", "smtp", "smtp_greeting_delay 300ms;"),
)

_LINES: Final[dict[str, bytes]] = {
    "HELO": b"HELO client.example\r\n",
    "HELO without a name": b"HELO\r\n",
    "HELO with two names": b"HELO a b\r\n",
    "HELO with 8 bits": b"HELO \xe9\r\n",
    "EHLO": b"EHLO client.example\r\n",
    "EHLO without a name": b"ehlo \r\n",
    "EHLO with two names": b"EHLO a b\r\n",
    "NOOP": b"NOOP\r\n",
    "NOOP with arguments": b"noop a b c\r\n",
    "NOOP with eleven arguments": b"NOOP 1 2 3 4 5 6 7 8 9 10 11\r\n",
    "NOOP with twelve arguments": b"NOOP 1 2 3 4 5 6 7 8 9 10 11 12\r\n",
    "RSET": b"RSET\r\n",
    "QUIT": b"QUIT\r\n",
    "QUIT with arguments": b"QUIT now\r\n",
    "VRFY": b"VRFY postmaster\r\n",
    "EXPN": b"EXPN list\r\n",
    "HELP": b"HELP\r\n",
    "DATA": b"DATA\r\n",
    "BDAT": b"BDAT 5 LAST\r\n",
    "XCLIENT": b"XCLIENT ADDR=192.0.2.1\r\n",
    "an unknown word": b"FOOBAR\r\n",
    "an empty line": b"\r\n",
    "a space": b" \r\n",
    "bare LF": b"NOOP\n",
    "bare CR": b"NOOP\rx\r\n",
    "CR CR LF": b"NOOP\r\r\n",
    "a word with a TAB": b"NOOP\t\r\n",
    "bytes": bytes(range(128, 160)) + b"\r\n",
    "HTTP": b"GET / HTTP/1.0\r\n",
    "HTTP's POST": b"POST / HTTP/1.1\r\n",
    "STARTTLS where there is none": b"STARTTLS\r\n",
    "MAIL": b"MAIL FROM:<a@x>\r\n",
    "MAIL without arguments": b"MAIL\r\n",
    "RCPT without MAIL": b"RCPT TO:<b@x>\r\n",
    "RCPT without arguments": b"RCPT\r\n",
    "AUTH": b"AUTH\r\n",
    "AUTH with an unknown mechanism": b"AUTH XOAUTH2\r\n",
    "AUTH with three words": b"AUTH PLAIN x y\r\n",
    "AUTH CRAM-MD5": b"AUTH CRAM-MD5\r\n",
    "AUTH CRAM-MD5 at once": b"AUTH CRAM-MD5 x\r\n",
    "AUTH EXTERNAL": b"AUTH EXTERNAL\r\n",
    "AUTH PLAIN with nonsense": b"AUTH PLAIN !!!\r\n",
    "AUTH PLAIN without NUL": b"AUTH PLAIN " + b64("user") + b"\r\n",
    "AUTH LOGIN with a bad name": b"AUTH LOGIN !!\r\n",
}

_COURSES: Final[dict[str, tuple[Step, ...]]] = {
    "AUTH is called off": (b"AUTH PLAIN\r\n", b"*\r\n", b"NOOP\r\n"),
    "AUTH is answered with a command": (b"AUTH PLAIN\r\n", b"RSET\r\n", b"NOOP\r\n"),
    "AUTH is answered with twelve words": (b"AUTH PLAIN\r\n", b"x 1 2 3 4 5 6 7 8 9 10 11\r\n", b"NOOP\r\n"),
    "AUTH is answered with a bare CR": (b"AUTH PLAIN\r\n", b"AHU\rAcA\r\n", b"NOOP\r\n"),
    "AUTH LOGIN fails at the password": (b"AUTH LOGIN\r\n", b"dQ==\r\n", b"!\r\n", b"NOOP\r\n"),
    "AUTH without EHLO": (b"AUTH PLAIN " + b64("\0u\0p") + b"\r\n", b"NOOP\r\n"),
    "AUTH after HELO": (b"HELO x\r\n", b"AUTH PLAIN " + b64("\0u\0p") + b"\r\n", b"NOOP\r\n"),
    "AUTH after EHLO and HELO": (
        b"EHLO x\r\n",
        b"HELO y\r\n",
        b"AUTH PLAIN " + b64("\0u\0p") + b"\r\n",
        b"NOOP\r\n",
    ),
    "five errors": (b"A\r\nB\r\nC\r\nD\r\nE\r\nNOOP\r\n",),
    "errors that do not count": (b"RCPT x\r\n" * 7 + b"VRFY\r\nHELO\r\nNOOP\r\n",),
    "two errors apart": (b"A\r\n", b"NOOP\r\n", b"EHLO x\r\n", b"B\r\n", b"NOOP\r\n"),
    "MAIL that is refused, pipelined": (b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nNOOP\r\n",),
}

_TRANSACTIONS: Final[dict[str, tuple[Step, ...]]] = {
    "a transaction": (b"EHLO cl\r\n", b"MAIL FROM:<a@x>  SIZE=1 \r\n", b"RCPT TO:<b@x>\r\n", b"DATA\r\n"),
    "a transaction without EHLO": (b"MAIL FROM:<>\r\n", b"RCPT TO:<b@x> NOTIFY=NEVER\r\n", b"DATA\r\n"),
    "a transaction after HELO": (b"HELO cl\r\n", b"mail from:<a>\r\n", b"rcpt to:<b>\r\n", b"DATA\r\n"),
    "the order": (
        b"EHLO cl\r\n",
        b"RCPT TO:<b@x>\r\n",
        b"MAIL\r\n",
        b"MAIL FROM:<a@x>\r\n",
        b"MAIL FROM:<z@x>\r\n",
        b"RCPT\r\n",
        b"RSET\r\n",
        b"RCPT TO:<b@x>\r\n",
        b"MAIL x\r\n",
        b"HELO again\r\n",
        b"RCPT TO:<b@x>\r\n",
    ),
    "a transaction in one packet": (b"EHLO cl\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nDATA\r\n",),
    "MAIL with 8 bits": (b"MAIL FROM:<\xc3\xa9@x> SMTPUTF8\r\n", b"RCPT TO:<\xff>\r\n", b"DATA\r\n"),
    "AUTH inside a transaction": (
        b"EHLO cl\r\n",
        b"MAIL FROM:<a@x>\r\n",
        b"AUTH PLAIN " + b64("\0u\0p") + b"\r\n",
        b"RCPT TO:<b@x>\r\n",
    ),
}

_LIMITS: Final[dict[str, tuple[Step, ...]]] = {
    "a line of all the buffer": (b"NOOP " + b"x" * 249 + b"\r\n", b"NOOP\r\n"),
    "a line one byte too long": (b"NOOP " + b"x" * 250 + b"\r\n", b"NOOP\r\n"),
    "a line without an end": (b"HELO " + b"x" * 600,),
    "a response line too long": (b"AUTH PLAIN\r\n", b"A" * 300 + b"\r\n"),
}

_DELAYED: Final[dict[str, tuple[Step, ...]]] = {
    "patient": (WaitForReply(2.0), b"NOOP\r\n", b"QUIT\r\n"),
    "impatient": (b"HELO x\r\nMAIL FROM\r\n", WaitForReply(2.0)),
    "impatient with one byte": (b"\r", WaitForReply(2.0)),
}

PIPELINED: Final = (
    b"EHLO x\r\nFOO\r\nAUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\n",
    b"HELO y\nNOOP\r\n\r\nAUTH PLAIN AHUAcA==\r\nRSET\r\n",
    b"VRFY x\r\nRSET\r\nMAIL x\r\nQUIT\r\nNOOP\r\n",
)
_RELAYED: Final = (*SMTP_OK, b"250 ok\r\n", b"250 rcpt\r\n", b"250 relayed\r\n", b"250 relayed\r\n")


def _dialogues() -> Iterator[Dialogue]:
    for block in ("smtp", "smtp-caps", "smtp-none", "smtp-none-caps", "smtp-external"):
        for name, line in _LINES.items():
            yield Dialogue(
                name=f"{name} ({block})", block=block, area="smtp commands", steps=(line, b"NOOP\r\n")
            )
    for block in ("smtp", "smtp-max2"):
        for name, steps in _COURSES.items():
            yield Dialogue(
                name=f"{name} ({block})",
                block=block,
                area="smtp states and errors",
                steps=steps,
                auth=(GRANT,),
                upstream=_RELAYED,
            )
    for name, steps in _TRANSACTIONS.items():
        yield Dialogue(
            name=name,
            block="smtp-none",
            area="smtp transactions",
            steps=steps,
            auth=(GRANT,),
            upstream=_RELAYED,
        )
    for name, steps in _LIMITS.items():
        yield Dialogue(name=name, block="smtp-small", area="smtp limits", steps=steps)
    for name, steps in _DELAYED.items():
        yield Dialogue(name=name, block="smtp-delay", area="smtp greeting delay", steps=steps)
    yield from _cuts()


def _cuts() -> Iterator[Dialogue]:
    for number, data in enumerate(PIPELINED, 1):
        pieces = [(data[:at], data[at:]) for at in range(1, len(data))]
        singles = tuple(data[at : at + 1] for at in range(len(data)))
        for cut in [(data,), *pieces, singles]:
            where = "in single bytes" if cut is singles else f"cut at {len(cut[0])}"
            yield Dialogue(
                name=f"pipeline {number} {where}",
                block="smtp",
                area="smtp pipelining",
                steps=(SendPieces(cut),),
                auth=(GRANT,),
                upstream=_RELAYED,
            )


DIALOGUES: Final = tuple(_dialogues())

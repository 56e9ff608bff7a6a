# SPDX-License-Identifier: Apache-2.0
"""Commands of POP3 clients before the login."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import GRANT, POP3_OK, Dialogue, SendPieces, Step, b64
from support.parity.server_blocks import Block

BLOCKS: Final = (
    Block("pop3", "pop3"),
    Block("pop3-apop", "pop3", "pop3_auth apop; pop3_capabilities X;"),
    Block("pop3-cram", "pop3", "pop3_auth cram-md5; pop3_capabilities LAST TOP USER PIPELINING UIDL;"),
    Block("pop3-more", "pop3", "pop3_auth plain external;"),
    Block("pop3-max2", "pop3", "max_errors 2;"),
)
_DIGEST: Final = b"b913a602c7eda7a495b4e6e7334d3890"

_LINES: Final[dict[str, bytes]] = {
    "CAPA": b"CAPA\r\n",
    "CAPA with arguments": b"capa x y\r\n",
    "NOOP": b"NOOP\r\n",
    "NOOP with arguments": b"NoOp x y z\r\n",
    "NOOP with four arguments": b"NOOP x y z u\r\n",
    "QUIT": b"QUIT\r\n",
    "QUIT with arguments": b"QUIT now\r\n",
    "AUTH": b"AUTH\r\n",
    "AUTH and a space": b"AUTH \r\n",
    "STLS where there is none": b"STLS\r\n",
    "STAT": b"STAT\r\n",
    "an unknown word": b"FOOBAR x\r\n",
    "a word too short": b"NOO\r\n",
    "a word with a digit": b"NOOP1\r\n",
    "a word with a TAB": b"USER\tx\r\n",
    "an empty line": b"\r\n",
    "a space": b" \r\n",
    "a space before a word": b" NOOP\r\n",
    "bare LF": b"NOOP\n",
    "bare CR": b"NOOP\rx\r\n",
    "CR CR LF": b"NOOP\r\r\n",
    "bytes": bytes(range(128, 160)) + b"\r\n",
    "HTTP": b"GET / HTTP/1.0\r\n",
    "NUL": b"NO\0P\r\n",
    "PASS without USER": b"PASS x\r\n",
    "USER without a name": b"USER\r\n",
    "USER with spaces alone": b"USER   \r\n",
    "APOP": b"APOP user\r\n",
    "APOP with three arguments": b"APOP user " + _DIGEST + b" x\r\n",
    "APOP where it is not enabled": b"APOP user " + _DIGEST + b"\r\n",
    "AUTH with an unknown mechanism": b"AUTH XOAUTH2\r\n",
    "AUTH with three words": b"AUTH PLAIN x y\r\n",
    "AUTH with four words": b"AUTH PLAIN x y z\r\n",
    "AUTH CRAM-MD5": b"AUTH CRAM-MD5\r\n",
    "AUTH CRAM-MD5 at once": b"AUTH CRAM-MD5 x\r\n",
    "AUTH EXTERNAL": b"AUTH EXTERNAL\r\n",
    "AUTH PLAIN with nonsense": b"AUTH PLAIN !!!\r\n",
    "AUTH PLAIN without NUL": b"AUTH PLAIN " + b64("user") + b"\r\n",
    "AUTH PLAIN with one NUL": b"AUTH PLAIN " + b64("\0user") + b"\r\n",
    "AUTH LOGIN with a bad name": b"AUTH LOGIN !!\r\n",
}

_COURSES: Final[dict[str, tuple[Step, ...]]] = {
    "USER is forgotten by STAT": (b"USER u\r\n", b"STAT\r\n", b"PASS p\r\n"),
    "USER is forgotten by USER": (b"USER u\r\n", b"USER v\r\n", b"PASS p\r\n"),
    "USER is forgotten by AUTH": (b"USER u\r\n", b"AUTH PLAIN\r\n", b"PASS p\r\n"),
    "USER is forgotten by APOP": (b"USER u\r\n", b"APOP u " + _DIGEST + b"\r\n", b"PASS p\r\n"),
    "USER is forgotten by PASS without a password": (b"USER u\r\n", b"PASS \r\n", b"PASS p\r\n"),
    "USER is not forgotten by NOOP and CAPA": (
        b"USER u\r\n",
        b"NOOP\r\n",
        b"CAPA\r\n",
        b"PASS p\r\n",
        b"LIST\r\n",
    ),
    "QUIT after USER": (b"USER u\r\n", b"QUIT\r\n"),
    "spaces in name and password": (b"USER   u v  \r\n", b"PASS  p  q \r\n", b"LIST\r\n"),
    "bytes in name and password": (b"USER \xe9\x01\t\r\n", b'PASS "\x7f%{}\r\n', b"LIST\r\n"),
    "AUTH is called off": (b"AUTH PLAIN\r\n", b"*\r\n", b"NOOP\r\n"),
    "AUTH is answered with a command": (b"AUTH PLAIN\r\n", b"NOOP\r\n", b"NOOP\r\n"),
    "AUTH is answered with too many words": (b"AUTH PLAIN\r\n", b"x a b c d\r\n", b"NOOP\r\n"),
    "AUTH is answered with a bare CR": (b"AUTH PLAIN\r\n", b"AHU\rAcA\r\n", b"NOOP\r\n"),
    "AUTH is answered with an empty line": (b"AUTH PLAIN\r\n", b"\r\n", b"NOOP\r\n"),
    "AUTH LOGIN fails at the password": (b"AUTH LOGIN\r\n", b"dQ==\r\n", b"!\r\n", b"NOOP\r\n"),
    "AUTH with words behind the response": (b"AUTH PLAIN\r\n", b"AHUAcA junk\r\n", b"LIST\r\n"),
    "five errors": (b"A\r\nB\r\nC\r\nD\r\nE\r\nNOOP\r\n",),
    "errors that do not count": (b"PASS x\r\n" * 7 + b"NOOP\r\n",),
    "two errors apart": (b"A\r\n", b"NOOP\r\n", b"USER u\r\n", b"B\r\n", b"NOOP\r\n"),
}

_LIMITS: Final[dict[str, tuple[Step, ...]]] = {
    "a line of all the buffer": (b"USER " + b"x" * 121 + b"\r\n", b"NOOP\r\n"),
    "a line one byte too long": (b"USER " + b"x" * 122 + b"\r\n", b"NOOP\r\n"),
    "a line that is too long for both": (b"USER " + b"x" * 600 + b"\r\n", b"NOOP\r\n"),
    "a line without an end": (b"USER " + b"x" * 600,),
    "a response line of all the buffer": (b"AUTH PLAIN\r\n", b64("\0u\0" + "p" * 91) + b"\r\n", b"NOOP\r\n"),
    "a response line too long": (b"AUTH PLAIN\r\n", b"A" * 127 + b"\r\n", b"NOOP\r\n"),
    "an initial response of all the buffer": (
        b"AUTH PLAIN " + b64("\0u\0" + "p" * 84)[:115] + b"\r\n",
        b"NOOP\r\n",
    ),
}

_LONGER_HERE: Final = frozenset(
    {"a line one byte too long", "a response line too long", "a response line of all the buffer"}
)
"""Lines that only nginx rejects."""

PIPELINED: Final = (
    b"CAPA\r\nFOO\r\nUSER user\r\nPASS pass\r\nSTAT\r\n",
    b"AUTH\r\nAUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\nLIST\r\nRETR 1\r\n",
    b"USER u\r\nNOOP\n\r\nPASS x\r\nQUIT\r\n",
)


def _dialogues() -> Iterator[Dialogue]:
    for block in ("pop3", "pop3-apop", "pop3-cram", "pop3-more"):
        for name, line in _LINES.items():
            yield Dialogue(
                name=f"{name} ({block})", block=block, area="pop3 commands", steps=(line, b"NOOP\r\n")
            )
    for block in ("pop3", "pop3-max2"):
        for name, steps in _COURSES.items():
            yield Dialogue(
                name=f"{name} ({block})",
                block=block,
                area="pop3 states and errors",
                steps=steps,
                auth=(GRANT,),
                upstream=(*POP3_OK, b"+OK\r\n"),
            )
    for name, steps in _LIMITS.items():
        yield Dialogue(
            name=name,
            block="pop3",
            area="pop3 limits",
            steps=steps,
            declared_difference="pop3-lines" if name in _LONGER_HERE else "",
            allows_other_differences=name in _LONGER_HERE,
        )
    for number, data in enumerate(PIPELINED, 1):
        pieces = [(data[:at], data[at:]) for at in range(1, len(data))]
        singles = tuple(data[at : at + 1] for at in range(len(data)))
        for cut in [(data,), *pieces, singles]:
            where = "in single bytes" if cut is singles else f"cut at {len(cut[0])}"
            yield Dialogue(
                name=f"pipeline {number} {where}",
                block="pop3",
                area="pop3 pipelining",
                steps=(SendPieces(cut),),
                auth=(GRANT,),
                upstream=(*POP3_OK, b"+OK\r\n"),
            )


DIALOGUES: Final = tuple(_dialogues())

# SPDX-License-Identifier: Apache-2.0
"""Commands of IMAP clients before the login."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import GRANT, IMAP_OK, Dialogue, SendPieces, Step, b64
from support.parity.server_blocks import Block

BLOCKS: Final = (
    Block("imap", "imap"),
    Block(
        "imap-caps",
        "imap",
        'imap_capabilities IMAP4rev1 UIDPLUS IDLE LITERAL+ "X Y"; imap_auth cram-md5 plain;',
    ),
    Block("imap-external", "imap", "imap_auth external;"),
    Block("imap-small", "imap", "imap_client_buffer 256;"),
    Block("imap-max3", "imap", "max_errors 3;"),
    Block("imap-max0", "imap", "max_errors 0;"),
)

_LINES: Final[dict[str, bytes]] = {
    "CAPABILITY": b"a1 CAPABILITY\r\n",
    "CAPABILITY with arguments": b"a1 capability x y z\r\n",
    "NOOP": b"a1 NOOP\r\n",
    "NOOP in small letters": b"a1 noop\r\n",
    "NOOP with a literal": b"a1 NOOP {3+}\r\nabc\r\n",
    "LOGOUT": b"a1 LOGOUT\r\n",
    "LOGOUT with arguments": b"a1 LOGOUT now\r\n",
    "an unknown word": b"a1 SELECT INBOX\r\n",
    "ID": b'a1 ID ("name" "x")\r\n',
    "a word with a digit": b"a1 NOOP1\r\n",
    "a word with a TAB": b"a1 NOOP\t\r\n",
    "a word cut short": b"a1 NOO\r\n",
    "a word too long": b"a1 CAPABILITYCAPABILITY\r\n",
    "a tag alone": b"a1\r\n",
    "a tag and a space": b"a1 \r\n",
    "an empty line": b"\r\n",
    "an empty line without CR": b"\n",
    "bare LF": b"a1 NOOP\n",
    "bare CR": b"a1 NOOP\rx\r\n",
    "CR CR LF": b"a1 NOOP\r\r\n",
    "CR in an argument": b"a1 LOGIN us\rer pass\r\n",
    "spaces behind": b"a1 NOOP   \r\n",
    "spaces between": b"a1   NOOP\r\n",
    "a long tag": b"t" * 32 + b" NOOP\r\n",
    "a tag too long": b"t" * 33 + b" NOOP\r\n",
    "a tag of all its characters": b"aZ09-._ NOOP\r\n",
    "a tag with a plus": b"a+1 NOOP\r\n",
    "a tag with an asterisk": b"* NOOP\r\n",
    "a tag with 8 bits": b"\xe9 NOOP\r\n",
    "a quoted tag": b'"a" NOOP\r\n',
    "HTTP": b"GET / HTTP/1.0\r\n",
    "bytes": bytes(range(128, 160)) + b"\r\n",
    "NUL in a word": b"a1 NO\0OP\r\n",
    "LOGIN without arguments": b"a1 LOGIN\r\n",
    "LOGIN with one argument": b"a1 LOGIN user\r\n",
    "LOGIN with three arguments": b"a1 LOGIN user pass more\r\n",
    "LOGIN with four arguments": b"a1 LOGIN user pass more still\r\n",
    "LOGIN with an empty name": b'a1 LOGIN "" pass\r\n',
    "a literal that is no number": b"a1 LOGIN {x}\r\n",
    "a literal with a minus": b"a1 LOGIN {5-}\r\n",
    "a literal without an end": b"a1 LOGIN {5\r\n",
    "a literal and more": b"a1 LOGIN {5} x\r\n",
    "a literal with a space": b"a1 LOGIN {5} \r\n",
    "a literal behind an atom": b"a1 LOGIN u{5}\r\n",
    "a brace in a word": b"a1 {5}\r\n",
    "AUTHENTICATE without arguments": b"a1 AUTHENTICATE\r\n",
    "AUTHENTICATE with an unknown mechanism": b"a1 AUTHENTICATE XOAUTH2\r\n",
    "AUTHENTICATE with a part of a mechanism": b"a1 AUTHENTICATE PLAI\r\n",
    "AUTHENTICATE with three words": b"a1 AUTHENTICATE PLAIN " + b64("\0u\0p") + b" x\r\n",
    "AUTHENTICATE with four words": b"a1 AUTHENTICATE PLAIN x y z\r\n",
    "AUTHENTICATE CRAM-MD5 at once": b"a1 AUTHENTICATE CRAM-MD5 x\r\n",
    "AUTHENTICATE CRAM-MD5 where it is not enabled": b"a1 AUTHENTICATE CRAM-MD5\r\n",
    "AUTHENTICATE EXTERNAL where it is not enabled": b"a1 AUTHENTICATE EXTERNAL\r\n",
    "AUTHENTICATE PLAIN with nonsense": b"a1 AUTHENTICATE PLAIN !!!\r\n",
    "AUTHENTICATE PLAIN with one digit too many": b"a1 AUTHENTICATE PLAIN AHUAc\r\n",
    "AUTHENTICATE PLAIN without NUL": b"a1 AUTHENTICATE PLAIN " + b64("user") + b"\r\n",
    "AUTHENTICATE PLAIN with one NUL": b"a1 AUTHENTICATE PLAIN " + b64("\0user") + b"\r\n",
    "AUTHENTICATE PLAIN with nothing behind NUL": b"a1 AUTHENTICATE PLAIN " + b64("x\0") + b"\r\n",
    "AUTHENTICATE PLAIN with =": b"a1 AUTHENTICATE PLAIN =\r\n",
    "AUTHENTICATE LOGIN with a bad name": b"a1 AUTHENTICATE LOGIN !!\r\n",
    "STARTTLS where there is none": b"a1 STARTTLS\r\n",
}

_ACCEPTED: Final[dict[str, tuple[Step, ...]]] = {
    "LOGIN in mixed letters": (b"a1 LoGiN user pass\r\n",),
    "LOGIN with strange atoms": (b'a1 LOGIN u"s\\e(r} p{a%s*s\r\n',),
    "LOGIN with 8 bits": (b"a1 LOGIN \xe9\xff p\x80\x7f\r\n",),
    "LOGIN with TABs and controls": (b"a1 LOGIN u\ts p\x01\x1f\r\n",),
    "LOGIN with percent and spaces": (b'a1 LOGIN "a b%c" "%20 +"\r\n',),
    "LOGIN with an empty password": (b'a1 LOGIN user ""\r\n',),
    "LOGIN with quotes escaped": (b'a1 LOGIN "u\\"s\\\\e\\r" "p"\r\n',),
    "LOGIN with quoted strings that touch": (b'a1 LOGIN "user""pass"\r\n',),
    "LOGIN with spaces all over": (b"a1  LOGIN   user    pass   \r\n",),
    "LOGIN in one literal": (b"a1 LOGIN user {4}\r\n", b"pass\r\n"),
    "LOGIN with a literal of spaces": (b"a1 LOGIN {5}\r\n", b'u "s  {3}\r\n', b"a b\r\n"),
    "LOGIN with a literal and CR CR LF": (b"a1 LOGIN {4}\r\r\n", b"user pass\r\n"),
    "LOGIN with a literal and LF": (b"a1 LOGIN {4}\n", b"user pass\n"),
    "LOGIN with a literal that has leading zeros": (b"a1 LOGIN {004}\r\n", b"user pass\r\n"),
    "LOGIN with literals in one packet": (b"a1 LOGIN {4}\r\nuser {4}\r\npass\r\n",),
    "LOGIN with literals mixed": (b"a1 LOGIN {4+}\r\nuser {4}\r\n", b"pass\r\n"),
    "AUTHENTICATE PLAIN with an authzid": (b"a1 AUTHENTICATE PLAIN " + b64("z\0user\0pass") + b"\r\n",),
    "AUTHENTICATE PLAIN without padding": (b"a1 AUTHENTICATE PLAIN AHUAcA\r\n",),
    "AUTHENTICATE PLAIN with junk behind =": (b"a1 AUTHENTICATE PLAIN AHUAcA=junk\r\n",),
    "AUTHENTICATE PLAIN with words behind": (b"a1 AUTHENTICATE PLAIN\r\n", b"AHUAcA junk\r\n"),
    "AUTHENTICATE PLAIN with an empty name": (b"a1 AUTHENTICATE PLAIN " + b64("\0\0pass") + b"\r\n",),
    "AUTHENTICATE PLAIN with an empty password": (b"a1 AUTHENTICATE PLAIN " + b64("\0user\0") + b"\r\n",),
    "AUTHENTICATE LOGIN with empty strings": (b"a1 AUTHENTICATE LOGIN\r\n", b"\r\n", b"\r\n"),
    "AUTHENTICATE plain in small letters": (b"a1 authenticate plain\r\n", b64("\0u\0p") + b"\r\n"),
    "AUTHENTICATE as a quoted string": (b'a1 AUTHENTICATE "PLAIN"\r\n', b64("\0u\0p") + b"\r\n"),
    "AUTHENTICATE with a literal": (b"a1 AUTHENTICATE {5+}\r\nPLAIN\r\n", b64("\0u\0p") + b"\r\n"),
    "another tag": (b"XY.z LOGIN user pass\r\n",),
}

_AFTER_ERRORS: Final[dict[str, tuple[Step, ...]]] = {
    "AUTHENTICATE is called off": (b"a1 AUTHENTICATE PLAIN\r\n", b"*\r\n", b"a2 NOOP\r\n"),
    "AUTHENTICATE is answered with nonsense": (b"a1 AUTHENTICATE PLAIN\r\n", b"!!\r\n", b"a2 NOOP\r\n"),
    "AUTHENTICATE is answered with a command": (b"a1 AUTHENTICATE PLAIN\r\n", b"a2 NOOP\r\n", b"a3 NOOP\r\n"),
    "AUTHENTICATE is answered with too many words": (
        b"a1 AUTHENTICATE PLAIN\r\n",
        b"AHUAcA a b c d\r\n",
        b"a2 NOOP\r\n",
    ),
    "AUTHENTICATE is answered with a bare CR": (
        b"a1 AUTHENTICATE PLAIN\r\n",
        b"AHU\rAcA\r\n",
        b"a2 NOOP\r\n",
    ),
    "AUTHENTICATE LOGIN fails at the password": (
        b"a1 AUTHENTICATE LOGIN\r\n",
        b64("user") + b"\r\n",
        b"!!\r\n",
        b"a2 NOOP\r\n",
    ),
    "counted and not counted": (
        b"a AUTHENTICATE FOO\r\n",
        b"b LOGIN onlyone\r\n",
        b"c FOO\r\n",
        b"\r\n",
        b"d LOGIN {x}\r\n",
        b"e FOO\r\n",
        b"f FOO\r\n",
    ),
    "errors and commands in one packet": (b"a FOO\r\nb NOOP\r\nc BAR\r\nd NOOP\r\n\r\ne LOGOUT\r\n",),
    "a rejected line that announces a literal at once": (b"a1 SELECT {5+}\r\nINBOX\r\n",),
    "a rejected line that ends so by accident": (b"a1 FOO x+}\r\n",),
    "a rejected number that announces a literal": (b"a1 LOGIN a b c {3+}\r\nabc\r\n",),
}


def _too_long() -> Iterator[Dialogue]:
    cases: dict[str, tuple[Step, ...]] = {
        "a line of all the buffer": (b"a1 NOOP" + b" " * 247 + b"\r\n", b"a2 NOOP\r\n"),
        "a line one byte too long": (b"a1 NOOP" + b" " * 248 + b"\r\n", b"a2 NOOP\r\n"),
        "a line much too long": (b"a1 LOGIN " + b"x" * 600 + b" y\r\n",),
        "a line much too long without a tag": (b"x" * 600 + b"\r\n",),
        "an announced literal too long": (b"a1 LOGIN {300+}\r\n" + b"x" * 300 + b" y\r\n",),
        "a password too long": (b"a1 LOGIN user {240+}\r\n" + b"x" * 240 + b"\r\n",),
        "responses that share the buffer": (b"a1 AUTHENTICATE PLAIN\r\n", b"A" * 240 + b"\r\n"),
        "a big literal of another command": (b"a1 NOOP {100+}\r\n" + b"x" * 100 + b"\r\n", b"a2 NOOP\r\n"),
    }
    for name, steps in cases.items():
        yield Dialogue(name=name, block="imap-small", area="imap limits", steps=steps)


PIPELINED: Final = (
    b"a1 CAPABILITY\r\na2 FOO\r\na3 LOGIN {4+}\r\nuser {4}\r\npass\r\nsome more\r\n",
    b"x NOOP\r\na1 AUTHENTICATE LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\nb NOOP\r\n",
    b'a1 LOGIN "us er" "p\\"w"\r\nrest',
    b"a\r\nb NOOP\nc LOGIN x {3}\r\na b c\r\nd LOGOUT\r\n",
)


def _cuts() -> Iterator[Dialogue]:
    for number, data in enumerate(PIPELINED, 1):
        pieces = [(data[:at], data[at:]) for at in range(1, len(data))]
        singles = tuple(data[at : at + 1] for at in range(len(data)))
        for cut in [(data,), *pieces, singles]:
            where = "in single bytes" if cut is singles else f"cut at {len(cut[0])}"
            yield Dialogue(
                name=f"pipeline {number} {where}",
                block="imap-caps",
                area="imap pipelining",
                steps=(SendPieces(cut),),
                auth=(GRANT,),
                upstream=IMAP_OK,
            )


def _lines() -> Iterator[Dialogue]:
    for block in ("imap", "imap-caps", "imap-external"):
        for name, line in _LINES.items():
            yield Dialogue(
                name=f"{name} ({block})", block=block, area="imap commands", steps=(line, b"z NOOP\r\n")
            )


def _others() -> Iterator[Dialogue]:
    for name, steps in _ACCEPTED.items():
        yield Dialogue(
            name=name,
            block="imap",
            area="imap commands",
            steps=(*steps, b"more\r\n"),
            auth=(GRANT,),
            upstream=IMAP_OK,
        )
    for block in ("imap", "imap-max3", "imap-max0"):
        for name, steps in _AFTER_ERRORS.items():
            yield Dialogue(
                name=f"{name} ({block})",
                block=block,
                area="imap errors",
                steps=steps,
                auth=(GRANT,),
                upstream=IMAP_OK,
            )


_STRICTER: Final = (
    Dialogue(
        name="a literal that is too big for a word",
        block="imap",
        area="imap errors",
        steps=(b"a1 LOGIN {99999999999999999999}\r\n", b"z NOOP\r\n"),
        since=(1, 29, 6),
        proxy_record={"client": b"* OK IMAP4 ready\r\na1 BAD invalid command\r\nz OK completed\r\n"},
    ),
    Dialogue(
        name="a literal is followed by nonsense",
        block="imap",
        area="imap errors",
        steps=(b"a1 LOGIN {4}\r\n", b"userx pass\r\n", b"a2 NOOP\r\n"),
        since=(1, 29, 6),
        proxy_record={"client": b"* OK IMAP4 ready\r\n+ OK\r\na1 BAD invalid command\r\na2 OK completed\r\n"},
    ),
    Dialogue(
        name="a literal touches the next one",
        block="imap",
        area="imap errors",
        steps=(b"a1 LOGIN {4}\r\n", b"user{4}\r\n", b"a2 NOOP\r\n"),
        since=(1, 29, 6),
        proxy_record={"client": b"* OK IMAP4 ready\r\n+ OK\r\na1 BAD invalid command\r\na2 OK completed\r\n"},
    ),
)

DIALOGUES: Final = (*_STRICTER, *_lines(), *_others(), *_too_long(), *_cuts())

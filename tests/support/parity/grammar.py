# SPDX-License-Identifier: Apache-2.0
"""Generated dialogues: valid, nearly valid, and hostile ones.

Input that causes a declared difference is left out; each declared difference
has dialogues of its own.
"""

from __future__ import annotations

import re
from typing import Final

from hypothesis import strategies as st

from support.parity.dialogue import (
    CLOSE,
    GRANT,
    GRANT_PASS,
    IMAP_OK,
    POP3_OK,
    SMTP_OK,
    Dialogue,
    PeerOutput,
    SendPieces,
    Step,
    auth_response,
    b64,
    deny,
    grant,
)
from support.parity.server_blocks import Block

BLOCKS: Final = (
    Block("any-imap", "imap", "imap_auth plain login cram-md5 external; max_errors 4;"),
    Block("any-pop3", "pop3", "pop3_auth plain apop cram-md5; max_errors 4;"),
    Block("any-smtp", "smtp", "smtp_auth plain login cram-md5 external; max_errors 4; xclient off;"),
    Block("any-smtp-none", "smtp", "smtp_auth none; max_errors 4; xclient off;"),
)

_DIGEST: Final = "b913a602c7eda7a495b4e6e7334d3890"
_ENDS: Final = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r\r\n", b"\rx\r\n", b"  \r\n"])
_SPACES: Final = st.sampled_from([b" "] * 12 + [b"  ", b"   ", b"\t", b""])
_SAFE: Final = [byte for byte in range(1, 256) if byte not in {10, 13}]
_JUNK: Final = st.lists(st.sampled_from(_SAFE), max_size=12).map(bytes)
_ATOMS: Final = st.one_of(
    st.sampled_from([b"user", b"pass", b"x", b"\xe9", b"a%20b", b"{x}", b"a{3}", b"*", b"=", b"a@b.c"]),
    st.text("abcXYZ019.-_@+/=%", min_size=1, max_size=10).map(str.encode),
)
_RESPONSES: Final = st.one_of(
    st.sampled_from(
        [
            b64("\0user\0pass"),
            b64("authz\0user\0"),
            b64("\0\0"),
            b64("\0user"),
            b64("user"),
            b64("pass"),
            b64(f"user {_DIGEST}"),
            b64("user 12345"),
            b"AHUAcA",
            b"AHUAc",
            b"*",
            b"=",
            b"!!",
            b"dXNlcg==junk",
            b"NOOP",
        ]
    ),
    st.binary(max_size=9).map(b64),
)
_MECHANISMS: Final = st.sampled_from(
    [b"PLAIN", b"LOGIN", b"CRAM-MD5", b"EXTERNAL", b"plain", b"XOAUTH2", b"PLAI"]
)


def _mangled(words: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.sampled_from(words),
        st.sampled_from(words),
        st.sampled_from(words).map(bytes.lower),
        st.sampled_from(words).map(lambda word: word[:-1]),
        st.sampled_from([b"STAT", b"SELECT", b"DATA", b"ID", b"", b"GET"]),
    )


def _line(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


def _joined(words: st.SearchStrategy[bytes], most: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.tuples(_SPACES, words).map(b"".join), max_size=most).map(b"".join)


_TAGS: Final = st.one_of(
    st.sampled_from([b"a1", b"A.-_9", b"t" * 32, b"t" * 33, b"a+b", b"*", b"+", b'"a"']),
    st.text("abcABC0123.-_", min_size=1, max_size=6).map(str.encode),
)
_LITERALS: Final = st.tuples(
    st.text('abc {}"\\*%', min_size=1, max_size=8).map(str.encode), st.sampled_from([b"", b"+"])
).map(lambda pair: b"{%d%b}\r\n%b" % (len(pair[0]), pair[1], pair[0]))
_QUOTED: Final = st.text("abc {}()*%", max_size=8).map(lambda text: b'"%b"' % text.encode())
_ARGUMENTS: Final = st.one_of(_ATOMS, _ATOMS, _QUOTED, _LITERALS)
_IMAP_WORDS: Final = [b"LOGIN", b"LOGIN", b"AUTHENTICATE", b"CAPABILITY", b"NOOP", b"STARTTLS"]

_IMAP: Final = st.one_of(
    _line(_TAGS, _SPACES, _mangled(_IMAP_WORDS), _joined(_ARGUMENTS, 4), _ENDS),
    _line(_TAGS, st.just(b" LOGIN "), _ARGUMENTS, st.just(b" "), _ARGUMENTS, _ENDS),
    _line(_TAGS, st.just(b" AUTHENTICATE "), _MECHANISMS, _ENDS),
    _line(_TAGS, st.just(b" AUTHENTICATE "), _MECHANISMS, st.just(b" "), _RESPONSES, _ENDS),
    _line(_RESPONSES, _ENDS),
    _line(_JUNK, _ENDS),
    st.sampled_from([b"z LOGOUT\r\n", b"\r\n", b"x" * 5000 + b"\r\n", b"a LOGIN {99999+}\r\nx\r\n"]),
)
_POP3_WORDS: Final = [b"USER", b"PASS", b"APOP", b"CAPA", b"AUTH", b"NOOP", b"STLS"]
_POP3: Final = st.one_of(
    _line(_mangled(_POP3_WORDS), _joined(_ATOMS, 4), _ENDS),
    st.sampled_from([b"USER user\r\n", b"PASS pass\r\n", b"USER u\r\nPASS p q \r\n"]),
    _line(st.just(b"AUTH "), _MECHANISMS, _ENDS),
    _line(st.just(b"AUTH "), _MECHANISMS, st.just(b" "), _RESPONSES, _ENDS),
    _line(_RESPONSES, _ENDS),
    _line(_JUNK, _ENDS),
    st.sampled_from([b"APOP u " + _DIGEST.encode() + b"\r\n", b"QUIT\r\n", b"\r\n", b"x" * 600 + b"\r\n"]),
)
_SMTP_WORDS: Final = [b"HELO", b"EHLO", b"AUTH", b"NOOP", b"RSET", b"MAIL", b"RCPT", b"VRFY", b"STARTTLS"]
_SMTP: Final = st.one_of(
    _line(_mangled(_SMTP_WORDS), _joined(_ATOMS, 13), _ENDS),
    st.sampled_from(
        [b"EHLO cl\r\n", b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n", b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\n"]
    ),
    _line(st.just(b"AUTH "), _MECHANISMS, _ENDS),
    _line(st.just(b"AUTH "), _MECHANISMS, st.just(b" "), _RESPONSES, _ENDS),
    _line(_RESPONSES, _ENDS),
    _line(_JUNK, _ENDS),
    st.sampled_from([b"QUIT\r\n", b"\r\n", b"x" * 5000 + b"\r\n"]),
)
_LINES: Final = {"imap": _IMAP, "pop3": _POP3, "smtp": _SMTP}
_UPSTREAMS: Final[dict[str, list[tuple[PeerOutput, ...]]]] = {
    "imap": [IMAP_OK, (b"* BYE full\r\n",), (*IMAP_OK[:3], b"a1 NO no\r\n")],
    "pop3": [POP3_OK, (b"-ERR full\r\n",), (*POP3_OK[:2], b"-ERR no\r\n"), (CLOSE,)],
    "smtp": [
        (*SMTP_OK, *(b"250 ok\r\n",) * 4),
        (b"554 no\r\n",),
        (b"220 a\r\n", b"250-a\r\n250 b\r\n", b"550 no\r\n"),
    ],
}
_ANSWERS: Final[list[PeerOutput]] = [
    GRANT,
    GRANT_PASS,
    grant("Auth-User: other", "Auth-Pass: secret"),
    deny(),
    deny(""),
    deny("no", "Auth-Error-Code: 451 4.3.0"),
    auth_response("Auth-Status: OK"),
    auth_response("nonsense here"),
    CLOSE,
]

_NOOP: Final = b"a1 NOOP\r\n"
_UNTIDY: Final = {
    "imap": (
        re.compile(rb'"[^"\r\n]*\r?\n'),
        re.compile(rb"(?:^|\n) "),
        re.compile(rb"\{0*\+?\}"),
        re.compile(rb"\}\r?\n[^\r\n]*[^ \r\n]\{"),  # adjacent literals, until nginx 1.29.6
        re.compile(rb"(?i)LOGIN(?: +\S*)?\r?\n"),  # Q-05, where the name that follows is not base64
        re.compile(rb"(?i)EXTERNAL"),
    ),
    "pop3": (re.compile(rb"(?i)EXTERNAL"),),
    "smtp": (
        re.compile(rb"(?i)(?:HELO|EHLO|MAIL|RCPT)[^\r\n]*[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]"),
        re.compile(rb"(?i)EXTERNAL"),
    ),
}
_EXCHANGE: Final = re.compile(rb"(?i)AUTH")


def _tidied(protocol: str, lines: list[bytes]) -> list[bytes]:
    """Replace lines that cause a declared difference, which has a dialogue of its own."""
    tidy = [_NOOP if any(item.search(line) for item in _UNTIDY[protocol]) else line for line in lines]
    if protocol == "imap" and any(_EXCHANGE.search(line) for line in tidy):
        return [_NOOP if b"}" in line else line for line in tidy]  # sasl-literals
    return tidy


@st.composite
def dialogues(draw: st.DrawFn, protocol: str) -> Dialogue:
    """Generate one dialogue of a protocol."""
    lines = _tidied(protocol, draw(st.lists(_LINES[protocol], min_size=1, max_size=6)))
    block = f"any-{protocol}"
    if protocol == "smtp" and draw(st.booleans()):
        block = "any-smtp-none"
    steps: list[Step] = []
    for line in lines:
        at = draw(st.integers(0, 5))
        steps.append(SendPieces((line[:at], line[at:])) if 0 < at < min(len(line), 100) else line)
    return Dialogue(
        name="generated",
        is_generated=True,
        block=block,
        area=f"{protocol}, generated",
        steps=tuple(steps),
        auth=tuple(draw(st.lists(st.sampled_from(_ANSWERS), min_size=1, max_size=3))),
        upstream=draw(st.sampled_from(_UPSTREAMS[protocol])),
    )

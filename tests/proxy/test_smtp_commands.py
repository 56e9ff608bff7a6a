# SPDX-License-Identifier: Apache-2.0
"""The parser of SMTP command lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.client_lines import has_control_chars
from mailproxy.protocols.smtp.commands import USUAL, Command, parse_line


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"QUIT", Command(b"QUIT", (), b"QUIT")),
        (b"ehlo x ", Command(b"EHLO", (b"x",), b"ehlo x")),
        (b"HELO x", Command(b"HELO", (b"x",), b"HELO x")),
        (
            b"MAIL FROM:<a@x>  SIZE=1  ",
            Command(b"MAIL", (b"FROM:<a@x>", b"SIZE=1"), b"MAIL FROM:<a@x>  SIZE=1"),
        ),
        (b"RCPT  TO:<b>", Command(b"RCPT", (b"TO:<b>",), b"RCPT  TO:<b>")),
        (b"RCPT TO:\t<b>\0", Command(b"RCPT", (b"TO:\t<b>\0",), b"RCPT TO:\t<b>\0")),
        (b"AUTH PLAIN =", Command(b"AUTH", (b"PLAIN", b"="), b"AUTH PLAIN =")),
        (b"RSET", Command(b"RSET", (), b"RSET")),
        (b"NOOP" + 11 * b" x", Command(b"NOOP", 11 * (b"x",), b"NOOP" + 11 * b" x")),
        (b"VRFY", Command(b"VRFY", (), b"VRFY")),
        (b"EXPN", Command(b"EXPN", (), b"EXPN")),
        (b"HELP", Command(b"HELP", (), b"HELP")),
        (b"StartTLS", Command(b"STARTTLS", (), b"StartTLS")),
    ],
)
def test_parse_command(line: bytes, command: Command) -> None:
    assert parse_line(line) == command


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b" NOOP", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"DATA", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"XCLIENT NAME=x", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"MAIL\tFROM:<a>", ProtocolErrorKind.CONTROL_CHAR),
        (b"NOOP\r", ProtocolErrorKind.CONTROL_CHAR),
        (b"NOOP" + 12 * b" x", ProtocolErrorKind.BAD_ARGUMENTS),
        (b"CONNECT mx:25 HTTP/1.1", ProtocolErrorKind.FOREIGN_PROTOCOL),
    ],
)
def test_syntax_error_has_kind(line: bytes, kind: ProtocolErrorKind) -> None:
    assert parse_line(line) is kind


WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1).map(str.encode)


@given(st.sampled_from([b"HELO", b"AUTH", b"MAIL", b"RCPT", b"NOOP"]), st.lists(WORDS, max_size=11))
def test_formatted_command_round_trips(word: bytes, arguments: list[bytes]) -> None:
    line = b" ".join([word, *arguments])
    assert parse_line(line) == Command(word, tuple(arguments), line)


@pytest.mark.parametrize(
    ("line", "groups"),
    [
        (b"EHLO client.example.com", (b"client.example.com", None)),
        (b"ehlo  [192.0.2.1]  ", (b"[192.0.2.1]", None)),
        (b"EhLo \xc3\xa9", (b"\xc3\xa9", None)),
        (b"AUTH PLAIN AHUAcA==", (None, b"AHUAcA==")),
        (b"auth  pLaIn  =  ", (None, b"=")),
        (b"AUTH PLAIN \0", (None, b"\0")),
        (b"EHLO", None),
        (b"EHLO ", None),
        (b"EHLO a b", None),
        (b"EHLO a\t", None),
        (b"EHLO \x7f", None),
        (b"EHLO a\r", None),
        (b"HELO a", None),
        (b" EHLO a", None),
        (b"AUTH PLAIN", None),
        (b"AUTH PLAIN ", None),
        (b"AUTH PLAIN a b", None),
        (b"AUTH PLAIN a\r", None),
        (b"AUTH LOGIN a", None),
    ],
)
def test_usual_commands_pattern_matches(line: bytes, groups: tuple[bytes | None, ...] | None) -> None:
    found = USUAL.fullmatch(line + b"\r\n")
    assert (found and found.groups()) == groups


@given(
    st.sampled_from([b"EHLO ", b"ehlo", b"AUTH PLAIN ", b"auth plain", b"AUTH "]),
    st.text(" PLAINx\0\t\r\x7f\xff", max_size=7),
)
def test_pattern_agrees_with_parser(start: bytes, rest: str) -> None:
    line = start + rest.encode("latin-1")
    found, command = USUAL.fullmatch(line + b"\r\n"), parse_line(line)
    words: tuple[bytes, ...] = ()
    if isinstance(command, Command):
        is_plain = (
            command.word == b"AUTH" and command.arguments[:1] and command.arguments[0].upper() == b"PLAIN"
        )
        if command.word == b"EHLO" and len(command.arguments) == 1 and not has_control_chars(command.text):
            words = (command.arguments[0], b"")
        elif is_plain and len(command.arguments) == 2:
            words = (b"", command.arguments[1])
    assert (found.groups(b"") if found else ()) == words


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\r\n", b"\nQUIT\n", b"\r\nAUTH PLAIN x\r\n"])
def test_usual_commands_pattern_does_not_match_other_than_one_line(end: bytes) -> None:
    assert not USUAL.fullmatch(b"EHLO a" + end)
    assert not USUAL.fullmatch(b"AUTH PLAIN a" + end)
    assert USUAL.fullmatch(b"EHLO a\n")

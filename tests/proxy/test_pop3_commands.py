# SPDX-License-Identifier: Apache-2.0
"""The parser of POP3 command lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.pop3.commands import PASS_LINE, USER_LINE, Command, parse_line


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"QUIT", Command(b"QUIT", ())),
        (b"quit", Command(b"QUIT", ())),
        (b"Capa x", Command(b"CAPA", (b"x",))),
        (b"NOOP  a   b c  ", Command(b"NOOP", (b"a", b"b", b"c"))),
        (b"APOP alice c4c9", Command(b"APOP", (b"alice", b"c4c9"))),
        (b"AUTH PLAIN AHUAcA==", Command(b"AUTH", (b"PLAIN", b"AHUAcA=="))),
        (b"AUTH \tx\0y\xff", Command(b"AUTH", (b"\tx\0y\xff",))),  # anything but SP, CR, LF
        (b"STLS", Command(b"STLS", ())),
        (b"USER alice", Command(b"USER", (b"alice",))),
        (b"USER   two words  ", Command(b"USER", (b"two words  ",))),
        (b"PASS a b c d e", Command(b"PASS", (b"a b c d e",))),
        (b"PASS", Command(b"PASS", ())),
        (b"PASS    ", Command(b"PASS", ())),
    ],
)
def test_parse_command(line: bytes, command: Command) -> None:
    assert parse_line(line) == command


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b" QUIT", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"STAT", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"QUITX", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"QUIT\tx", ProtocolErrorKind.CONTROL_CHAR),
        (b"QUIT\r", ProtocolErrorKind.CONTROL_CHAR),
        (b"PASS a\rb", ProtocolErrorKind.CONTROL_CHAR),
        (b"NOOP 1 2 3 4", ProtocolErrorKind.BAD_ARGUMENTS),
        (b"GET / HTTP/1.0", ProtocolErrorKind.FOREIGN_PROTOCOL),
    ],
)
def test_syntax_error_has_kind(line: bytes, kind: ProtocolErrorKind) -> None:
    assert parse_line(line) is kind


WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1).map(str.encode)


@given(st.sampled_from([b"APOP", b"QUIT", b"CAPA", b"AUTH", b"NOOP", b"STLS"]), st.lists(WORDS, max_size=3))
def test_formatted_command_round_trips(word: bytes, arguments: list[bytes]) -> None:
    assert parse_line(b" ".join([word, *arguments])) == Command(word, tuple(arguments))


@pytest.mark.parametrize(
    ("line", "argument"),
    [
        (b"USER alice", b"alice"),
        (b"user  a b ", b"a b "),
        (b"UsEr \xff\t", b"\xff\t"),
        (b"USER", None),
        (b"USER ", None),
        (b"USER  ", None),
        (b" USER a", None),
        (b"USERS a", None),
        (b"USER a\0", None),
        (b"USER a\rb", None),
        (b"USER \0", None),
    ],
)
def test_user_and_pass_patterns_match(line: bytes, argument: bytes | None) -> None:
    for_pass = line.replace(b"USER", b"PASS").replace(b"user", b"pass").replace(b"UsEr", b"PaSs")
    for found in (USER_LINE.fullmatch(line + b"\r\n"), PASS_LINE.fullmatch(for_pass + b"\r\n")):
        assert (found and found[1]) == argument


@given(st.text("UuSsEeRrPpAa \0\rx", max_size=10).map(str.encode))
def test_pattern_agrees_with_parser(text: bytes) -> None:
    for pattern, word in ((USER_LINE, b"USER"), (PASS_LINE, b"PASS")):
        for line in (text, word + text, word + b" " + text):
            found = pattern.fullmatch(line + b"\r\n")
            command = parse_line(line)
            is_usual = (
                isinstance(command, Command)
                and command.word == word
                and bool(command.arguments)
                and b"\0" not in command.arguments[0]
            )
            assert (found is not None) == is_usual
            if found is not None:
                assert command == Command(word, (found[1],))


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\r\n", b"\nQUIT\n", b"\r\nPASS x\r\n"])
def test_user_and_pass_patterns_do_not_match_other_than_one_line(end: bytes) -> None:
    assert not USER_LINE.fullmatch(b"USER a" + end)
    assert not PASS_LINE.fullmatch(b"PASS a" + end)
    assert USER_LINE.fullmatch(b"USER a\n")

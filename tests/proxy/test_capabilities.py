# SPDX-License-Identifier: Apache-2.0
"""What clients may be offered before login: the configured capabilities that all upstreams have."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.protocols.capabilities import (
    SMTP_EXTENSIONS,
    common_capabilities,
    read_imap_offer,
    read_smtp_offer,
)
from mailproxy_config.model import Protocol
from support.configs import server

EHLO = b"250-mx.example\r\n250-PIPELINING\r\n250-size  5000\r\n250-8BITMIME\r\n250-VRFY\r\n250-ETRN\r\n"


def imap(configured: Sequence[str], *offers: bytes) -> tuple[str, ...]:
    """Return what IMAP clients are offered."""
    return common_capabilities(
        server(Protocol.IMAP, imap_capabilities=tuple(configured)), [read_imap_offer(each) for each in offers]
    )


def smtp(configured: Sequence[str], *replies: bytes) -> tuple[str, ...]:
    """Return what SMTP clients are offered."""
    return common_capabilities(
        server(Protocol.SMTP, smtp_capabilities=tuple(configured)),
        [read_smtp_offer(each) for each in replies],
    )


@pytest.mark.parametrize(
    ("configured", "offers", "expected"),
    [
        (["IMAP4rev1", "IDLE", "LITERAL+"], [b"IMAP4rev1 idle"], ["IMAP4rev1", "IDLE"]),
        (["IMAP4rev1", "IMAP4rev2", "ENABLE"], [b"IMAP4rev1 ENABLE"], ["IMAP4rev1", "ENABLE"]),
        (["IMAP4rev1", "IDLE"], [b"IMAP4rev1 IDLE", b"IMAP4rev1"], ["IMAP4rev1"]),
        (
            ["IMAP4rev1", "LITERAL-"],
            [b"IMAP4rev1 LITERAL+", b"IMAP4rev1 LITERAL-"],
            ["IMAP4rev1", "LITERAL-"],
        ),
        (["IMAP4rev1", "LITERAL+"], [b"IMAP4rev1 LITERAL-"], ["IMAP4rev1"]),
        (["SASL-IR", "IMAP4rev1"], [b"IMAP4rev1"], ["SASL-IR", "IMAP4rev1"]),
        (["IMAP4rev2"], [b"IMAP4rev1"], ["IMAP4rev1"]),
        (["IMAP4rev1"], [b"IMAP4rev2"], ["IMAP4rev2"]),
        (
            ["IMAP4rev1", "APPENDLIMIT=900"],
            [b"IMAP4rev1 APPENDLIMIT=1000", b"IMAP4rev1 APPENDLIMIT=80"],
            ["IMAP4rev1", "APPENDLIMIT=80"],
        ),
        (["IMAP4rev1", "APPENDLIMIT=900"], [b"IMAP4rev1 APPENDLIMIT=1000"], ["IMAP4rev1", "APPENDLIMIT=900"]),
        (["IMAP4rev1", "APPENDLIMIT=900"], [b"IMAP4rev1 APPENDLIMIT"], ["IMAP4rev1"]),
        (["IMAP4rev1", "THREAD=REFS"], [b"IMAP4rev1 THREAD=REFERENCES"], ["IMAP4rev1"]),
    ],
)
def test_imap_clients_get_what_all_upstreams_have(
    configured: list[str], offers: list[bytes], expected: list[str]
) -> None:
    assert imap(configured, *offers) == tuple(expected)


@pytest.mark.parametrize("words", [b"", b"IDLE LITERAL+", b"IMAP4", b"\xff\0"])
def test_list_without_imap_version_is_no_list(words: bytes) -> None:
    with pytest.raises(ValueError, match="neither IMAP4rev1 nor IMAP4rev2"):
        read_imap_offer(words)


@pytest.mark.parametrize(
    ("configured", "reply", "expected"),
    [
        ([], EHLO + b"250 XCLIENT NAME ADDR\r\n", ["PIPELINING", "SIZE 5000", "8BITMIME"]),
        (["SIZE 4000", "PIPELINING", "DSN"], EHLO + b"250 STARTTLS\r\n", ["SIZE 4000", "PIPELINING"]),
        (["SIZE 6000"], EHLO, ["SIZE 5000"]),
        (["SIZE"], b"250-mx\r\n250 SIZE\r\n", ["SIZE"]),
        (["SIZE 7"], b"250-mx\r\n250 SIZE 0\r\n", ["SIZE 7"]),
        (["SIZE 7"], b"250-mx\r\n250 DSN\r\n", []),
        (["SIZE"], b"250-mx\r\n250 SIZE " + b"9" * 21 + b"\r\n", ["SIZE"]),
        (["XCLIENT ADDR", "VRFY", "ETRN", "STARTTLS", "AUTH PLAIN"], EHLO + b"250 AUTH PLAIN\r\n", []),
        ([], b"250-mx\r\n250-BINARYMIME\r\n250 DSN\r\n", ["DSN"]),
        ([], b"250-mx\r\n250-BINARYMIME\r\n250 CHUNKING\r\n", ["CHUNKING", "BINARYMIME"]),
        (["LIMITS RCPTMAX=5"], b"250-mx\r\n250 limits rcptmax=5\r\n", ["LIMITS RCPTMAX=5"]),
        (["LIMITS RCPTMAX=9"], b"250-mx\r\n250 LIMITS RCPTMAX=5\r\n", []),
        ([], b"250 PIPELINING\r\n", []),
    ],
)
def test_smtp_clients_get_what_upstream_has(configured: list[str], reply: bytes, expected: list[str]) -> None:
    assert smtp(configured, reply) == tuple(expected)


def test_size_is_the_smallest_of_all() -> None:
    assert smtp([], b"250-a\r\n250 SIZE 300\r\n", b"250-b\r\n250 SIZE 200\r\n") == ("SIZE 200",)
    assert smtp([], b"250-a\r\n250 SIZE 300\r\n", b"250 b\r\n") == ()


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.sampled_from(SMTP_EXTENSIONS), max_size=8))
def test_nothing_but_known_words_and_numbers_comes_from_upstream(
    lines: list[bytes], words: list[str]
) -> None:
    reply = b"".join(b"250-" + line + b"\r\n" for line in [b"mx", *lines, *(word.encode() for word in words)])
    for line in smtp([], reply):
        keyword, _, value = line.partition(" ")
        assert keyword in SMTP_EXTENSIONS
        assert not value or (keyword == "SIZE" and value.isascii() and value.isdigit())

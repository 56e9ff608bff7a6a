# SPDX-License-Identifier: Apache-2.0
"""Nothing a stranger says breaks a line or a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.telemetry.log_format import TimestampFormatter, is_unquoted, quote_bytes, quote_limited


@pytest.mark.parametrize(
    ("bytes", "written"),
    [
        (b"", '""'),
        (b"alice@example.com", '"alice@example.com"'),
        (b'a"b\\c', r'"a\"b\\c"'),
        (b"a\r\nb\x00\x1b[31m\x7f", r'"a\r\nb\u0000\u001b[31m\u007f"'),
        ("jürgen".encode(), r'"j\u00fcrgen"'),
        (b"\xff\xfe", r'"\\xff\\xfe"'),
        ("a\u2028b\u202ec".encode(), r'"a\u2028b\u202ec"'),
        ("\U0001f4e7".encode(), r'"\ud83d\udce7"'),
    ],
)
def test_bytes_become_a_json_string(data: bytes, written: str) -> None:
    assert quote_bytes(data, 64) == written


@pytest.mark.parametrize(
    ("bytes", "written"),
    [
        (b"x" * 8, '"xxxxxxxx"'),
        (b"x" * 9, '"xxxxxxxx..."'),
        (b"x" * 7 + "ü".encode(), r'"xxxxxxx\\xc3..."'),  # cut in the middle of a character
    ],
)
def test_long_bytes_are_cut_and_say_so(data: bytes, written: str) -> None:
    assert quote_bytes(data, 8) == written


@given(st.binary(max_size=600))
def test_any_bytes_become_printable_ascii_of_bounded_length(data: bytes) -> None:
    written = quote_bytes(data, 256)
    assert written.isascii()
    assert written.isprintable()
    assert len(written) <= 6 * 256 + len('"..."')
    assert isinstance(json.loads(written), str)


@given(st.text(max_size=600))
def test_any_text_becomes_printable_ascii_of_bounded_length(text: str) -> None:
    written = quote_limited(text, 100)
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written) == (text if len(text) <= 100 else text[:100] + "...")


@given(st.text(max_size=20))
def test_plain_text_is_what_needs_no_escape(text: str) -> None:
    assert is_unquoted(text) == (quote_limited(text, 100) == f'"{text}"')


@pytest.mark.parametrize(
    ("now", "written"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1795407407.5, "2026-11-23T04:16:47.500Z"),
        (1795407407.9999, "2026-11-23T04:16:47.999Z"),
        (1795407408.0, "2026-11-23T04:16:48.000Z"),
        (1795407406.25, "2026-11-23T04:16:46.250Z"),  # the clock was set back
    ],
)
def test_times_are_utc_with_milliseconds(now: float, written: str) -> None:
    stamp = TimestampFormatter()
    assert stamp(1795407407.0) == "2026-11-23T04:16:47.000Z"
    assert stamp(now) == written

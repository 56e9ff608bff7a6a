# SPDX-License-Identifier: Apache-2.0
"""Decoding the bytes of a configuration file."""

from __future__ import annotations

import pytest

from mailproxy_config.decode import MAX_FILE_BYTES, decode_text
from mailproxy_config.errors import ConfigError


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"mail {}\r\n", "mail {}\r\n"),
        ("\u20ac".encode(), "\u20ac"),
        (b"\xef\xbb\xbfmail", "mail"),  # byte order mark
        (b" " * MAX_FILE_BYTES, " " * MAX_FILE_BYTES),
    ],
)
def test_text_is_decoded(data: bytes, text: str) -> None:
    assert decode_text(data, "f") == text


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\n\na\0b", "f:3: is not text: it contains a NUL character"),
        (b"\0", "f:1: is not text: it contains a NUL character"),
        (b"\xff\xfem\0", "f:1: is not text: it contains a NUL character"),  # UTF-16
        (b"a\nb\n\xe9\n", "f:3: is not UTF-8 text: invalid continuation byte"),
        (b"\xef\xbb\xbfa\n\xff", "f:2: is not UTF-8 text: invalid start byte"),
        (b" " * (MAX_FILE_BYTES + 1), "f: is larger than 3145728 bytes"),
    ],
)
def test_binary_data_is_rejected(data: bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        decode_text(data, "f")
    assert str(raised.value) == problem


def test_problem_without_source_names_the_line() -> None:
    with pytest.raises(ConfigError, match=r"^line 2: is not text"):
        decode_text(b"\n\0")

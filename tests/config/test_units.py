# SPDX-License-Identifier: Apache-2.0
"""nginx's times and sizes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailproxy_config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60.0),
        ("1m30s", 90.0),
        ("1m30", 90.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("24h", 86400.0),
        ("1w2d", 777600.0),
        ("1500ms", 1.5),
        ("1s500ms", 1.5),
        ("0", 0.0),
        (60, 60.0),
        ("10 20", 30.0),  # in nginx a space is the unit of seconds
        ("007", 7.0),
    ],
)
def test_msec_time_is_parsed(text: str | int, seconds: float) -> None:
    assert units.parse_msec_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "1m1h", "1.5s", "-1", "1S", "10 s", "1M", "1y", "ms", "s", "60s\n", "1s1s", "\u0661s", True],
)
def test_invalid_msec_time_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time such as 60s"):
        units.parse_msec_time(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1M", 2_592_000.0),
        ("1y", 31_536_000.0),
        ("1y2M3d", 36_979_200.0),
        (0, 0.0),
        ("75", 75.0),
    ],
)
def test_sec_time_is_parsed(text: str | int, seconds: float) -> None:
    assert units.parse_sec_time(text) == seconds


@pytest.mark.parametrize("text", ["500ms", "1M1y", "", "1.0", "x", False])
def test_invalid_sec_time_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="without milliseconds"):
        units.parse_sec_time(text)


@pytest.mark.parametrize("text", ["2147483648", "9" * 40 + "w", "100000w"])
def test_time_above_limit_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is more than 2147483647 seconds"):
        units.parse_msec_time(text)


@pytest.mark.parametrize(
    ("text", "data"),
    [("512", 512), (512, 512), ("4k", 4096), ("4K", 4096), ("10m", 10_485_760), ("1M", 1_048_576), ("0", 0)],
)
def test_size_is_parsed(text: str | int, data: int) -> None:
    assert units.parse_size(text) == data


@pytest.mark.parametrize("text", ["", "1g", "-1", "1.5k", "k", "4 k", "4kk", True])
def test_invalid_size_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size such as 4k"):
        units.parse_size(text)


@pytest.mark.parametrize("text", ["2147483648", "2048m", "9" * 5000])
def test_size_above_limit_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is more than 2147483647 bytes"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(90.0, "1m30s"), (0, "0s"), (0.25, "250ms"), (90061, "1d1h1m1s")]
)
def test_time_is_formatted(seconds: float, text: str) -> None:
    assert units.format_time(seconds) == text


@pytest.mark.parametrize(("data", "text"), [(4096, "4k"), (1536, "1536"), (10_485_760, "10m"), (0, "0")])
def test_size_is_formatted(data: int, text: str) -> None:
    assert units.format_size(data) == text


@given(st.integers(0, units.MAX_SECONDS * 1000))
def test_formatted_time_parses_as_the_same(milliseconds: int) -> None:
    assert units.parse_msec_time(units.format_time(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, units.MAX_BYTES))
def test_formatted_size_parses_as_the_same(data: int) -> None:
    assert units.parse_size(units.format_size(data)) == data


@given(st.text(st.sampled_from("0123456789 wdhmsyMk"), max_size=12))
@example("1s5")
def test_patterns_match_exactly_what_is_parsed(text: str) -> None:
    for grammar, read in (
        (units.MSEC_TIME_PATTERN, units.parse_msec_time),
        (units.SEC_TIME_PATTERN, units.parse_sec_time),
    ):
        matched = bool(text) and re.fullmatch(grammar, text) is not None
        assert _is_read(read, text) is matched


def _is_read(read: Callable[[str], float], text: str) -> bool:
    """Whether a text is a time of any length."""
    try:
        read(text)
    except ValueError as error:
        return "is more than" in str(error)
    return True

# SPDX-License-Identifier: Apache-2.0
"""YAML as kubectl reads it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_config.errors import ConfigError
from mailproxy_config.yaml_text import LARGEST_DOCUMENT, documents


def _ten_times(name: str, more: str) -> str:
    """An anchor that stands for ten of another."""
    return f"{more}: &{more} [{','.join(['*' + name] * 10)}]"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("on", True), ("Off", False), ("y", True), ("N", False), ("yes", True), ("no", False), ("TRUE", True),
        ("oN", "oN"), ("tRUE", "tRUE"),
        ("~", None), ("null", None), ("", None), ("nULL", "nULL"),
        ("0143", 99), ("0o17", 15), ("08", 8), ("0x1F", 31), ("0b11", 3), ("-0x10", -16), ("1_000", 1000),
        ("+5", 5), ("-5", -5), ("1e3", 1000), ("1.5", 1.5), (".5", 0.5), ("1.0", 1), ("1e300", 1e300),
        ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("=", "="), ("1.2.3", "1.2.3"), ("60s", "60s"),
        ("-", [None]), ("+", "+"), ("0x", "0x"), (".", "."), ("9" * 41, "9" * 41),
        ("'on'", "on"), ('"1"', "1"), ("!!str 1", "1"), ("!!int '7'", 7), ("!!bool y", True),
    ],
)  # fmt: skip
def test_what_a_word_means(word: str, value: object) -> None:
    found = documents(f"a: {word}" if word != "-" else "a:\n- ")[0]["a"]
    assert (found, type(found)) == (value, type(value))


def test_keys_are_text_as_in_json() -> None:
    assert documents("n: 1\n3: 2\n~: 3\n? [1]\n: 4") == [{"false": 1, "3": 2, "null": 3, "[1]": 4}]


def test_anchors_and_merge_keys_work() -> None:
    assert documents("a: &a {b: 1}\nc: {<<: *a, d: 2}") == [{"a": {"b": 1}, "c": {"b": 1, "d": 2}}]


def test_documents_without_content_are_left_out() -> None:
    assert documents("---\na: 1\n---\n---\n# nothing\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
    assert documents("") == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb:\n  - c: 1\n    c: 2", "b[0].c: stands twice, in line 3 and line 4"),
        ("a: {b: 1, b: 2}", "a.b: stands twice, in line 1 and line 1"),
        ("a: [", "f.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: *x", "f.yaml:1: not valid YAML: found undefined alias 'x'"),
        ("a: \x01", "f.yaml: not valid YAML: character U+0001 is not allowed"),
        ("a: !!python/name:os.system", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!timestamp 2001-99-99", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!map 5", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!seq {}", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!str []", "f.yaml:1: not valid YAML: unknown tag"),
        ("[" * 5000, "f.yaml: is nested too deeply"),
        ("a: &a [*a]", "f.yaml: is too large once its anchors are expanded"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(map(_ten_times, "abcdef", "bcdefg")),
            "f.yaml: is too large once its anchors are expanded",
        ),
        (" " * (LARGEST_DOCUMENT + 1), "f.yaml: is larger than 3145728 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        documents(text, source="f.yaml")
    assert str(raised.value).startswith(reason)


def test_without_a_name_the_line_is_told_in_words() -> None:
    with pytest.raises(ConfigError, match=r"^line 2: not valid YAML"):
        documents("a: 1\nb: [")


def test_a_message_never_quotes_the_text() -> None:
    with pytest.raises(ConfigError) as raised:
        documents("value: 'hush\n")
    assert "hush" not in str(raised.value)


@given(st.text(st.sampled_from("ab01:-[]{},&*!|>'\"#?%~<\n\t .eyno"), max_size=40))
def test_no_text_breaks_it(text: str) -> None:
    with suppress(ConfigError):
        assert None not in documents(text)

# SPDX-License-Identifier: Apache-2.0
"""Reading YAML as kubectl does."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain, pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_config.decode import MAX_FILE_BYTES
from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest_yaml import load_documents


def _ten_times(name: str, more: str) -> str:
    """An anchor with ten aliases of another."""
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
def test_plain_scalars_resolve_as_in_kubectl(word: str, value: object) -> None:
    found = load_documents(f"a: {word}" if word != "-" else "a:\n- ")[0]["a"]
    assert (found, type(found)) == (value, type(value))


def test_keys_are_text() -> None:
    assert load_documents("n: 1\n3: 2\n~: 3\n? [1]\n: 4") == [{"false": 1, "3": 2, "null": 3, "[1]": 4}]


def test_anchors_and_merge_keys() -> None:
    assert load_documents("a: &a {b: 1}\nc: {<<: *a, d: 2}") == [{"a": {"b": 1}, "c": {"b": 1, "d": 2}}]


def test_empty_documents_are_left_out() -> None:
    assert load_documents("---\na: 1\n---\n---\n# nothing\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
    assert load_documents("") == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb:\n  - c: 1\n    c: 2", "b[0].c: is duplicate, in line 3 and line 4"),
        ("a: {b: 1, b: 2}", "a.b: is duplicate, in line 1 and line 1"),
        ("a: [", "f.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: *x", "f.yaml:1: not valid YAML: found undefined alias 'x'"),
        ("a: \x01", "f.yaml: not valid YAML: character U+0001 is not allowed"),
        ("a: !!python/name:os.system", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!timestamp 2001-99-99", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!map 5", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!seq {}", "f.yaml:1: not valid YAML: unknown tag"),
        ("a: !!str []", "f.yaml:1: not valid YAML: unknown tag"),
        ("[" * 5000, "f.yaml: is nested too deeply"),
        ("[" * 101 + "]" * 101, "f.yaml: is nested too deeply"),
        ("a: &a [*a]", "f.yaml: is nested too deeply"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(map(_ten_times, "abcdef", "bcdefg")),
            "f.yaml: is too large: it has more than 50000 values",
        ),
        (
            "? &a [1,1,1,1,1,1,1,1,1,1]\n: 1\n"
            + "".join(
                f"? {_ten_times(name, more).partition(' ')[2]}\n: 1\n" for name, more in pairwise("abcdefgh")
            ),
            "f.yaml: is too large: it has more than 50000 values",
        ),
        (" " * (MAX_FILE_BYTES + 1), "f.yaml: is larger than 3145728 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_yaml_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_documents(text, source="f.yaml")
    assert str(raised.value).startswith(reason)


LARGE = {
    "keys": "a:\n" + "".join(f"  k{number}: 1\n" for number in range(120_000)),
    "documents": "---\na: 1\n" * 60_000,
    "documents of nothing": "---\n" * 300_000,
    "flow style": "{" + "a,\n" * 200_000 + "}",
    "directives": "%A\n" * 300_000 + "--- 1",
    "aliases": "a: &a 1\nb:\n" + "- *a\n" * 300_000,
}


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_token_limit_counts_all_documents(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    scanned = 0
    scan = yaml.scanner.Scanner.fetch_more_tokens

    def counted(scanner: yaml.scanner.Scanner) -> None:
        nonlocal scanned
        scanned += 1
        scan(scanner)

    monkeypatch.setattr(yaml.scanner.Scanner, "fetch_more_tokens", counted)
    monkeypatch.setattr("mailproxy_config.manifest_yaml.MAX_TOKENS", 5_000)  # for the speed of the test
    with pytest.raises(ConfigError, match="is too large: it has more than"):
        load_documents(text, source="f.yaml")
    assert 0 < scanned <= 5_000


def test_token_limit_allows_largest_manifest_and_reports_the_line() -> None:
    assert load_documents("- 1\n" * 19_000) == [[1] * 19_000]
    with pytest.raises(ConfigError, match=r"^f\.yaml: is too large: it has more than 40000 tokens") as raised:
        load_documents("- 1\n" * 30_000, source="f.yaml")
    assert "up to line 20001; put other resources into files of their own" in str(raised.value)


def test_value_limit_counts_all_documents() -> None:
    one = f"a: &a [{','.join(['1'] * 100)}]\nb: [{','.join(['*a'] * 200)}]\n"
    assert len(load_documents(f"{one}---\n{one}")) == 2
    with pytest.raises(ConfigError, match="is too large: it has more than 50000 values"):
        load_documents(f"{one}---\n{one}---\n{one}")


def test_chain_of_aliases_counts_as_nesting() -> None:
    chained = chain(["- &n0 [1]"], (f"- &n{number} [*n{number - 1}]" for number in range(1, 120)))
    with pytest.raises(ConfigError, match="is nested too deeply"):
        load_documents("\n".join(chained))


def test_error_without_source_names_the_line() -> None:
    with pytest.raises(ConfigError, match=r"^line 2: not valid YAML"):
        load_documents("a: 1\nb: [")


def test_message_does_not_quote_the_text() -> None:
    with pytest.raises(ConfigError) as raised:
        load_documents("value: 'hush\n")
    assert "hush" not in str(raised.value)


@given(st.text(st.sampled_from("ab01:-[]{},&*!|>'\"#?%~<\n\t .eyno"), max_size=40))
def test_arbitrary_text_raises_only_config_errors(text: str) -> None:
    with suppress(ConfigError):
        assert None not in load_documents(text)

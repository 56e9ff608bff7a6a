# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailproxy.routing.route_table import RouteTable
from mailproxy.routing.router import RouteMatch
from mailproxy.routing.table_compiler import MAX_REPORTED, MAX_TABLE_BYTES, TableRefused, compile_table
from mailproxy.routing.table_files import TableFile
from support.fuzz import examples

GROUPS = frozenset({"new", "old"})


def table(text: bytes) -> RouteTable:
    file = TableFile(compile_table(text, GROUPS), b"", GROUPS)
    return RouteTable(file.fileno())


def problems(text: bytes) -> list[tuple[int, str]]:
    with pytest.raises(TableRefused) as refused:
        compile_table(text, GROUPS)
    return list(refused.value.problems)


def test_lines_are_found() -> None:
    found = table(
        b"\xef\xbb\xbf# moves\r\n\n  bob@Example.ORG\t new   bob.new@x.example  # on Monday\r\n"
        b"@example.net old\nann#1@example.org old#\n".replace(b"old#", b"old #")
        + b"plain new"
    )
    assert found.find(b"bob@example.org") == RouteMatch("new", b"bob.new@x.example")
    assert found.find(b"@example.net") == RouteMatch("old")
    assert found.find(b"ann#1@example.org") == RouteMatch("old")
    assert found.find(b"plain") == RouteMatch("new")
    assert found.find(b"Bob@example.org") is None
    assert found.find(b"") is None


def test_empty_table_has_no_entry() -> None:
    assert table(b"").find(b"bob") is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"bob", 'a line is "user-or-@domain upstream [login]"'),
        (b"bob new login more", 'a line is "user-or-@domain upstream [login]"'),
        (b"bob other", "the upstream is not in spec.upstreams (new, old)"),
        (b"a@b@c.example new", "a name has at most one @"),
        (b"@ new", "what follows the @ must be a domain as A-labels: example.org, xn--bcher-kva.example"),
        ("ann@bücher.example new".encode(), "what follows the @ must be a domain"),
        (b"@*.example.org new", "wildcards are not possible in a table: use a route with domains"),
        (b"b\x00b new", "there is a control character: remove it"),
        (b"b\rob new", "there is a control character: remove it"),
        (b"a" * 256 + b" new", "a name has at most 255 bytes"),
        (b"bob new " + b"a" * 256, "a login has at most 255 bytes"),
    ],
)
def test_invalid_line_is_reported_with_number_and_value(line: bytes, reason: str) -> None:
    with pytest.raises(TableRefused) as refused:
        compile_table(b"ok new\n" + line + b"\n", GROUPS)
    [(number, text)] = refused.value.problems
    assert number == 2
    assert text.startswith(reason)
    assert refused.value.lines[2].startswith(repr(line.decode())[:40])


def test_name_with_two_targets_is_refused_and_repeated_line_is_not() -> None:
    [(number, text)] = problems(b"bob@a.example new\nbob@A.example new\nbob@a.example old\n")
    assert number == 3
    assert "an earlier line has another target for this name: remove one of them" in text


def test_only_first_problems_are_reported() -> None:
    assert len(problems(b"x\n" * 1000)) == MAX_REPORTED


@pytest.mark.parametrize("line", [b"\n", b" \t\r\n", b"# moved\n", b"  # bob@example.org new\n"])
def test_memory_does_not_grow_with_lines_without_an_entry(line: bytes) -> None:
    text = line * (2**21 // len(line)) + b"bob@example.org new"
    tracemalloc.start()
    compiled = compile_table(text, GROUPS)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(compiled) < 200
    assert most < 65536


def test_invalid_line_behind_lines_without_an_entry_has_its_number() -> None:
    with pytest.raises(TableRefused) as refused:
        compile_table(b"\n# x y z\n \r\n\tbob new\r\n\n  wrong\n", GROUPS)
    assert refused.value.lines == {6: "'wrong'"}


def test_too_large_table_is_refused() -> None:
    [(number, text)] = problems(b"\n" * (MAX_TABLE_BYTES + 1))
    assert number == 0
    assert "use several tables" in text


NAMES = st.from_regex(r"[a-z0-9.+-]{1,12}(@[a-z]{1,5}\.example)?", fullmatch=True)
TARGETS = st.tuples(st.sampled_from(["new", "old"]), st.sampled_from(["", "login"]))


@given(st.dictionaries(NAMES, TARGETS, max_size=40))
@settings(max_examples=examples(50))
def test_compiled_table_has_exactly_the_lines(entries: dict[str, tuple[str, str]]) -> None:
    text = "".join(f"{name} {upstream} {login}\n" for name, (upstream, login) in entries.items())
    found = table(text.encode())
    for name, (upstream, login) in entries.items():
        assert found.find(name.encode()) == RouteMatch(upstream, login.encode() or None)
        assert found.find(name.encode() + b"x") is None or name + "x" in entries

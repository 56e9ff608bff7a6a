# SPDX-License-Identifier: Apache-2.0
"""The syntax of ``nginx.conf``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailproxy_config.decode import MAX_FILE_BYTES
from mailproxy_config.errors import Problems
from mailproxy_config.nginx.syntax import ConfigFiles, Statement


def statements(text: str, base: Path | str = "/") -> tuple[list[Statement], list[str]]:
    """The statements with their includes, and the problems."""
    files = ConfigFiles(str(base), Problems())
    found = list(files.with_includes(files.statements(text, "nginx.conf")))
    return found, list(map(str, files.problems))


def arguments(text: str) -> tuple[str, ...]:
    found, problems = statements(text)
    assert problems == []
    assert len(found) == 1
    return found[0].arguments


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a;", ()),
        ("a b c;", ("b", "c")),
        ("a\tb\r\n  c\n;", ("b", "c")),
        ("a 'b c' \"d;{}\";", ("b c", "d;{}")),
        ('a "";', ("",)),
        ("a b#c;", ("b#c",)),
        ("a b # rest; of the line\n c;", ("b", "c")),
        (r'a "x\"y" \;z;', ('x"y', r"\;z")),
        (r"a 'x\'y' \\z;", ("x'y", r"\z")),
        (r"a x\ty 'l\r\n';", ("x\ty", "l\r\n")),
        (r"a \d+;", (r"\d+",)),
        ("a ${b}c;", ("${b}c",)),
    ],
)
def test_arguments_of_a_directive(text: str, words: tuple[str, ...]) -> None:
    assert arguments(text) == words


def test_blocks_have_file_and_line() -> None:
    found, problems = statements("# top\na 1;\nb {\n  c 2;\n  d { }\n}\n")
    inner = (
        Statement("c", ("2",), None, "nginx.conf:4"),
        Statement("d", (), (), "nginx.conf:5"),
    )
    assert found == [
        Statement("a", ("1",), None, "nginx.conf:2"),
        Statement("b", (), inner, "nginx.conf:3"),
    ]
    assert problems == []


END_OF_FILE = 'unexpected end of file, expecting "}"'
UNCLOSED = "; the quotation mark ({}) in line {} is not closed"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a", 'nginx.conf:1: directive "a" is not terminated by ";"'),
        ("a b", 'nginx.conf:1: directive "a" is not terminated by ";"'),
        ("x;\na { b }", 'nginx.conf:2: directive "b" is not terminated by ";"'),
        ("a {", 'nginx.conf:1: unexpected end of file, expecting "}"'),
        ("a { b;\n", 'nginx.conf:1: unexpected end of file, expecting "}"'),
        ("a 'b;", f'nginx.conf:1: directive "a" is not terminated by ";"{UNCLOSED.format(chr(39), 1)}'),
        ("a {\n b \"c;\n d; # it's\n}\n", f"nginx.conf:2: {END_OF_FILE}{UNCLOSED.format(chr(34), 2)}"),
        ("a {\n b it's; # \"\n", 'nginx.conf:2: unexpected end of file, expecting "}"'),
        ('a {\n b "\\"";\n', 'nginx.conf:2: unexpected end of file, expecting "}"'),
        ("}", 'nginx.conf:1: unexpected "}"'),
        (";", 'nginx.conf:1: unexpected ";"; remove it, a "}" needs none'),
        ("a;\n{}", 'nginx.conf:2: unexpected "{"'),
        ("a;\n\0;", "nginx.conf:2: is not text: it contains a NUL character"),
        ("a {\n" * 70 + "}" * 70, "nginx.conf:65: more than 64 nested blocks"),
    ],
)
def test_invalid_syntax_is_reported(text: str, problem: str) -> None:
    found, problems = statements(text)
    assert (found, problems) == ([], [problem])


def test_includes_are_replaced_by_their_statements(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "2.conf").write_text("two;")
    (tmp_path / "conf.d" / "1.conf").write_text("\none;\ninclude three.conf;")
    (tmp_path / "three.conf").write_text("three;")
    found, problems = statements("a; include conf.d/*.conf; b; include none/*.conf;", tmp_path)
    assert [statement.name for statement in found] == ["a", "one", "three", "two", "b"]
    assert found[1].location == f"{tmp_path}/conf.d/1.conf:2"
    assert problems == []


def test_includes_in_blocks_are_read_with_the_block(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text("inner 1;")
    files = ConfigFiles(str(tmp_path), Problems())
    (block,) = files.statements("http { include inner; include missing; }", "f")
    assert files.problems.found == []
    assert block.block is not None
    assert [statement.name for statement in files.with_includes(block.block)] == ["inner"]
    assert len(files.problems) == 1


def test_invalid_include_is_reported(tmp_path: Path) -> None:
    (tmp_path / "loop").write_text("include other;")
    (tmp_path / "other").write_text("include loop;")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "huge").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    (tmp_path / "broken").write_text("a")
    text = (
        "include a b; include loop; include missing; include binary; include huge; include broken; include .;"
    )
    found, problems = statements(text, tmp_path)
    assert found == []
    assert problems == [
        'nginx.conf:1: invalid number of arguments in "include" directive',
        f"{tmp_path}/other:1: {tmp_path}/loop includes itself",
        f"nginx.conf:1: cannot read {tmp_path}/missing: No such file or directory",
        f"nginx.conf:1: {tmp_path}/binary:1: is not UTF-8 text: invalid start byte",
        f"nginx.conf:1: {tmp_path}/huge: is larger than 3145728 bytes",
        f'{tmp_path}/broken:1: directive "a" is not terminated by ";"',
        f"nginx.conf:1: cannot read {tmp_path}: Is a directory",
    ]


def test_included_pipe_is_reported_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found, problems = statements("include pipe; a;", tmp_path)
    assert [statement.name for statement in found] == ["a"]
    assert problems == [f"nginx.conf:1: cannot read {tmp_path}/pipe: it is a pipe"]


def test_number_of_included_files_is_limited(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a;")
    found, problems = statements("include a;" * 257, tmp_path)
    assert len(found) == 256
    assert problems == ["nginx.conf:1: more than 256 files are included"]

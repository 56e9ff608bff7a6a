# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from mailproxy.supervisor.termination_log import MAX_BYTES, write_termination_log
from mailproxy_config.errors import Problem


def test_problems_replace_the_content_without_lines_of_tables(tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    file.write_text("x" * 200)
    write_termination_log(
        [Problem("/moves:2", "no\nupstream", "'bob@example.org x'"), Problem("", "b")], file
    )
    assert file.read_text() == "/moves:2: no?upstream; b"
    write_termination_log([Problem("a", "x" * 2 * MAX_BYTES)], file)
    assert len(file.read_bytes()) == MAX_BYTES


def test_file_is_not_made_where_kubernetes_has_not_made_it(tmp_path: Path) -> None:
    write_termination_log([Problem("", "a")], tmp_path / "termination-log")
    assert list(tmp_path.iterdir()) == []

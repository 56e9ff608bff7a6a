# SPDX-License-Identifier: Apache-2.0
"""The table of what users feel, and its place on the page; the figures are not tested."""

from __future__ import annotations

import pytest
from benchmarks.felt import BEGIN, END, PAGE, replaced, table


def test_table_has_the_columns_of_all_proxies() -> None:
    rows = [("sessions", {"nginx": "1", "haproxy": "2", "mailproxy": "3"}), ("logins", {"mailproxy": "4"})]
    assert table(rows, {"dovecot": "install x"}) == [
        "| | nginx | dovecot | haproxy | mailproxy |",
        "|---|---|---|---|---|",
        "| sessions | 1 | install x | 2 | 3 |",
        "| logins | - | install x | - | 4 |",
    ]


def test_only_the_lines_between_the_marks_are_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replaced(page, ["new", "lines"])
    assert once == f"before\n{BEGIN}\n\nnew\nlines\n\n{END}\nafter\n"
    assert replaced(once, ["new", "lines"]) == once


@pytest.mark.parametrize("page", [BEGIN, END, ""])
def test_page_without_a_mark_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match="substring"):
        replaced(page, [])


def test_page_of_performance_begins_with_this_table() -> None:
    text = PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert "|" not in text[: text.index(BEGIN)]

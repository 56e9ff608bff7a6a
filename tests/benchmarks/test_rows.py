# SPDX-License-Identifier: Apache-2.0
"""Rows of results, and the tables that are written from them."""

from __future__ import annotations

from benchmarks.rows import Row, absent_cells, columns_of, line, row_of, table

_FOUND = {
    "nginx": {"cpu": [1.0, 2.0, 4.0], "proxy busy": [0.5] * 3, "load busy": [0.71] * 3},
    "mailproxy": {"cpu": [2.0, 2.0, 2.0], "proxy busy": [0.6] * 3, "load busy": [0.7] * 3},
}


def test_row_has_medians_and_the_ratios_of_each_round() -> None:
    row = row_of(_FOUND, "cpu", "login", "µs", scale=10)
    assert row.values == {"nginx": 20.0, "mailproxy": 20.0}
    assert row.ratios == {"nginx": [2.0, 1.0, 0.5]}
    assert row.ratio("nginx") == 1.0
    assert row.busy == {"nginx": (0.5, 0.71), "mailproxy": (0.6, 0.7)}


def test_rounds_in_which_the_other_value_is_nought_have_no_ratio() -> None:
    found = {"nginx": {"cpu": [0.0, 2.0]}, "mailproxy": {"cpu": [1.0, 1.0]}}
    assert row_of(found, "cpu", "x", "s").ratios == {"nginx": [0.5]}


def test_table_has_a_column_for_each_proxy_and_each_ratio() -> None:
    assert table([row_of(_FOUND, "cpu", "login", "µs", target="1.0")], ["nginx", "mailproxy"]) == [
        "| work | unit | nginx | mailproxy | ratio to nginx (min-max) | target | busy: proxy / load |",
        "|---|---|---|---|---|---|---|",
        "| login | µs | 2.00 | 2.00 | **1.00** (0.50-2.00) | 1.0 | nginx 50% / 71%!, mailproxy 60% / 70% |",
    ]


def test_only_a_load_above_the_limit_is_marked() -> None:
    assert line(row_of(_FOUND, "cpu", "login", "µs")).endswith(
        "to nginx 1.00 (0.50-2.00)  nginx 50% / 71%! busy  mailproxy 60% / 70% busy"
    )


def test_missing_program_has_its_packages_in_its_column() -> None:
    missing = {"dovecot": "not installed"}
    rows = [Row("login", "µs", {"nginx": 1.0, "mailproxy": 2.0}, {"nginx": [2.0]})]
    columns = columns_of(rows, missing)
    assert columns == ["dovecot", "nginx", "mailproxy"]
    cells = table(rows, columns, absent_cells(missing))[2].split(" | ")
    assert cells[2] == "install dovecot-imapd dovecot-pop3d dovecot-submissiond"
    assert cells[5] == "-"


def test_columns_are_those_of_all_rows_in_their_order() -> None:
    rows = [
        Row("a", "µs", {"nginx": 1.0, "mailproxy": 2.0}),
        Row("b", "µs", {"nginx": 1.0, "dovecot": 1.0, "mailproxy": 2.0}),
    ]
    assert set(columns_of(rows)) == {"nginx", "dovecot", "mailproxy"}

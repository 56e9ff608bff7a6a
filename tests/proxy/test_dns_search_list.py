# SPDX-License-Identifier: Apache-2.0
"""The search list of resolv.conf(5)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.dns.search_list import MAX_DOMAINS, SearchList, system_search_list

KUBERNETES = SearchList(("mail.svc.cluster.local", "svc.cluster.local", "cluster.local"), 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", SearchList()),
        ("nameserver 192.0.2.1\n", SearchList()),
        ("search a.example b.example.\n", SearchList(("a.example", "b.example"))),
        ("search a.example\nsearch B.example\n", SearchList(("b.example",))),
        ("search a.example\ndomain c.example\n", SearchList(("c.example",))),
        ("domain c.example\nsearch a.example\n", SearchList(("a.example",))),
        ("search .\n", SearchList()),
        ("options ndots:5 timeout:1\n", SearchList(ndots=5)),
        ("options ndots:99\n", SearchList(ndots=15)),
        ("options ndots:x\noptions ndots:\n", SearchList()),
        ("# search a.example\n; search b.example\n\n  search c.example \n", SearchList(("c.example",))),
        (
            "search mail.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\n"
            "options ndots:5\n",
            KUBERNETES,
        ),
    ],
)
def test_search_list_is_read(text: str, expected: SearchList, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    assert system_search_list(file) == expected


def test_missing_file_is_an_empty_search_list(tmp_path: Path) -> None:
    assert system_search_list(tmp_path / "missing") == SearchList()


def test_number_of_domains_is_limited(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("search " + " ".join(f"d{number}.example" for number in range(100)))
    assert len(system_search_list(file).domains) == MAX_DOMAINS


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("dovecot", [*(f"dovecot.{domain}" for domain in KUBERNETES.domains), "dovecot"]),
        ("a.b.svc", [*(f"a.b.svc.{domain}" for domain in KUBERNETES.domains), "a.b.svc"]),
        ("a.b.c.d.e.f", ["a.b.c.d.e.f", *(f"a.b.c.d.e.f.{domain}" for domain in KUBERNETES.domains)]),
        ("a.b.svc.", ["a.b.svc"]),
        ("x" * 240, ["x" * 240]),
    ],
)
def test_short_names_are_searched_first(name: str, candidates: list[str]) -> None:
    assert list(KUBERNETES.candidates(name)) == candidates


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    class File:
        def read_text(self, _encoding: str, _errors: str) -> str:
            return text

    found = system_search_list(File())  # type: ignore[arg-type]
    assert len(found.domains) <= MAX_DOMAINS
    assert 0 <= found.ndots <= 15

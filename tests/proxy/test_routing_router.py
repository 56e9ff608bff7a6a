# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mailproxy.routing.router import RouteMatch, Router
from mailproxy_config.upstream_groups import Route


class Table:
    """A table with these entries."""

    def __init__(self, entries: dict[bytes, RouteMatch]) -> None:
        self.find = entries.get


ROUTER = Router(
    [
        Route(users=("ceo@example.org", "Root"), upstream="fast"),
        Route(table="/moves"),
        Route(domains=("example.org", "*.example.org"), users=("x@example.com",), upstream="dovecot"),
        Route(domains=("xn--bcher-kva.example",), upstream="books"),
    ],
    {
        "/moves": Table(
            {
                b"bob@example.org": RouteMatch("new", b"bob2"),
                b"@moved.example": RouteMatch("new"),
                b"sam@moved.example": RouteMatch("old"),
            }
        )
    },
)


@pytest.mark.parametrize(
    ("user", "upstream"),
    [
        (b"ceo@example.org", "fast"),
        (b"ceo@EXAMPLE.org", "fast"),
        (b"CEO@example.org", "dovecot"),  # the local part is compared exactly
        (b"Root", "fast"),
        (b"root", None),
        (b"bob@Example.Org", "new"),
        (b"ann@moved.example", "new"),
        (b"sam@moved.example", "old"),  # a name wins over its domain
        (b"ann@example.org", "dovecot"),
        (b"@example.org", "dovecot"),
        (b"ann@a.B.example.org", "dovecot"),
        (b"ann@.example.org", None),
        (b"ann@notexample.org", None),
        (b"ann@example.org.", None),
        (b"x@example.com", "dovecot"),
        (b"ann@XN--Bcher-kva.example", "books"),
        ("ann@bücher.example".encode(), None),  # a U-label is not an A-label
        (b"", None),
        (b"ann@example.org@example.org", None),
        (b"an\x00n@example.org", None),
        (b"ann\x7f@example.org", None),
        (b"a" * 243 + b"@example.org", "dovecot"),
        (b"a" * 244 + b"@example.org", None),
    ],
)
def test_first_matching_route_decides(user: bytes, upstream: str | None) -> None:
    found = ROUTER.find(user)
    assert (found and found.upstream) == upstream


def test_asterisk_matches_names_with_and_without_domain() -> None:
    router = Router([Route(domains=("*",), upstream="all")], {})
    assert router.find(b"bob") == router.find(b"bob@example.org") == RouteMatch("all")
    assert router.find(b"a@b@c") is None


def test_table_may_name_login_at_upstream() -> None:
    found = ROUTER.find(b"bob@example.org")
    assert found is not None
    assert found.login == b"bob2"

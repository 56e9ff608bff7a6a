# SPDX-License-Identifier: Apache-2.0
"""The header ``Auth-Cache`` of the authentication service."""

from __future__ import annotations

import pytest

from mailproxy.auth_http.cache_header import MAX_SECONDS, NO_STORE, NO_WISH, CacheWish, read_cache_wish


@pytest.mark.parametrize(
    ("lines", "wish"),
    [
        (b"", NO_WISH),
        (b"Auth-Cache: \r\n", NO_WISH),
        (b"X-Auth-Cache: no-store\r\n", NO_WISH),
        (b"Auth-Cache: no-store\r\n", NO_STORE),
        (b"auth-cache:NO-STORE\n", NO_STORE),
        (b"Auth-Cache: max-age=30\r\n", CacheWish(max_age=30)),
        (b"Auth-Cache: max-age=0, stale-if-error=600\r\n", CacheWish(max_age=0, stale_if_error=600)),
        (
            b"Auth-Cache: max-age=30\r\nAuth-Cache: stale-if-error=5\r\n",
            CacheWish(max_age=30, stale_if_error=5),
        ),
        (b"Auth-Cache: max-age=30, no-store\r\n", NO_STORE),
        (b"Auth-Cache: max-age=30, max-age=10\r\n", CacheWish(max_age=10)),
        (b"Auth-Cache: max-age=99999999999\r\n", CacheWish(max_age=MAX_SECONDS)),
        (b"Auth-Cache: private, max-age=7\r\n", CacheWish(max_age=7)),
    ],
)
def test_wish_is_read(lines: bytes, wish: CacheWish) -> None:
    assert read_cache_wish(b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\n" + lines + b"\r\n") == wish


@pytest.mark.parametrize(
    "value", [b"max-age", b"max-age=", b"max-age=-1", b"max-age=1.5", b"stale-if-error=x"]
)
def test_time_that_is_no_number_forbids_to_store(value: bytes) -> None:
    assert read_cache_wish(b"HTTP/1.1 200 OK\r\nAuth-Cache: " + value + b"\r\n\r\n") == NO_STORE

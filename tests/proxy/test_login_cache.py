# SPDX-License-Identifier: Apache-2.0
"""The entries of a cache: a simple model, the limit of their memory, and 100,000 of them."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailproxy.auth_cache.login_cache import SWEEP_ENTRIES, CacheEntry, LoginCache
from mailproxy.protocols.types import AuthAllowed, AuthDenied, Secret, UpstreamServer


@dataclass
class Counts:
    entries: int = 0
    size: int = 0
    changes: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, entries: int, size: int) -> None:
        self.entries += entries
        self.size += size


def allowed(number: int = 0, password: bytes | None = None) -> AuthAllowed:
    secret = None if password is None else Secret(password)
    return AuthAllowed(
        f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 143, b"user%d" % number, secret
    )


def entry(
    fresh: float = 10.0, stale: float = 0.0, decision: AuthAllowed | AuthDenied | None = None
) -> CacheEntry:
    return CacheEntry(decision or allowed(), has_client_password=True, fresh_until=fresh, stale_until=stale)


def one_size() -> int:
    cache = LoginCache(1 << 20, Counts())
    cache.store(bytes(32), entry())
    return cache.used


def test_entry_is_found_until_it_is_of_no_use() -> None:
    cache = LoginCache(1 << 20, Counts())
    kept = entry(10.0, 20.0)
    cache.store(b"key", kept)
    assert cache.find(b"other", 0.0) is None
    assert cache.find(b"key", 19.9) is kept
    assert cache.find(b"key", 20.0) is None
    assert len(cache) == cache.used == 0


def test_entry_unused_for_longest_is_dropped_first() -> None:
    cache = LoginCache(3 * one_size(), Counts())
    for key in (b"%032d" % 0, b"%032d" % 1, b"%032d" % 2):
        assert cache.store(key, entry()) == 0
    cache.find(b"%032d" % 0, 0.0)
    assert cache.store(b"%032d" % 3, entry()) == 1
    assert [cache.find(b"%032d" % number, 0.0) is not None for number in range(4)] == [
        True,
        False,
        True,
        True,
    ]


def test_entry_larger_than_the_cache_is_not_kept_and_drops_no_other() -> None:
    cache = LoginCache(2 * one_size(), Counts())
    cache.store(b"%032d" % 0, entry())
    assert cache.store(b"%032d" % 1, entry(decision=allowed(password=bytes(10_000)))) == 0
    assert len(cache) == 1


def test_large_entry_drops_as_many_as_it_needs() -> None:
    cache = LoginCache(10 * one_size(), Counts())
    for number in range(10):
        cache.store(b"%032d" % number, entry())
    assert cache.store(b"%032d" % 99, entry(decision=allowed(password=bytes(3 * one_size())))) >= 3
    assert cache.used <= 10 * one_size()


def test_sweep_deletes_what_is_of_no_use_in_bounded_steps() -> None:
    counts = Counts()
    cache = LoginCache(10 << 20, counts)
    for number in range(SWEEP_ENTRIES + 5):
        cache.store(b"%032d" % number, entry(10.0))
    cache.store(b"later", entry(99.0))
    assert not cache.sweep(9.0)
    assert cache.sweep(10.0)
    assert len(cache) == 6
    assert not cache.sweep(10.0)
    assert len(cache) == counts.entries == 1
    assert counts.size == cache.used


def test_repr_has_no_content() -> None:
    cache = LoginCache(1 << 20, Counts())
    cache.store(b"key", entry(decision=allowed(password=b"hunter2")))
    assert repr(cache) == "<LoginCache with 1 entries>"
    assert "hunter2" not in repr(entry(decision=allowed(password=b"hunter2"))) + repr(
        allowed(password=b"hunter2")
    )


class Model:
    """The same as a list: the entry that was used last is at the end."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.entries: list[tuple[bytes, CacheEntry]] = []

    def take(self, key: bytes) -> CacheEntry | None:
        found = [kept for known, kept in self.entries if known == key]
        self.entries = [(known, kept) for known, kept in self.entries if known != key]
        return found[0] if found else None

    def find(self, key: bytes, now: float) -> CacheEntry | None:
        kept = self.take(key)
        if kept is None or kept.stale_until <= now:
            return None
        self.entries.append((key, kept))
        return kept

    def store(self, key: bytes, kept: CacheEntry) -> None:
        self.take(key)
        self.entries = [*self.entries, (key, kept)][-self.room :]

    def sweep(self, now: float) -> None:
        while self.entries and self.entries[0][1].stale_until <= now:
            del self.entries[0]


@pytest.mark.generated
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["store", "store", "find", "drop", "sweep", "pass"]),
            st.integers(0, 7),
            st.integers(0, 9),
            st.integers(0, 9),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
)
def test_cache_is_like_a_list_in_order_of_use(steps: list[tuple[str, int, int, int]], room: int) -> None:
    counts = Counts()
    cache, model = LoginCache(room * one_size(), counts), Model(room)
    now = 0.0
    for action, number, fresh, stale in steps:
        key = b"%032d" % number
        if action == "store":
            stored = entry(now + fresh, now + fresh + stale)
            cache.store(key, stored)
            model.store(key, stored)
        elif action == "find":
            assert cache.find(key, now) is model.find(key, now)
        elif action == "drop":
            cache.drop(key)
            model.take(key)
        elif action == "sweep":
            cache.sweep(now)
            model.sweep(now)
        else:
            now += number
        assert len(cache) == counts.entries == len(model.entries)
        assert cache.used == counts.size == sum(kept.size for _, kept in model.entries)
        assert cache.used <= room * one_size()


def several(number: int) -> AuthAllowed:
    hosts = tuple(UpstreamServer(f"imap{number}-{position}.example.org", 143) for position in range(3))
    return AuthAllowed(hosts[0].host, 143, b"user%d" % number, Secret(b"secret%d" % number), hosts)


def denied(number: int) -> AuthDenied:
    return AuthDenied(b"Invalid login or password, ticket %d" % number)


@pytest.mark.parametrize(
    "decision", [allowed, several, denied], ids=["allowed", "several servers and a password", "denied"]
)
def test_entries_take_no_more_memory_than_is_counted(
    decision: Callable[[int], AuthAllowed | AuthDenied],
) -> None:
    cache = LoginCache(1 << 30, Counts())
    with traced_memory() as taken:
        for number in range(1400):  # a table that has just grown
            cache.store(b"%032d" % number, entry(float(number), decision=decision(number)))
        assert 0.5 * cache.used < taken() <= cache.used


def test_100_000_logins_leave_the_latest_that_fit() -> None:
    cache = LoginCache(10 << 20, Counts())
    for number in range(100_000):
        cache.store(b"%032d" % number, entry(float(number + 1)))
    room = (10 << 20) // one_size()
    assert len(cache) == room
    assert cache.find(b"%032d" % (100_000 - room), 0.0) is not None
    assert cache.find(b"%032d" % (100_000 - room - 1), 0.0) is None
    for _ in range(room // SWEEP_ENTRIES + 1):
        cache.sweep(1e9)
    assert cache.used == len(cache) == 0


def test_memory_stays_within_the_size_while_entries_come_and_go() -> None:
    size = 1 << 19
    cache = LoginCache(size, Counts())
    with traced_memory() as taken:
        for number in range(1500):
            cache.store(b"%032d" % number, entry(decision=several(number)))
        assert taken() <= size
    assert 0.95 * size < cache.used <= size


@contextlib.contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes allocated since."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

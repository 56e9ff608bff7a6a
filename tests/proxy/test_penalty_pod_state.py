# SPDX-License-Identifier: Apache-2.0
"""Records of failed logins in the memory of all workers: tables, locks, and workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from struct import Struct
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.net import shared_memory
from mailproxy.net.shared_memory import Area, SharedMemory
from mailproxy.penalty.pod_state import PodState
from mailproxy.penalty.table import WAYS, ByteLocks, Table, size_of
from mailproxy_config.failed_logins import AuthBlock

LAYOUT: Final = Struct("=dI")
BLOCK: Final = AuthBlock(failures=10_000)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = shared_memory.create()
    yield descriptor
    os.close(descriptor)


def worker(descriptor: int, code: str) -> subprocess.Popen[bytes]:
    """Run code in another process, with its ``state`` of the same memory."""
    start = (
        "import sys\n"
        "from mailproxy.net.shared_memory import SharedMemory\n"
        "from mailproxy.penalty.pod_state import PodState\n"
        "from mailproxy_config.failed_logins import AuthBlock\n"
        f"state = PodState(SharedMemory({descriptor}))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        pass_fds=[descriptor],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )


def table(sets: int = 1) -> Table:
    return Table(memoryview(bytearray(size_of(sets, LAYOUT))), LAYOUT, ByteLocks(-1, 0), 0)


@given(st.lists(st.tuples(st.integers(1, 2**64 - 1), st.booleans()), max_size=200))
def test_table_is_a_dictionary_without_its_oldest_items(steps: list[tuple[int, bool]]) -> None:
    records, expected = table(), {}
    for when, (key, is_removed) in enumerate(steps):
        if is_removed:
            records.remove(key)
            expected.pop(key, None)
        else:
            records.put(key, float(when), key % 2**32)
            expected.pop(key, None)
            expected[key] = (float(when), key % 2**32)
            if len(expected) > WAYS:
                del expected[next(iter(expected))]
        assert all(records.get(key) == found for key, found in expected.items())
        assert sum(records.get(each) is not None for each, _ in steps[: when + 1]) >= len(expected)
    for key, _ in steps:
        assert records.get(key) == expected.get(key)


def test_key_is_not_found_across_two_slots() -> None:
    records = table()
    first, second = 0x1122334455667788, 0x99AABBCCDDEEFF00
    records.put(first, 1.0, 1)
    records.put(second, 2.0, 2)
    data = first.to_bytes(8, sys.byteorder) + second.to_bytes(8, sys.byteorder)
    assert records.get(int.from_bytes(data[3:11], sys.byteorder)) is None


def test_a_hundred_thousand_addresses_are_remembered_at_once() -> None:
    state = PodState(SharedMemory(), Clock())
    addresses = [state.key_of(b"address", one.to_bytes(4, "big")) for one in range(100_000)]
    for address in addresses:
        state.penalize(address, address % 2**32)
    assert all(state.penalty(address) == 1 for address in addresses)


def test_memory_is_bounded_and_all_of_it_is_in_the_area() -> None:
    state = PodState(SharedMemory(), Clock())
    tables = (state._penalties, state._blocks, state._pairs, state._turns)
    assert [one.slots for one in tables] == [192_000, 192_000, 192_000, 32_768]
    assert Area.PENALTY.value == 36 * 1024 * 1024


def test_all_workers_hash_with_the_key_of_the_first(memory: int) -> None:
    state = PodState(SharedMemory(memory))
    process = worker(memory, "print(state.key_of(b'a', b'bob'), state.credential(b'bob', b'secret'))")
    output, _ = process.communicate(timeout=30)
    assert output.split() == [b"%d" % state.key_of(b"a", b"bob"), b"%d" % state.credential(b"bob", b"secret")]
    other = PodState(SharedMemory())
    assert other.key_of(b"a", b"bob") != state.key_of(b"a", b"bob")


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    state = PodState(SharedMemory())
    assert state.credential(b"bob", b"1secret") != state.credential(b"bob1", b"secret")
    assert state.key_of(b"pair", b"abc", b"def") != state.key_of(b"pair", b"abcdef")


def test_failures_of_two_workers_at_the_same_time_are_all_counted(memory: int) -> None:
    state = PodState(SharedMemory(memory))
    code = (
        "sys.stdin.readline()\n"
        "for one in range(500):\n"
        "    state.count_towards_block(77, {first} + one, AuthBlock(failures=10_000))\n"
    )
    processes = [worker(memory, code.format(first=first)) for first in (1000, 2000)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.wait(30) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    assert state._read_block(77).failures == 1000


def test_turn_and_waiting_logins_of_a_killed_worker_are_given_back(memory: int) -> None:
    state = PodState(SharedMemory(memory))
    code = "state.take_turn(5)\nstate.workers.add(3)\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    process = worker(memory, code)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert state.take_turn(5) is None
    assert state.workers.waiting() == 3
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.communicate()
    assert state.workers.waiting() == 0
    assert state.take_turn(5) is not None


def test_worker_in_the_place_of_a_killed_one_does_not_inherit_its_turns(memory: int) -> None:
    state = PodState(SharedMemory(memory))
    first = worker(memory, "state.take_turn(5)\nstate.workers.add(1)\nprint(state.workers.holder)")
    output, _ = first.communicate(timeout=30)
    holder = int(output)
    second = worker(
        memory, "print(state.workers.holder, state.workers.waiting(), state.take_turn(5) is None)"
    )
    output, _ = second.communicate(timeout=30)
    assert output.split() == [b"%d" % (holder + 512), b"0", b"False"]
    assert state.workers.waiting() == 0


def test_one_login_of_an_account_runs_at_a_time() -> None:
    clock = Clock()
    state = PodState(SharedMemory(), clock)
    started = state.take_turn(5)
    assert started is not None
    assert (state.take_turn(5), state.take_turn(6)) == (None, 1000.0)
    state.end_turn(5, started)
    assert state.take_turn(5) == 1000.0


def test_turn_ends_by_itself_after_60_seconds_and_its_late_end_ends_no_other() -> None:
    clock = Clock()
    state = PodState(SharedMemory(), clock)
    first = state.take_turn(5)
    assert first is not None
    clock.now += 60
    second = state.take_turn(5)
    assert second == 1060.0
    state.end_turn(5, first)
    assert state.take_turn(5) is None
    state.end_turn(5, second)
    assert state.take_turn(5) is not None


def test_last_failure_is_that_of_the_same_address() -> None:
    state = PodState(SharedMemory(), Clock())
    started = state.take_turn(5)
    assert started is not None
    state.end_turn(5, started, failed_by=9)
    assert (state.last_failure(5, 9), state.last_failure(5, 8), state.last_failure(6, 9)) == (
        1000.0,
        0.0,
        0.0,
    )


def test_user_is_known_for_an_hour_and_until_ten_wrong_passwords() -> None:
    clock = Clock()
    state = PodState(SharedMemory(), clock)
    assert not state.last_login(5)
    state.logged_in(5)
    clock.now += 3599
    assert state.last_login(5)
    clock.now += 1
    assert not state.last_login(5)
    state.logged_in(5)
    for _ in range(10):
        assert state.last_login(5)
        state.pair_failed(5)
    assert not state.last_login(5)
    state.pair_failed(6)
    assert not state.last_login(6)


def test_records_survive_a_reload_and_the_end_of_a_worker(memory: int) -> None:
    process = worker(memory, "state.penalize(7, 1)\nstate.penalize(7, 2)\nstate.logged_in(8)")
    assert process.wait(30) == 0
    process.communicate()
    state = PodState(SharedMemory(memory))
    assert state.penalty(7) == 2
    assert state.last_login(8) > 0


def test_blocked_for_counts_down_to_the_end_of_the_block() -> None:
    clock = Clock()
    state = PodState(SharedMemory(), clock)
    rules = AuthBlock(failures=2, seconds=60.0)
    assert state.count_towards_block(5, 1, rules) == 0
    assert state.count_towards_block(5, 2, rules) == 60
    assert state.count_towards_block(5, 3, rules) == 0
    assert (state.blocked_for(5), state.blocked_for(6)) == (60, 0)
    clock.now += 60
    assert state.blocked_for(5) == 0

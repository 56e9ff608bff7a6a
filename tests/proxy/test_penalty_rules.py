# SPDX-License-Identifier: Apache-2.0
"""The state machines of one address: penalty and block, compared with models that keep the whole history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailproxy.penalty.rules import (
    NO_BLOCK,
    NO_PENALTY,
    RULES,
    BlockRecord,
    PenaltyRecord,
    block_seconds,
    count_towards_block,
    current_penalty,
    penalize,
)
from mailproxy_config.failed_logins import AuthBlock

PAUSES = st.one_of(st.sampled_from([0.0, 14.9, 15.0, 28.9, 29.0]), st.floats(0, 40))
FAILURES = st.lists(st.tuples(PAUSES, st.integers(0, 13)), max_size=30)


def fail(*failures: tuple[float, int]) -> PenaltyRecord:
    """The record after failures with these times and credentials."""
    record = NO_PENALTY
    for when, credential in failures:
        record = penalize(record, credential, when)
    return record


def distinct(credentials: list[int]) -> list[int]:
    """The last ten distinct ones of a history; the newest is first."""
    return list(dict.fromkeys(reversed(credentials)))[:10]


def model(history: list[tuple[float, int]], now: float) -> int:
    """The penalty, computed from all failures there were."""
    times = [*(when for when, _ in history), now]
    first_remembered = first_counted = 0
    for index in range(len(history)):
        pause = times[index + 1] - times[index]
        first_remembered = index + 1 if pause >= 29 else first_remembered
        first_counted = index + 1 if pause >= 15 else first_counted
    counted = sum(
        credential not in distinct([one for _, one in history[first_remembered:index]])
        for index, (_, credential) in enumerate(history)
        if index >= max(first_counted, first_remembered)
    )
    return min(counted, 4)


@given(FAILURES, PAUSES)
def test_penalty_is_that_of_the_whole_history(failures: list[tuple[float, int]], pause: float) -> None:
    now, history = 1000.0, []
    record = NO_PENALTY
    for before, credential in failures:
        now += before
        record = penalize(record, credential, now)
        history.append((now, credential))
        assert len(record.credentials) <= 10
    # Times are compared with an exact sum, so that no pause is rounded across a limit.
    assert current_penalty(record, now + pause).penalty == model(history, now + pause)


def test_waits_are_those_of_dovecot() -> None:
    records = [fail(*((float(n), n) for n in range(count))) for count in range(7)]
    assert [RULES.waits[one.penalty] for one in records] == [0, 4, 8, 15, 15, 15, 15]


def test_penalty_that_ends_during_the_wait_for_it_counts() -> None:
    record = fail((0.0, 1), (1.0, 2), (2.0, 3))
    assert penalize(record, 4, 17.0).penalty == 1  # of a login that arrived after the penalty had ended
    assert penalize(record, 4, 17.0, waited=3).penalty == 4
    assert penalize(record, 3, 17.0, waited=3).penalty == 3
    assert penalize(record, 4, 17.0, waited=4).penalty == 4


def test_penalty_is_0_after_15_seconds_and_credentials_are_forgotten_after_29() -> None:
    record = fail((100.0, 1), (100.0, 2))
    assert current_penalty(record, 114.9).penalty == 2
    assert current_penalty(record, 115.0) == PenaltyRecord(100.0, 0, (2, 1))
    assert current_penalty(record, 128.9).credentials == (2, 1)
    assert current_penalty(record, 129.0) == NO_PENALTY


def test_the_same_credentials_raise_the_penalty_once() -> None:
    assert fail(*((float(when), 7) for when in range(10))).penalty == 1
    assert fail((0.0, 1), (1.0, 2), (2.0, 1), (3.0, 2)).penalty == 2


def test_the_eleventh_distinct_credential_replaces_the_oldest() -> None:
    record = fail(*((0.0, one) for one in range(11)))
    assert record.credentials == tuple(range(10, 0, -1))
    assert penalize(record, 10, 0.0).credentials == record.credentials


def test_record_from_the_future_or_with_an_impossible_penalty_is_forgotten() -> None:
    record = fail((1000.0, 1))
    assert current_penalty(record, 900.0) == NO_PENALTY
    assert current_penalty(record, 999.5).penalty == 1  # written by another worker meanwhile
    assert current_penalty(record._replace(penalty=5), 1000.0) == NO_PENALTY


BLOCK = AuthBlock(failures=3, window=60.0, seconds=10.0, maximum=35.0)


def block(record: BlockRecord, *failures: tuple[float, int]) -> BlockRecord:
    """The record after more failures."""
    for when, credential in failures:
        record = count_towards_block(record, credential, when, BLOCK)
    return record


def test_address_is_blocked_after_distinct_credentials_in_the_window() -> None:
    record = block(NO_BLOCK, (100.0, 1), (101.0, 2))
    assert record.until == 0
    assert block(record, (102.0, 3)).until == 112.0
    assert block(record, (160.0, 3)).until == 0  # another window


def test_one_old_password_is_one_failure() -> None:
    assert block(NO_BLOCK, *((100.0 + one, 1) for one in range(50))).failures == 1


def test_each_block_is_twice_as_long_up_to_the_maximum() -> None:
    record, lengths, now = NO_BLOCK, [], 100.0
    for _ in range(4):
        record = block(record, (now, 1), (now, 2), (now, 3))
        lengths.append(record.until - now)
        now = record.until + 1
    assert lengths == [10.0, 20.0, 35.0, 35.0]
    later = block(record, *((record.until + 35.0, one) for one in range(3)))
    assert later.until - later.last == 10.0  # quiet for the longest block: it begins with the first again


def test_failure_of_a_login_that_began_before_the_block_changes_nothing() -> None:
    record = block(NO_BLOCK, (100.0, 1), (100.0, 2), (100.0, 3))
    assert block(record, (101.0, 4), (102.0, 5)) == record


def test_block_from_the_future_is_forgotten() -> None:
    assert block(BlockRecord(9e9, 9e9, 9e9, 2, 3, ()), (100.0, 1)) == BlockRecord(
        100.0, 100.0, 0.0, 1, 0, (1,)
    )


@given(st.integers(0, 10_000))
def test_block_is_never_longer_than_the_maximum(earlier: int) -> None:
    assert 10.0 <= block_seconds(earlier, BLOCK) <= 35.0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 5)), max_size=40))
def test_no_block_with_fewer_distinct_credentials_than_configured(failures: list[tuple[float, int]]) -> None:
    now, record, history = 1000.0, NO_BLOCK, []
    for pause, credential in failures:
        now += pause
        history.append((now, credential))
        was_blocked = record.until > now
        record = count_towards_block(record, credential, now, BLOCK)
        if record.until > now and not was_blocked:
            seen = {one for when, one in history if when > now - BLOCK.window}
            assert len(seen) >= BLOCK.failures
            history.clear()

# SPDX-License-Identifier: Apache-2.0
"""The state machines of one address: its penalty, and its block.

They have no clock: times are arguments, in seconds of a clock that never goes back.  A record whose time
is in the future is not valid, and counts as forgotten.  The numbers of the penalty are those of Dovecot's
``auth-penalty.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from mailproxy_config.failed_logins import AuthBlock

CREDENTIALS: Final = 10
"""Distinct credentials that are remembered for an address."""
_CLOCK_SLACK: Final = 1.0
"""Seconds by which another worker's record may be newer: it was written after this time was read."""


@dataclass(frozen=True, slots=True)
class PenaltyRules:
    """The numbers of the penalty; times are in seconds.

    Attributes:
        waits: The wait before a login, by penalty; the last one is for the highest penalty.
        calm: Without a failure for so long, the penalty is 0.
        forget: Without a failure for so long, the credentials are forgotten, too.
        longest_wait: A login that would wait longer is refused with a temporary error.
        turn: After so long a login that is not over does not hold up others of its account.
        recent_login: How long a user who logged in from a network is not delayed there.
        pair_failures: Distinct wrong credentials after which such a user is delayed again.
    """

    waits: tuple[float, ...] = (0.0, 4.0, 8.0, 15.0, 15.0)
    calm: float = 15.0
    forget: float = 29.0
    longest_wait: float = 30.0
    turn: float = 60.0
    recent_login: float = 3600.0
    pair_failures: int = 10


RULES: Final = PenaltyRules()


class PenaltyRecord(NamedTuple):
    """The penalty of one address.

    Attributes:
        last: Time of its last failed login.
        penalty: 0 to the highest.
        credentials: Keyed hashes of the last distinct wrong credentials; the newest is first.
    """

    last: float = 0.0
    penalty: int = 0
    credentials: tuple[int, ...] = ()


NO_PENALTY: Final = PenaltyRecord()


def current_penalty(record: PenaltyRecord, now: float, rules: PenaltyRules = RULES) -> PenaltyRecord:
    """Return the record as it is at this time: what has passed is forgotten."""
    age = now - record.last
    if not -_CLOCK_SLACK <= age < rules.forget or record.penalty >= len(rules.waits):
        return NO_PENALTY
    return record._replace(penalty=0) if age >= rules.calm else record


def penalize(
    record: PenaltyRecord, credential: int, now: float, *, waited: int = 0, rules: PenaltyRules = RULES
) -> PenaltyRecord:
    """Return the record after a failed login.

    Args:
        record: The record before it.
        credential: Keyed hash of user and password.  One of the last ``CREDENTIALS`` raises no penalty.
        now: Time of the failure.
        waited: The penalty that the login has waited for; it may have ended during the wait.
        rules: The numbers.
    """
    old = current_penalty(record, now, rules)
    is_new = credential not in old.credentials
    penalty = min(max(old.penalty, waited) + is_new, len(rules.waits) - 1)
    return PenaltyRecord(max(now, old.last), penalty, remember(old.credentials, credential))


def remember(credentials: tuple[int, ...], credential: int) -> tuple[int, ...]:
    """Return the last distinct credentials with this one as the newest."""
    return (credential, *(one for one in credentials if one != credential))[:CREDENTIALS]


class BlockRecord(NamedTuple):
    """Failed logins and blocks of one address.

    Attributes:
        last: Time of its last failed login.
        start: When the window began that these failures are counted in.
        until: End of its last block; 0 if there was none.
        failures: Distinct wrong credentials in the window.
        blocks: Blocks one after the other; each is twice as long as the one before.
        credentials: As in ``PenaltyRecord``.
    """

    last: float = 0.0
    start: float = 0.0
    until: float = 0.0
    failures: int = 0
    blocks: int = 0
    credentials: tuple[int, ...] = ()


NO_BLOCK: Final = BlockRecord()


def count_towards_block(record: BlockRecord, credential: int, now: float, block: AuthBlock) -> BlockRecord:
    """Return the record after a failed login; its ``until`` is after ``now`` if the address is blocked.

    Args:
        record: The record before it.
        credential: Keyed hash of user and password.  One of the last ``CREDENTIALS`` is not counted.
        now: Time of the failure.
        block: The directive ``auth_block``.
    """
    if record.until > now + block.maximum + _CLOCK_SLACK or record.last > now + _CLOCK_SLACK:
        record = NO_BLOCK
    if record.until > now:
        return record  # of a login that began before the block
    if record.blocks and now - record.until >= block.maximum:
        record = record._replace(blocks=0)
    if not 0.0 <= now - record.start < block.window:
        record = record._replace(start=now, failures=0, credentials=())
    is_new = credential not in record.credentials
    credentials = remember(record.credentials, credential)
    failures = record.failures + is_new
    if failures < block.failures:
        return record._replace(last=now, failures=failures, credentials=credentials)
    until = now + block_seconds(record.blocks, block)
    return BlockRecord(now, 0.0, until, 0, record.blocks + 1, ())


def block_seconds(earlier: int, block: AuthBlock) -> float:
    """Return how long an address is blocked that was blocked so many times before."""
    doublings = min(earlier, 30)
    return min(block.seconds * 2.0**doublings, max(block.maximum, block.seconds))

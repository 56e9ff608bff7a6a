# SPDX-License-Identifier: Apache-2.0
"""What all workers of a pod share about failed logins: records in the area ``Area.PENALTY``.

It has room for 192,000 addresses, as many blocks and as many users with their networks, and for 32,768
logins in progress.  It survives reloads and the end of workers, and is lost with the pod.

Keys are hashes with a key that the first worker makes; no address, user or password is in the memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from hashlib import blake2b
from struct import Struct
from typing import Final

from mailproxy.net.shared_memory import Area, SharedMemory
from mailproxy.penalty.rules import (
    CREDENTIALS,
    NO_BLOCK,
    NO_PENALTY,
    RULES,
    BlockRecord,
    PenaltyRecord,
    PenaltyRules,
    count_towards_block,
    current_penalty,
    penalize,
)
from mailproxy.penalty.table import ByteLocks, Table, size_of
from mailproxy_config.failed_logins import AuthBlock

MAX_WORKERS: Final = 512
"""Workers with a number of their own; those of an old and a new configuration at the same time."""
KEYS_KEPT: Final = 4096
"""Keys of users and networks that a worker keeps, so that those that come often are not made again."""
MAX_KEPT: Final = 255
"""Bytes of the longest user name whose key is kept."""

_KEY_BYTES: Final = 32
_KEY_IS_MADE: Final = _KEY_BYTES
_WORKERS_AT: Final = 64
_WORKER: Final = Struct("=QQ")
"""How many workers had this number, and how many logins wait in this one."""
_HEADER_BYTES: Final = 16 * 1024

_SETS: Final = 3000
_TURN_SETS: Final = 512
_PENALTY: Final = Struct(f"=dII{CREDENTIALS}I")
_BLOCK: Final = Struct(f"=dddIII{CREDENTIALS}I")
_PAIR: Final = Struct("=dQ")
_TURN: Final = Struct("=ddQQ")

_KEY_LOCK: Final = MAX_WORKERS
_PENALTY_LOCKS: Final = 1024
_BLOCK_LOCKS: Final = _PENALTY_LOCKS + _SETS
_PAIR_LOCKS: Final = _BLOCK_LOCKS + _SETS
_TURN_LOCKS: Final = _PAIR_LOCKS + _SETS


class WaitingWorkers:
    """The workers of a pod: who of them is alive, and how many logins wait in each.

    A worker holds the lock of its number as long as it lives.

    Args:
        memory: The numbers of all workers.
        locks: The locks of the pod.

    Attributes:
        holder: Identifies this worker: no other one has it, before or after.
    """

    __slots__ = ("_locks", "_memory", "_number", "holder")

    def __init__(self, memory: memoryview, locks: ByteLocks) -> None:
        self._memory = memory
        self._locks = locks
        self._number = next((one for one in range(MAX_WORKERS) if locks.take(one)), MAX_WORKERS - 1)
        generation, _ = self._read(self._number)
        _WORKER.pack_into(memory, self._number * _WORKER.size, generation + 1, 0)
        self.holder = (generation + 1) * MAX_WORKERS + self._number

    def is_alive(self, holder: int) -> bool:
        """Whether the worker with this ``holder`` still runs."""
        if holder == self.holder:
            return True
        generation, number = divmod(holder, MAX_WORKERS)
        if self._read(number)[0] != generation or number == self._number:
            return False
        if self._locks.take(number):
            self._locks.give_back(number)
            return False
        return True

    def add(self, change: int) -> None:
        """Change the number of logins that wait in this worker."""
        generation, waiting = self._read(self._number)
        count = max(waiting + change, 0)
        _WORKER.pack_into(self._memory, self._number * _WORKER.size, generation, count)

    def waiting(self) -> int:
        """Return how many logins wait in all workers that run."""
        total = 0
        for number, (generation, waiting) in enumerate(_WORKER.iter_unpack(self._memory)):
            if waiting and self.is_alive(generation * MAX_WORKERS + number):
                total += waiting
        return total

    def _read(self, number: int) -> tuple[int, int]:
        generation, waiting = _WORKER.unpack_from(self._memory, number * _WORKER.size)
        return generation, waiting


class PodState:
    """The records, as one worker sees them.

    Args:
        memory: The memory of the workers.
        clock: Seconds; the same clock in all workers, and one that never goes back.
        rules: The numbers of the penalty, by default those of Dovecot.

    Attributes:
        clock: See above.
        rules: See above.
        workers: The workers, and the logins that wait.
    """

    __slots__ = (
        "_blocks",
        "_key",
        "_pair_keys",
        "_pairs",
        "_penalties",
        "_turns",
        "clock",
        "rules",
        "workers",
    )

    def __init__(
        self,
        memory: SharedMemory,
        clock: Callable[[], float] = time.monotonic,
        rules: PenaltyRules | None = None,
    ) -> None:
        self.clock = clock
        self.rules = RULES if rules is None else rules
        view = memory.view(Area.PENALTY)
        locks = ByteLocks(memory.descriptor, memory.offset(Area.PENALTY))
        self._key = _shared_key(view, locks)
        self._pair_keys: dict[tuple[bytes, bytes], int] = {}
        workers_end = _WORKERS_AT + MAX_WORKERS * _WORKER.size
        self.workers = WaitingWorkers(view[_WORKERS_AT:workers_end], locks)
        tables, start = [], _HEADER_BYTES
        for layout, sets, lock in (
            (_PENALTY, _SETS, _PENALTY_LOCKS),
            (_BLOCK, _SETS, _BLOCK_LOCKS),
            (_PAIR, _SETS, _PAIR_LOCKS),
            (_TURN, _TURN_SETS, _TURN_LOCKS),
        ):
            end = start + size_of(sets, layout)
            tables.append(Table(view[start:end], layout, locks, lock))
            start = end
        self._penalties, self._blocks, self._pairs, self._turns = tables

    # -- keys

    def key_of(self, kind: bytes, network: bytes, user: bytes = b"") -> int:
        """Return the key of a record: 64 bits, never 0.

        Args:
            kind: What the record is about.
            network: An address or the part of it that counts; empty for records about a user.
            user: The user's name.
        """
        text = b"%b %d %b%b" % (kind, len(network), network, user)
        return int.from_bytes(blake2b(text, digest_size=8, key=self._key).digest(), "little") or 1

    def pair_key(self, network: bytes, user: bytes) -> int:
        """Return the key of a user and the network of an address; those that come often are kept."""
        pair = network, user
        key = self._pair_keys.get(pair)
        if key is None:
            if len(user) > MAX_KEPT:
                return self.key_of(b"pair", network, user)
            if len(self._pair_keys) >= KEYS_KEPT:
                self._pair_keys.clear()
            key = self._pair_keys[pair] = self.key_of(b"pair", network, user)
        return key

    def credential(self, user: bytes, secret: bytes) -> int:
        """Return the keyed hash of a user and a password: 32 bits."""
        text = b"%d %b%b" % (len(user), user, secret)
        return int.from_bytes(blake2b(text, digest_size=4, key=self._key).digest(), "little")

    # -- the penalty of an address

    def penalty(self, address: int) -> int:
        """Return the penalty of an address now: 0 to 4."""
        return current_penalty(self._read_penalty(address), self.clock(), self.rules).penalty

    def penalize(self, address: int, credential: int, waited: int = 0) -> bool:
        """Record a failed login; returns whether these credentials are not among the last ones.

        Args:
            address: The key of the address.
            credential: The keyed hash of the credentials.
            waited: The penalty that the login has waited for.
        """
        with self._penalties.locked(address):
            now = self.clock()
            old = self._read_penalty(address)
            is_new = credential not in current_penalty(old, now, self.rules).credentials
            new = penalize(old, credential, now, waited=waited, rules=self.rules)
            listed = new.credentials
            filled = (*listed, *(0,) * (CREDENTIALS - len(listed)))
            self._penalties.put(address, new.last, new.penalty, len(listed), *filled)
        return is_new

    def _read_penalty(self, address: int) -> PenaltyRecord:
        fields = self._penalties.get(address)
        if fields is None:
            return NO_PENALTY
        last, penalty, count, *credentials = fields
        return PenaltyRecord(last, penalty, tuple(credentials[:count]))

    # -- the block of an address

    def blocked_for(self, address: int) -> float:
        """Return for how many more seconds an address is blocked; 0 if it is not."""
        fields = self._blocks.get(address)
        if fields is None:
            return 0.0
        until: float = fields[2]
        return max(until - self.clock(), 0.0) if until else 0.0

    def count_towards_block(self, address: int, credential: int, block: AuthBlock) -> float:
        """Record a failed login; returns the seconds of the block that it begins, 0 if it begins none."""
        with self._blocks.locked(address):
            now = self.clock()
            old = self._read_block(address)
            new = count_towards_block(old, credential, now, block)
            listed = new.credentials
            filled = (*listed, *(0,) * (CREDENTIALS - len(listed)))
            self._blocks.put(
                address, new.last, new.start, new.until, new.failures, new.blocks, len(listed), *filled
            )
        return new.until - now if new.until > now and new.until != old.until else 0.0

    def _read_block(self, address: int) -> BlockRecord:
        fields = self._blocks.get(address)
        if fields is None:
            return NO_BLOCK
        last, start, until, failures, blocks, count, *credentials = fields
        return BlockRecord(last, start, until, failures, blocks, tuple(credentials[:count]))

    # -- users who logged in lately

    def logged_in(self, pair: int) -> None:
        """Record that a user logged in from a network."""
        with self._pairs.locked(pair):
            self._pairs.put(pair, self.clock(), 0)

    def last_login(self, pair: int) -> float:
        """Return when a user logged in from a network; 0 if not lately, or if many guesses followed."""
        fields = self._pairs.get(pair)
        if fields is None:
            return 0.0
        when: float = fields[0]
        if fields[1] >= self.rules.pair_failures or self.clock() - when >= self.rules.recent_login:
            return 0.0
        return when

    def pair_failed(self, pair: int) -> None:
        """Record new wrong credentials of a user in a network."""
        with self._pairs.locked(pair):
            fields = self._pairs.get(pair)
            if fields is not None:
                when, failures = fields
                self._pairs.put(pair, when, failures + 1)

    # -- turns of the logins of one account

    def take_turn(self, account: int) -> float | None:
        """Begin a login of an account; returns its start for ``end_turn``, ``None`` if another one runs."""
        with self._turns.locked(account):
            now = self.clock()
            started, failed_at, failed_by, holder = self._turns.get(account) or (0.0, 0.0, 0, 0)
            is_over = not 0.0 <= now - started < self.rules.turn
            if holder and not is_over and self.workers.is_alive(holder):
                return None
            self._turns.put(account, now, failed_at, failed_by, self.workers.holder)
        return now

    def end_turn(self, account: int, started: float, failed_by: int = 0) -> None:
        """End a login of an account.

        Args:
            account: The key of the account.
            started: What ``take_turn`` returned.
            failed_by: The key of the address if the login failed with new credentials.
        """
        with self._turns.locked(account):
            begun, failed_at, by, holder = self._turns.get(account) or (0.0, 0.0, 0, 0)
            if failed_by:
                failed_at, by = self.clock(), failed_by
            if holder != self.workers.holder or begun != started:
                if failed_by:
                    self._turns.put(account, begun, failed_at, by, holder)
            elif by:
                self._turns.put(account, begun, failed_at, by, 0)
            else:
                self._turns.remove(account)

    def last_failure(self, account: int, address: int) -> float:
        """Return when the last login of an account failed, if it came from this address; else 0."""
        fields = self._turns.get(account)
        if fields is None or fields[2] != address:
            return 0.0
        return min(float(fields[1]), self.clock())


def _shared_key(view: memoryview, locks: ByteLocks) -> bytes:
    """Return the key of the pod; the first user makes it."""
    with locks.hold(_KEY_LOCK):
        if not view[_KEY_IS_MADE]:
            view[:_KEY_BYTES] = os.urandom(_KEY_BYTES)
            view[_KEY_IS_MADE] = 1
    return bytes(view[:_KEY_BYTES])

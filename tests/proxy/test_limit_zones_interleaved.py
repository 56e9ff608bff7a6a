# SPDX-License-Identifier: Apache-2.0
"""Zones of sessions while several processes count at the same time, and one of them is killed."""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial
from typing import Final

import pytest

from mailproxy.limits import zones
from mailproxy.limits.mutex import address_of
from mailproxy.limits.zones import CONN, PROCESSES, ConnZone, Place, make_zone
from mailproxy.net.shared_memory import Area, SharedMemory
from support.interleaving import Interleaving

RUNS: Final = int(os.environ.get("INTERLEAVED_RUNS", "12"))
PROCESSES_AT_ONCE: Final = 3
KEYS: Final = tuple((number, number.to_bytes(8, "little")) for number in (7, 11, 13))
BYTES: Final = 8192
OFFSET: Final = 4096
SLOTS: Final = 12
"""Of the only shard; each process may have one for each key, and three are left."""


class Pod:
    """A zone with one shard, its processes, and the sessions of each that were counted."""

    def __init__(self, run: Interleaving) -> None:
        self.run = run
        self.is_reclaimed = False
        memory = SharedMemory().view(Area.LIMITS)
        self.place = Place(memory, address_of(memory.obj), OFFSET, 4096 + 16 + 200, CONN)  # type: ignore[arg-type]
        assert self.place.shards == 1
        make_zone(self.place)
        memory[PROCESSES].cast("H")[0] = PROCESSES_AT_ONCE
        self.zones = [self.zone(number) for number in range(PROCESSES_AT_ONCE)]
        self.sessions: list[list[tuple[tuple[int, bytes], int]]] = [[] for _ in self.zones]

    def zone(self, index: int) -> ConnZone:
        found = ConnZone(self.place, index + 1)
        found._most_idle = 1
        return found

    def open(self, key: tuple[int, bytes], but: int = -1) -> int:
        """Return the sessions of a key that were counted and have not ended."""
        return sum(one == key for index, each in enumerate(self.sessions) if index != but for one, _ in each)

    def reclaim(self, index: int) -> None:
        """Remove what a killed process has counted, as another one; once."""
        killed = self.run.killed
        if self.is_reclaimed or killed < 0 or killed == index:
            return
        self.is_reclaimed = True
        self.sessions[killed].clear()
        self.zone(killed).remove_all()

    def work(self, index: int, seed: int, limits: dict[tuple[int, bytes], int]) -> None:
        """Begin and end sessions as one process."""
        choose = random.Random(f"{seed} {index}")
        zone, sessions = self.zones[index], self.sessions[index]
        for _ in range(12):
            self.reclaim(index)
            if sessions and choose.random() < 0.45:
                zone.release(sessions.pop(choose.randrange(len(sessions)))[1])
                continue
            key = choose.choice(KEYS)
            slot, _ = zone.acquire(key, limits[key])
            if slot >= 0:
                sessions.append((key, slot))
                assert self.open(key) <= limits[key]


@pytest.mark.parametrize("seed", range(RUNS))
def test_counts_are_exact_in_any_order_of_steps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zones, "SLOTS", SLOTS)
    monkeypatch.setattr(zones, "SWEEP", 1)
    choose = random.Random(seed)
    kill_at = choose.randrange(1, 3000) if seed % 2 else 0
    run = Interleaving(zones, seed, switches=choose.choice((0.02, 0.1, 0.5)), kill_at=kill_at)
    run.replace_locks(zones, monkeypatch)
    pod, limits = Pod(run), {key: choose.choice((1, 3, 4, 5)) for key in KEYS}
    run.run([partial(pod.work, index, seed, limits) for index in range(PROCESSES_AT_ONCE)])

    pod.reclaim(-1)
    if run.killed >= 0:
        pod.zones[run.killed] = pod.zone(run.killed)
    counted = Counter({key: pod.zones[0].count(key) for key in KEYS})
    assert counted == Counter({key: pod.open(key) for key in KEYS})
    hashes = [each for each in pod.place.hashes if each]
    assert len(hashes) <= pod.place.used[0]
    for key in KEYS:  # nothing that is left refuses anybody
        free = limits[key] - pod.open(key)
        assert [pod.zones[0].acquire(key, limits[key])[1] for _ in range(free + 1)] == [False] * free + [True]


def test_process_may_be_killed_between_any_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zones, "SLOTS", SLOTS)
    first, second, _ = KEYS
    kill_at, killed = 1, 0
    while killed == 0:
        run = Interleaving(zones, 0, kill_at=kill_at)
        pod = Pod(run)
        pod.zones[0]._most_idle = 0

        def work(zone: ConnZone = pod.zones[0]) -> None:
            zone.acquire(first, 9)
            zone.release(zone.acquire(second, 9)[0])

        with monkeypatch.context() as patched:
            run.replace_locks(zones, patched)
            run.run([work])
            killed, kill_at = run.killed, kill_at + 1
            pod.zone(0).remove_all()
            assert not any(pod.place.hashes), kill_at
            assert not any(pod.place.counts)
            assert pod.place.used[0] == 0
    assert kill_at > 100


def test_slot_that_another_process_takes_is_not_made_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, third = KEYS
    for switch_at in range(1, 120):
        run = Interleaving(zones, 0, switch_at=switch_at)
        pod = Pod(run)
        ours, other, _ = pod.zones
        ours.release(ours.acquire(first, 9)[0])
        ours._sweep(0)  # as before a new key
        assert len(ours._idle) == 1
        with monkeypatch.context() as patched:
            run.replace_locks(zones, patched)
            run.run([ours._free_oldest, partial(other.acquire, third, 9)])
        assert (other.count(third), pod.place.used[0]) == (1, 1), switch_at

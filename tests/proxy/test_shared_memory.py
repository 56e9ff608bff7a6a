# SPDX-License-Identifier: Apache-2.0
"""The memory that all workers share."""

from __future__ import annotations

import mmap
import os

from mailproxy.net import shared_memory
from mailproxy.net.shared_memory import Area, SharedMemory


def test_each_area_has_bytes_of_its_own() -> None:
    descriptor = shared_memory.create()
    memory, other = SharedMemory(descriptor), SharedMemory(descriptor)
    for number, area in enumerate(Area, 1):
        assert area.value % mmap.ALLOCATIONGRANULARITY == 0
        used = shared_memory.KEY_BYTES if area is Area.RANDOM_KEY else 0
        assert bytes(memory.view(area)[used:]) == bytes(area.value - used)
        memory.view(area)[0] = memory.view(area)[-1] = number
    for number, area in enumerate(Area, 1):
        assert (other.view(area)[0], other.view(area)[-1]) == (number, number)
    os.close(descriptor)


def test_memory_without_a_descriptor_is_of_one_process() -> None:
    memory = SharedMemory()
    memory.view(Area.UPSTREAM_HEALTH)[0] = 1
    assert memory.view(Area.UPSTREAM_HEALTH)[0] == 1
    assert SharedMemory().view(Area.UPSTREAM_HEALTH)[0] == 0


def test_memory_that_nobody_wrote_to_takes_one_page_for_the_key() -> None:
    descriptor = shared_memory.create()
    for area in Area:
        SharedMemory(descriptor).view(area)
    assert os.fstat(descriptor).st_blocks * 512 <= mmap.PAGESIZE
    os.close(descriptor)

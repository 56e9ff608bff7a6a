# SPDX-License-Identifier: Apache-2.0
"""Messages and descriptors arrive complete, in order and once; an invalid peer closes the channel."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailproxy.supervisor import ipc as module
from mailproxy.supervisor.ipc import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE_SIZE,
    Channel,
    ChannelError,
    Message,
    channel_pair,
)
from support.fuzz import examples


@dataclass
class End:
    """One end, with everything that it received."""

    sock: socket.socket
    messages: list[Message] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    ends: list[ChannelError | None] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.channel = Channel(self.sock, received=self.received, closed=self.closed)
        self.channel.start(asyncio.get_running_loop())

    def received(self, message: Message, descriptors: list[int]) -> None:
        self.messages.append(message)
        self.descriptors += descriptors
        self.news.set()

    def closed(self, error: ChannelError | None) -> None:
        self.ends.append(error)
        self.news.set()

    async def wait_until(self, *, messages: int = 0, ends: int = 0) -> None:
        async with asyncio.timeout(10):
            while len(self.messages) < messages or len(self.ends) < ends:
                self.news.clear()
                await self.news.wait()

    def drop(self) -> None:
        self.channel.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


@pytest.fixture
async def ends() -> Iterator[tuple[End, End]]:  # type: ignore[misc]
    left, right = (End(sock) for sock in channel_pair())
    yield left, right
    left.drop()
    right.drop()


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_messages_arrive_in_order_both_ways(ends: tuple[End, End]) -> None:
    left, right = ends
    for number in range(100):
        left.channel.send({"number": number, "text": "grüße"})
    right.channel.send({"hello": None})
    await right.wait_until(messages=100)
    await left.wait_until(messages=1)
    assert right.messages == [{"number": number, "text": "grüße"} for number in range(100)]
    assert left.messages == [{"hello": None}]


@pytest.mark.parametrize("count", [1, 2, 199, 200, 201, 450])
async def test_descriptors_arrive_with_their_message_in_order(ends: tuple[End, End], count: int) -> None:
    left, right = ends
    with tempfile.TemporaryFile() as file:
        numbers = [file.fileno()]
        numbers += [os.memfd_create(str(number)) for number in range(1, count)]
        try:
            left.channel.send({"before": 1})
            left.channel.send({"with": count}, numbers)
            left.channel.send({"after": 1}, numbers[:1])
        finally:
            for number in numbers[1:]:
                os.close(number)
        await right.wait_until(messages=3)
        assert [list(message) for message in right.messages] == [["before"], ["with"], ["after"]]
        assert len(right.descriptors) == count + 1
        same = os.fstat(file.fileno())
        assert os.fstat(right.descriptors[0]).st_ino == os.fstat(right.descriptors[-1]).st_ino == same.st_ino
        names = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in right.descriptors[1:-1]]
        assert names == [f"/memfd:{number} (deleted)" for number in range(1, count)]


async def test_received_descriptors_are_not_inherited_by_other_programs(ends: tuple[End, End]) -> None:
    left, right = ends
    left.channel.send({}, [0])
    await right.wait_until(messages=1)
    assert not os.get_inheritable(right.descriptors[0])


async def test_message_larger_than_the_socket_buffer_is_queued(ends: tuple[End, End]) -> None:
    left, right = ends
    text = "x" * (3 * 1024 * 1024)
    left.channel.send({"text": text}, [0])
    left.channel.send({"last": True}, [0])
    await right.wait_until(messages=2)
    assert right.messages == [{"text": text}, {"last": True}]
    assert len(right.descriptors) == 2


async def test_the_sender_may_close_its_descriptors_at_once(ends: tuple[End, End]) -> None:
    left, right = ends
    left.channel.send({"text": "x" * 1024 * 1024})
    number = os.memfd_create("mine")
    left.channel.send({}, [number])
    os.close(number)
    await right.wait_until(messages=2)
    assert os.readlink(f"/proc/self/fd/{right.descriptors[0]}") == "/memfd:mine (deleted)"


async def test_orderly_close_is_reported_once_without_error(ends: tuple[End, End]) -> None:
    left, right = ends
    left.channel.send({"last": 1})
    left.channel.close()
    await right.wait_until(messages=1, ends=1)
    assert right.messages == [{"last": 1}]
    assert right.ends == [None]
    assert left.ends == []
    assert not right.channel.is_open
    with pytest.raises(ChannelError, match="closed"):
        right.channel.send({})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        # what the peer sends                               why it is given up
        (struct.pack(">II", 5, 0) + b"nope!", "not JSON"),
        (struct.pack(">II", 2, 0) + b"[]", "not a JSON object"),
        (struct.pack(">II", MAX_MESSAGE_SIZE + 1, 0), "at most"),
        (struct.pack(">II", 2, MAX_DESCRIPTORS + 1) + b"{}", "at most"),
        (struct.pack(">II", 2, 1) + b"{}", "missing"),
        (struct.pack(">II", 9, 0) + b"{}", "within"),
        (b"\x00", "within"),
    ],
)
async def test_invalid_message_closes_the_channel(ends: tuple[End, End], raw: bytes, reason: str) -> None:
    left, right = ends
    left.sock.send(raw)
    left.channel.close()
    await right.wait_until(ends=1)
    assert right.messages == []
    assert reason in str(right.ends[0])


async def test_send_to_closed_peer_reports_its_close() -> None:
    ours, theirs = channel_pair()
    left = End(ours)
    theirs.close()
    left.channel.send({"anybody": "there"})
    await left.wait_until(ends=1)
    assert len(left.ends) == 1
    left.drop()


async def test_send_to_peer_that_does_not_read_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKLOG", 1024 * 1024)
    ours, theirs = channel_pair()
    left = End(ours)
    before = open_descriptors()
    message = {"text": "x" * 400_000}
    left.channel.send(message, [0, 0])
    left.channel.send(message, [0, 0])
    with pytest.raises(ChannelError, match="does not read"):
        left.channel.send({"text": "x" * 800_000}, [0, 0])
    left.drop()
    theirs.close()
    assert open_descriptors() < before


@pytest.mark.parametrize("count", [MAX_DESCRIPTORS + 1])
async def test_too_many_descriptors_raise_before_sending(ends: tuple[End, End], count: int) -> None:
    left, right = ends
    with pytest.raises(ChannelError, match="at most"):
        left.channel.send({}, [0] * count)
    left.channel.send({"fine": True})
    await right.wait_until(messages=1)
    assert right.messages == [{"fine": True}]


async def test_flush_sends_queued_messages_without_the_event_loop() -> None:
    ours, theirs = channel_pair()
    left = End(ours)
    text = "x" * (2 * 1024 * 1024)
    left.channel.send({"text": text})
    reading = asyncio.get_running_loop().run_in_executor(None, _read_all, theirs)
    left.channel.flush(5.0)
    left.channel.close()
    assert len(await reading) == len(text) + len('{"text":""}') + 8
    theirs.close()


async def test_flush_has_a_timeout() -> None:
    ours, theirs = channel_pair()
    left = End(ours)
    left.channel.send({"text": "x" * (8 * 1024 * 1024)})
    left.channel.flush(0.01)
    assert left.channel.is_open
    left.drop()
    theirs.close()


async def test_nothing_stays_open_after_close() -> None:
    before = open_descriptors()
    left, right = (End(sock) for sock in channel_pair())
    left.channel.send({"text": "x" * (1024 * 1024)}, [0])
    right.channel.send({}, [0] * 300)
    await left.wait_until(messages=1)
    left.drop()
    right.drop()
    assert open_descriptors() == before


@settings(
    max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    messages=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=50), max_size=3), max_size=8),
    cut=st.integers(1, 40),
)
def test_messages_are_read_in_pieces_of_any_size(messages: list[Message], cut: int) -> None:
    async def play() -> list[Message]:
        recorder, wire = channel_pair()
        sender = Channel(recorder, received=lambda *_: None, closed=lambda _: None)
        for message in messages:
            sender.send(message)
        sender.close()
        raw = await asyncio.to_thread(_read_all, wire)
        wire.close()
        ours, theirs = channel_pair()
        right = End(theirs)
        for start in range(0, len(raw), cut):
            ours.sendall(raw[start : start + cut])
            await asyncio.sleep(0)
        await right.wait_until(messages=len(messages))
        right.drop()
        ours.close()
        return right.messages

    assert asyncio.run(play()) == messages


def _read_all(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    found = bytearray()
    while data := sock.recv(65536):
        found += data
    return bytes(found)

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
    first_end, second_end = (End(sock) for sock in channel_pair())
    yield first_end, second_end
    first_end.drop()
    second_end.drop()


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_messages_arrive_in_order_both_ways(ends: tuple[End, End]) -> None:
    first_end, second_end = ends
    for number in range(100):
        first_end.channel.send({"number": number, "text": "grüße"})
    second_end.channel.send({"hello": None})
    await second_end.wait_until(messages=100)
    await first_end.wait_until(messages=1)
    assert second_end.messages == [{"number": number, "text": "grüße"} for number in range(100)]
    assert first_end.messages == [{"hello": None}]


@pytest.mark.parametrize("count", [1, 2, 199, 200, 201, 450])
async def test_descriptors_arrive_with_their_message_in_order(ends: tuple[End, End], count: int) -> None:
    first_end, second_end = ends
    with tempfile.TemporaryFile() as file:
        numbers = [file.fileno()]
        numbers += [os.memfd_create(str(number)) for number in range(1, count)]
        try:
            first_end.channel.send({"before": 1})
            first_end.channel.send({"with": count}, numbers)
            first_end.channel.send({"after": 1}, numbers[:1])
        finally:
            for number in numbers[1:]:
                os.close(number)
        await second_end.wait_until(messages=3)
        assert [list(message) for message in second_end.messages] == [["before"], ["with"], ["after"]]
        assert len(second_end.descriptors) == count + 1
        same = os.fstat(file.fileno())
        assert (
            os.fstat(second_end.descriptors[0]).st_ino
            == os.fstat(second_end.descriptors[-1]).st_ino
            == same.st_ino
        )
        names = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in second_end.descriptors[1:-1]]
        assert names == [f"/memfd:{number} (deleted)" for number in range(1, count)]


async def test_received_descriptors_are_not_inherited_by_other_programs(ends: tuple[End, End]) -> None:
    first_end, second_end = ends
    first_end.channel.send({}, [0])
    await second_end.wait_until(messages=1)
    assert not os.get_inheritable(second_end.descriptors[0])


async def test_message_larger_than_the_socket_buffer_is_queued(ends: tuple[End, End]) -> None:
    first_end, second_end = ends
    text = "x" * (3 * 1024 * 1024)
    first_end.channel.send({"text": text}, [0])
    first_end.channel.send({"last": True}, [0])
    await second_end.wait_until(messages=2)
    assert second_end.messages == [{"text": text}, {"last": True}]
    assert len(second_end.descriptors) == 2


async def test_the_sender_may_close_its_descriptors_at_once(ends: tuple[End, End]) -> None:
    first_end, second_end = ends
    first_end.channel.send({"text": "x" * 1024 * 1024})
    number = os.memfd_create("mine")
    first_end.channel.send({}, [number])
    os.close(number)
    await second_end.wait_until(messages=2)
    assert os.readlink(f"/proc/self/fd/{second_end.descriptors[0]}") == "/memfd:mine (deleted)"


async def test_orderly_close_is_reported_once_without_error(ends: tuple[End, End]) -> None:
    first_end, second_end = ends
    first_end.channel.send({"last": 1})
    first_end.channel.close()
    await second_end.wait_until(messages=1, ends=1)
    assert second_end.messages == [{"last": 1}]
    assert second_end.ends == [None]
    assert first_end.ends == []
    assert not second_end.channel.is_open
    with pytest.raises(ChannelError, match="closed"):
        second_end.channel.send({})


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
    first_end, second_end = ends
    first_end.sock.send(raw)
    first_end.channel.close()
    await second_end.wait_until(ends=1)
    assert second_end.messages == []
    assert reason in str(second_end.ends[0])


async def test_send_to_closed_peer_reports_its_close() -> None:
    own_descriptors, received_descriptors = channel_pair()
    first_end = End(own_descriptors)
    received_descriptors.close()
    first_end.channel.send({"anybody": "there"})
    await first_end.wait_until(ends=1)
    assert len(first_end.ends) == 1
    first_end.drop()


async def test_send_to_peer_that_does_not_read_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKLOG", 1024 * 1024)
    own_descriptors, received_descriptors = channel_pair()
    first_end = End(own_descriptors)
    before = open_descriptors()
    message = {"text": "x" * 400_000}
    first_end.channel.send(message, [0, 0])
    first_end.channel.send(message, [0, 0])
    with pytest.raises(ChannelError, match="does not read"):
        first_end.channel.send({"text": "x" * 800_000}, [0, 0])
    first_end.drop()
    received_descriptors.close()
    assert open_descriptors() < before


@pytest.mark.parametrize("count", [MAX_DESCRIPTORS + 1])
async def test_too_many_descriptors_raise_before_sending(ends: tuple[End, End], count: int) -> None:
    first_end, second_end = ends
    with pytest.raises(ChannelError, match="at most"):
        first_end.channel.send({}, [0] * count)
    first_end.channel.send({"fine": True})
    await second_end.wait_until(messages=1)
    assert second_end.messages == [{"fine": True}]


async def test_flush_sends_queued_messages_without_the_event_loop() -> None:
    own_descriptors, received_descriptors = channel_pair()
    first_end = End(own_descriptors)
    text = "x" * (2 * 1024 * 1024)
    first_end.channel.send({"text": text})
    reading = asyncio.get_running_loop().run_in_executor(None, _read_all, received_descriptors)
    first_end.channel.flush(5.0)
    first_end.channel.close()
    assert len(await reading) == len(text) + len('{"text":""}') + 8
    received_descriptors.close()


async def test_flush_has_a_timeout() -> None:
    own_descriptors, received_descriptors = channel_pair()
    first_end = End(own_descriptors)
    first_end.channel.send({"text": "x" * (8 * 1024 * 1024)})
    first_end.channel.flush(0.01)
    assert first_end.channel.is_open
    first_end.drop()
    received_descriptors.close()


async def test_nothing_stays_open_after_close() -> None:
    before = open_descriptors()
    first_end, second_end = (End(sock) for sock in channel_pair())
    first_end.channel.send({"text": "x" * (1024 * 1024)}, [0])
    second_end.channel.send({}, [0] * 300)
    await first_end.wait_until(messages=1)
    first_end.drop()
    second_end.drop()
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
        own_descriptors, received_descriptors = channel_pair()
        second_end = End(received_descriptors)
        for start in range(0, len(raw), cut):
            own_descriptors.sendall(raw[start : start + cut])
            await asyncio.sleep(0)
        await second_end.wait_until(messages=len(messages))
        second_end.drop()
        own_descriptors.close()
        return second_end.messages

    assert asyncio.run(play()) == messages


def _read_all(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    found = bytearray()
    while data := sock.recv(65536):
        found += data
    return bytes(found)

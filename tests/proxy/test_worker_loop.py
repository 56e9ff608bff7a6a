# SPDX-License-Identifier: Apache-2.0
"""Asyncio's selector on the epoll of a worker."""

from __future__ import annotations

import os
import resource
import select
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from mailproxy.loop.epoll import MAX_EVENTS, NO_EVENTS, READ, WRITE
from mailproxy.loop.worker_loop import WorkerLoop, WorkerSelector, make_loop

Pair = tuple[socket.socket, socket.socket]


class Recorder:
    """A handler that records its events, and calls ``then``."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.masks: list[int] = []
        self._then = then

    def on_event(self, mask: int) -> None:
        self.masks.append(mask)
        self._then()


@pytest.fixture
def selector() -> Iterator[WorkerSelector]:
    made = WorkerSelector()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("events", "happens", "expected"),
    [
        (selectors.EVENT_READ, lambda far: far.send(b"x"), selectors.EVENT_READ),
        (selectors.EVENT_WRITE, lambda far: None, selectors.EVENT_WRITE),
        (selectors.EVENT_READ, lambda far: far.close(), selectors.EVENT_READ),
        (selectors.EVENT_WRITE, lambda far: far.close(), selectors.EVENT_WRITE),
        (
            selectors.EVENT_READ | selectors.EVENT_WRITE,
            lambda far: far.send(b"x"),
            selectors.EVENT_READ | selectors.EVENT_WRITE,
        ),
    ],
)
def test_select_returns_asyncio_descriptors_with_selector_events(
    selector: WorkerSelector,
    pair: Pair,
    events: int,
    happens: Callable[[socket.socket], object],
    expected: int,
) -> None:
    near, far = pair
    key = selector.register(near, events, "data")
    happens(far)
    assert selector.select(None) == [(key, expected)]
    assert (key.fileobj, key.fd, key.events, key.data) == (near, near.fileno(), events, "data")


def test_mail_sockets_and_asyncio_descriptors_share_a_poll(selector: WorkerSelector, pair: Pair) -> None:
    near, far = pair
    recorder = Recorder()
    selector.epoll.add(near.fileno(), recorder, READ)
    key = selector.register(far.fileno(), selectors.EVENT_WRITE)
    far.send(b"x")
    assert selector.select(None) == [(key, selectors.EVENT_WRITE)]
    assert recorder.masks == [select.EPOLLIN]


def test_registrations_of_asyncio_can_be_read_and_changed(selector: WorkerSelector, pair: Pair) -> None:
    near, _ = pair
    selector.register(near, selectors.EVENT_READ, 1)
    with pytest.raises(KeyError, match="registered already"):
        selector.register(near, selectors.EVENT_READ)
    same = selector.modify(near, selectors.EVENT_READ, 2)
    assert selector.get_key(near) is same
    assert same.data == 2
    other = selector.modify(near, selectors.EVENT_WRITE, 3)
    assert selector.select(None) == [(other, selectors.EVENT_WRITE)]
    assert dict(selector.get_map()) == {near.fileno(): other}
    assert selector.unregister(near) is other
    assert dict(selector.get_map()) == {}
    with pytest.raises(KeyError):
        selector.get_key(near)


def test_closed_descriptor_can_be_unregistered(selector: WorkerSelector) -> None:
    near, far = socket.socketpair()
    fd = near.fileno()
    key = selector.register(fd, selectors.EVENT_READ)
    near.close()
    assert selector.unregister(fd) is key
    far.close()


def test_select_returns_when_a_handler_schedules_a_callback(selector: WorkerSelector, pair: Pair) -> None:
    near, far = pair

    def schedule() -> None:
        assert not selector.epoll.asyncio_has_work, "there was another poll"
        selector.epoll.asyncio_has_work = True

    recorder = Recorder(schedule)
    selector.epoll.add(near.fileno(), recorder, READ)
    far.send(b"x")
    assert selector.select(None) == []  # would wait for ever otherwise
    assert recorder.masks == [select.EPOLLIN]
    selector.epoll.modify(near.fileno(), NO_EVENTS)
    selector.select(0)
    assert not selector.epoll.asyncio_has_work


def test_negative_timeout_does_not_wait(selector: WorkerSelector) -> None:
    assert selector.select(-1) == []
    assert selector.epoll.iterations == 1


def test_calls_deferred_outside_of_an_iteration_run_before_the_next_poll(
    selector: WorkerSelector, pair: Pair
) -> None:
    near, far = pair
    recorder = Recorder()
    selector.epoll.add(near.fileno(), recorder, READ)
    selector.epoll.defer(lambda: far.send(b"x"))
    selector.select(0)
    assert recorder.masks == [select.EPOLLIN]


def test_select_does_not_wait_when_a_deferred_call_schedules_a_callback(
    selector: WorkerSelector, pair: Pair
) -> None:
    near, far = pair
    selector.epoll.add(near.fileno(), Recorder(), READ)  # reads nothing, so that every poll returns an event
    far.send(b"x")
    selector.epoll.defer(lambda: setattr(selector.epoll, "asyncio_has_work", True))
    selector.select(2)
    assert selector.epoll.iterations == 1


@pytest.fixture
def loop() -> Iterator[WorkerLoop]:
    made = make_loop()
    yield made
    made.close()


def test_descriptor_unregistered_by_a_handler_gets_no_event_of_the_same_poll(
    selector: WorkerSelector, pair: Pair
) -> None:
    near, far = pair
    other, peer = socket.socketpair()
    selector.epoll.add(near.fileno(), Recorder(lambda: selector.unregister(other)), READ)
    far.send(b"x")
    selector.register(other, selectors.EVENT_WRITE)
    assert selector.select(0) == []
    assert dict(selector.get_map()) == {}
    other.close()
    peer.close()


def test_descriptor_registered_anew_by_a_handler_has_its_new_registration(
    selector: WorkerSelector, pair: Pair
) -> None:
    near, far = pair
    other, peer = socket.socketpair()

    def register_anew() -> None:
        selector.unregister(other)
        selector.register(other, selectors.EVENT_WRITE, "new")

    selector.register(other, selectors.EVENT_WRITE, "old")
    selector.epoll.add(near.fileno(), Recorder(register_anew), READ)
    far.send(b"x")
    ready = selector.select(None) or selector.select(None)
    assert [(key.data, events) for key, events in ready] == [("new", selectors.EVENT_WRITE)]
    other.close()
    peer.close()


def test_refused_registration_leaves_nothing(selector: WorkerSelector) -> None:
    read, write = os.pipe()
    os.close(write)
    os.close(read)
    with pytest.raises(OSError, match="Bad file descriptor"):
        selector.register(read, selectors.EVENT_READ)
    assert dict(selector.get_map()) == {}
    assert [handler for handler in selector.epoll.handlers if handler is not None] == []


def test_descriptors_above_ten_thousand_are_served(selector: WorkerSelector, pair: Pair) -> None:
    near, far = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    try:
        high = socket.socket(fileno=os.dup2(near.fileno(), 15_000))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    recorder = Recorder()
    selector.epoll.add(15_000, recorder, READ)
    far.send(b"x")
    selector.select(0)
    assert recorder.masks == [select.EPOLLIN]
    selector.epoll.remove(15_000)
    high.close()


def test_handler_can_schedule_an_earlier_callback_than_asyncio_waits_for(
    loop: WorkerLoop, pair: Pair
) -> None:
    near, far = pair
    calls: list[str] = []

    def schedule() -> None:
        near.recv(1)
        loop.call_soon(calls.append, "soon")
        loop.call_at(loop.time() + 0.01, lambda: (calls.append("at"), loop.stop()))

    loop.epoll.add(near.fileno(), Recorder(schedule), READ)
    late = loop.call_later(1000, calls.append, "late")
    loop.call_soon(far.send, b"x")
    loop.run_forever()
    late.cancel()
    assert calls == ["soon", "at"]


def test_exceptions_of_handler_deferred_call_and_callback_end_none_of_the_others(
    loop: WorkerLoop, pair: Pair
) -> None:
    near, far = pair
    reported: list[str] = []
    loop.epoll.on_error = lambda _, error: reported.append(str(error))
    loop.set_exception_handler(lambda _, details: reported.append(str(details["exception"])))

    def fail(where: str) -> None:
        raise ValueError(where)

    def schedule() -> None:
        near.recv(1)
        loop.epoll.defer(lambda: fail("deferred call"))
        loop.call_soon(fail, "callback")
        loop.call_soon(loop.stop)
        fail("handler")

    loop.epoll.add(near.fileno(), Recorder(schedule), READ)
    far.send(b"x")
    loop.run_forever()
    assert reported == ["handler", "deferred call", "callback"]


def test_more_ready_descriptors_than_one_poll_returns_are_all_served(selector: WorkerSelector) -> None:
    pairs = [socket.socketpair() for _ in range(MAX_EVENTS)]
    recorders = [Recorder() for _ in pairs]
    for recorder, (near, far) in zip(recorders, pairs, strict=True):
        selector.epoll.add(near.fileno(), recorder, WRITE)
        selector.register(far, selectors.EVENT_WRITE)
    found = {key.fileobj for _ in range(4) for key, _ in selector.select(0)}
    assert found == {far for _, far in pairs}
    assert all(recorder.masks for recorder in recorders)
    for near, far in pairs:
        near.close()
        far.close()

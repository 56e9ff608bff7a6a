# SPDX-License-Identifier: Apache-2.0
"""Asyncio's selector on the epoll of a worker."""

from __future__ import annotations

import select
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from mailproxy.loop.epoll import NO_EVENTS, READ
from mailproxy.loop.worker_loop import WorkerSelector

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

# SPDX-License-Identifier: Apache-2.0
"""The epoll of a worker: handlers, deferred calls, exceptions."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailproxy.loop.epoll import BROKEN, NO_EVENTS, READ, WRITE, Epoll, hung_up

Pair = tuple[socket.socket, socket.socket]


class Recorder:
    """A handler that records its events, and calls ``then``."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.masks: list[int] = []
        self._then = then

    def on_event(self, mask: int) -> None:
        self.masks.append(mask)
        self._then()

    def crash(self) -> None:
        raise ValueError("of its own")


@pytest.fixture
def epoll() -> Iterator[Epoll]:
    made = Epoll()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def full_table(epoll: Epoll, pair: Pair) -> tuple[Epoll, Recorder, socket.socket]:
    """An epoll whose table of handlers has just grown for the one descriptor that it has."""
    near, far = pair
    recorder = Recorder()
    epoll.add(near.fileno(), recorder, READ)
    return epoll, recorder, far


@pytest.mark.parametrize(
    ("events", "happens", "expected"),
    [
        # events          what the peer does                        what the handler gets
        (READ, lambda far: None, []),
        (READ, lambda far: far.send(b"x"), [select.EPOLLIN]),
        (READ, lambda far: far.shutdown(socket.SHUT_WR), [select.EPOLLIN | select.EPOLLRDHUP]),
        (READ, lambda far: far.close(), [select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP]),
        (WRITE, lambda far: None, [select.EPOLLOUT]),
        (READ | WRITE, lambda far: far.send(b"x"), [select.EPOLLIN | select.EPOLLOUT]),
        (NO_EVENTS, lambda far: far.send(b"x"), []),
        (NO_EVENTS, lambda far: far.shutdown(socket.SHUT_WR), []),
        (NO_EVENTS, lambda far: far.close(), [select.EPOLLHUP]),
    ],
)
def test_handler_gets_the_events_it_polls_for_and_hangups(
    epoll: Epoll,
    pair: Pair,
    events: int,
    happens: Callable[[socket.socket], object],
    expected: list[int],
) -> None:
    near, far = pair
    recorder = Recorder()
    epoll.add(near.fileno(), recorder, events)
    happens(far)
    epoll.serve(0)
    assert recorder.masks == expected


def test_broken_is_not_a_requested_event() -> None:
    assert BROKEN & (READ | WRITE) == 0


def test_events_can_be_changed(epoll: Epoll, pair: Pair) -> None:
    near, far = pair
    recorder = Recorder()
    epoll.add(near.fileno(), recorder, NO_EVENTS)
    far.send(b"x")
    epoll.modify(near.fileno(), READ)
    epoll.serve(0)
    epoll.modify(near.fileno(), NO_EVENTS)
    epoll.serve(0)
    assert recorder.masks == [select.EPOLLIN]


def test_handler_can_be_replaced(epoll: Epoll, pair: Pair) -> None:
    near, far = pair
    first, second = Recorder(), Recorder()
    epoll.add(near.fileno(), first, READ)
    epoll.set_handler(near.fileno(), second)
    far.send(b"x")
    epoll.serve(0)
    assert (first.masks, second.masks) == ([], [select.EPOLLIN])


@pytest.mark.parametrize("drop", [Epoll.discard, Epoll.remove])
def test_dropped_descriptor_gets_no_event_of_the_same_poll(
    epoll: Epoll, drop: Callable[[Epoll, int], None]
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    fds = [near.fileno() for near, _ in pairs]
    recorders = [
        Recorder(lambda: drop(epoll, fds[1])),
        Recorder(lambda: drop(epoll, fds[0])),
    ]
    for fd, handler, (_, far) in zip(fds, recorders, pairs, strict=True):
        epoll.add(fd, handler, READ)
        far.send(b"x")
    epoll.serve(0)
    assert len(epoll.ready) == 2
    assert sorted(len(one.masks) for one in recorders) == [0, 1]
    for sock in (one for pair in pairs for one in pair):
        sock.close()


def test_removed_descriptor_can_be_added_again(epoll: Epoll, pair: Pair) -> None:
    near, far = pair
    recorder = Recorder()
    epoll.add(near.fileno(), Recorder(), READ)
    epoll.remove(near.fileno())
    epoll.remove(near.fileno())
    epoll.add(near.fileno(), recorder, READ)
    far.send(b"x")
    epoll.serve(0)
    assert recorder.masks == [select.EPOLLIN]


def test_every_poll_is_counted_and_updates_now(epoll: Epoll) -> None:
    before = epoll.now
    epoll.serve(0)
    epoll.serve(0)
    assert epoll.iterations == 2
    assert epoll.now >= before


def test_exception_in_a_handler_is_reported_and_other_handlers_are_called(epoll: Epoll) -> None:
    reported: list[tuple[object, str]] = []
    epoll.on_error = lambda handler, crash: reported.append((handler, str(crash)))

    def crash() -> None:
        message = "oops"
        raise ValueError(message)

    pairs = [socket.socketpair() for _ in range(3)]
    recorders = [Recorder(crash) for _ in pairs]
    for handler, (near, far) in zip(recorders, pairs, strict=True):
        epoll.add(near.fileno(), handler, READ)
        far.send(b"x")
    epoll.serve(0)
    assert {id(handler) for handler, _ in reported} == {id(handler) for handler in recorders}
    assert {words for _, words in reported} == {"oops"}
    for sock in (one for pair in pairs for one in pair):
        sock.close()


def test_exception_without_on_error_is_raised(epoll: Epoll, pair: Pair) -> None:
    near, _ = pair
    epoll.add(near.fileno(), Recorder(lambda: 1 // 0), WRITE)
    with pytest.raises(ZeroDivisionError):
        epoll.serve(0)


def test_deferred_calls_run_after_all_handlers(epoll: Epoll) -> None:
    calls: list[str] = []
    pairs = [socket.socketpair() for _ in range(3)]

    def handle(name: str) -> Callable[[], object]:
        def on_event() -> None:
            calls.append(f"event {name}")
            epoll.defer(lambda: calls.append(f"deferred {name}"))

        return on_event

    for name, (near, far) in zip("abc", pairs, strict=True):
        epoll.add(near.fileno(), Recorder(handle(name)), READ)
        far.send(b"x")
    epoll.serve(0)
    assert [word.split()[0] for word in calls] == ["event"] * 3 + ["deferred"] * 3
    assert [word[-1] for word in calls[:3]] == [word[-1] for word in calls[3:]]
    assert len(epoll.ready) == 3
    for near, far in pairs:
        near.close()
        far.close()


def test_calls_deferred_by_deferred_calls_run_in_the_same_iteration(epoll: Epoll, pair: Pair) -> None:
    near, far = pair
    calls: list[int] = []

    def more() -> None:
        calls.append(len(calls))
        if len(calls) < 4:
            epoll.defer(more)

    epoll.add(near.fileno(), Recorder(lambda: epoll.defer(more)), READ)
    far.send(b"x")
    epoll.serve(0)
    assert calls == [0, 1, 2, 3]


def test_exception_in_a_deferred_call_is_reported_with_the_call(epoll: Epoll) -> None:
    reported: list[object] = []
    epoll.on_error = lambda source, crash: reported.append((source, str(crash)))
    recorder = Recorder(lambda: None)

    def bad() -> None:
        raise ValueError("bad")

    epoll.defer(bad)
    epoll.defer(recorder.crash)
    epoll.defer(lambda: reported.append("the rest"))
    epoll.serve(0)
    assert reported == [(bad, "bad"), (recorder.crash, "of its own"), "the rest"]


def test_close_runs_deferred_calls() -> None:
    epoll, calls = Epoll(), list[str]()
    epoll.defer(lambda: calls.append("closed"))
    epoll.close()
    assert calls == ["closed"]


@pytest.mark.parametrize(
    ("happens", "is_broken", "is_half_closed"),
    [
        (lambda far: None, False, False),
        (lambda far: far.send(b"x"), False, False),
        (lambda far: far.shutdown(socket.SHUT_WR), False, True),
        (lambda far: far.close(), True, True),
    ],
)
def test_hung_up_distinguishes_broken_and_half_closed_connections(
    pair: Pair, happens: Callable[[socket.socket], object], is_broken: bool, is_half_closed: bool
) -> None:
    near, far = pair
    happens(far)
    assert hung_up(near.fileno()) is is_broken
    assert hung_up(near.fileno(), half_closed=True) is is_half_closed


def test_socket_is_closed_at_the_end_of_the_iteration(epoll: Epoll, pair: Pair) -> None:
    near, _ = pair
    fd = near.fileno()
    epoll.add(fd, Recorder(lambda: epoll.close_socket(near, fd)), WRITE)
    epoll.defer(lambda: None)
    assert near.fileno() == fd
    epoll.serve(0)
    assert near.fileno() == -1
    epoll.serve(0)


@pytest.mark.parametrize("call", [Epoll.discard, Epoll.remove], ids=["discard", "remove"])
def test_number_of_a_closed_socket_drops_no_handler(
    full_table: tuple[Epoll, Recorder, socket.socket], call: Callable[[Epoll, int], None]
) -> None:
    epoll, recorder, far = full_table
    call(epoll, -1)
    far.send(b"x")
    epoll.serve(0)
    assert recorder.masks == [select.EPOLLIN]


def test_closing_a_closed_socket_drops_no_handler(
    full_table: tuple[Epoll, Recorder, socket.socket],
) -> None:
    epoll, recorder, far = full_table
    closed = socket.socket()
    closed.close()
    epoll.close_socket(closed, closed.fileno())
    far.send(b"x")
    epoll.serve(0)
    assert recorder.masks == [select.EPOLLIN]


@pytest.mark.parametrize("is_open", [True, False], ids=["without descriptors", "closed"])
def test_closed_socket_can_be_dropped_from_an_empty_table(is_open: bool) -> None:
    epoll = Epoll()
    if not is_open:
        epoll.close()
    for fd in (-1, 7):
        epoll.discard(fd)
        epoll.remove(fd)
        epoll.close_socket(socket.socket(), fd)
    epoll.close()


@pytest.mark.parametrize("fd", [-1, 0], ids=["closed", "of a file"])
def test_descriptor_that_the_kernel_refuses_gets_no_handler(
    full_table: tuple[Epoll, Recorder, socket.socket], fd: int, tmp_path: Path
) -> None:
    epoll, recorder, far = full_table
    with (tmp_path / "file").open("w") as file, pytest.raises((OSError, ValueError)):
        epoll.add(fd if fd < 0 else file.fileno(), Recorder(), READ)
    far.send(b"x")
    epoll.serve(0)
    assert recorder.masks == [select.EPOLLIN]
    assert [one for one in epoll.handlers if one is not None] == [recorder]

# SPDX-License-Identifier: Apache-2.0
"""The poll: mail sockets are served inside ``select()``, asyncio's descriptors are handed back."""

from __future__ import annotations

import select
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from mailproxy.loop.epoll import BROKEN, QUIET, READ, WRITE, Reactor, hung_up

Both = tuple[socket.socket, socket.socket]


class Heard:
    """A handler that remembers what it was told, and then does something."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.masks: list[int] = []
        self._then = then

    def on_event(self, mask: int) -> None:
        self.masks.append(mask)
        self._then()

    def _crash(self) -> None:
        raise ValueError("of its own")


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def both() -> Iterator[Both]:
    near, far = socket.socketpair()
    near.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("wanted", "happens", "told"),
    [
        # what is wanted   what the peer does                     what the handler is told
        (READ, lambda far: None, []),
        (READ, lambda far: far.send(b"x"), [select.EPOLLIN]),
        (READ, lambda far: far.shutdown(socket.SHUT_WR), [select.EPOLLIN | select.EPOLLRDHUP]),
        (READ, lambda far: far.close(), [select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP]),
        (WRITE, lambda far: None, [select.EPOLLOUT]),
        (READ | WRITE, lambda far: far.send(b"x"), [select.EPOLLIN | select.EPOLLOUT]),
        (QUIET, lambda far: far.send(b"x"), []),
        (QUIET, lambda far: far.shutdown(socket.SHUT_WR), []),
        (QUIET, lambda far: far.close(), [select.EPOLLHUP]),
    ],
)
def test_a_handler_is_told_what_it_wants_and_that_all_is_over(
    reactor: Reactor,
    both: Both,
    wanted: int,
    happens: Callable[[socket.socket], object],
    told: list[int],
) -> None:
    near, far = both
    heard = Heard()
    reactor.add(near.fileno(), heard, wanted)
    happens(far)
    assert reactor.select(0) == []
    assert heard.masks == told


def test_broken_is_reported_whatever_is_wanted() -> None:
    assert BROKEN & (READ | WRITE) == 0


def test_what_is_wanted_can_change(reactor: Reactor, both: Both) -> None:
    near, far = both
    heard = Heard()
    reactor.add(near.fileno(), heard, QUIET)
    far.send(b"x")
    reactor.want(near.fileno(), READ)
    reactor.select(0)
    reactor.want(near.fileno(), QUIET)
    reactor.select(0)
    assert heard.masks == [select.EPOLLIN]


def test_a_descriptor_can_be_handed_over(reactor: Reactor, both: Both) -> None:
    near, far = both
    first, second = Heard(), Heard()
    reactor.add(near.fileno(), first, READ)
    reactor.hand_over(near.fileno(), second)
    far.send(b"x")
    reactor.select(0)
    assert (first.masks, second.masks) == ([], [select.EPOLLIN])


@pytest.mark.parametrize("drop", [Reactor.forget, Reactor.remove])
def test_who_was_dropped_hears_nothing_not_even_of_the_same_poll(
    reactor: Reactor, drop: Callable[[Reactor, int], None]
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    fds = [near.fileno() for near, _ in pairs]
    heard = [
        Heard(lambda: drop(reactor, fds[1])),
        Heard(lambda: drop(reactor, fds[0])),
    ]
    for fd, handler, (_, far) in zip(fds, heard, pairs, strict=True):
        reactor.add(fd, handler, READ)
        far.send(b"x")
    assert reactor.select(0) == []
    assert sorted(len(one.masks) for one in heard) == [0, 1]
    for sock in (one for pair in pairs for one in pair):
        sock.close()


def test_removing_twice_is_harmless_and_adding_again_is_possible(reactor: Reactor, both: Both) -> None:
    near, far = both
    heard = Heard()
    reactor.add(near.fileno(), Heard(), READ)
    reactor.remove(near.fileno())
    reactor.remove(near.fileno())
    reactor.add(near.fileno(), heard, READ)
    far.send(b"x")
    reactor.select(0)
    assert heard.masks == [select.EPOLLIN]


def test_what_a_handler_does_for_asyncio_ends_the_poll(reactor: Reactor, both: Both) -> None:
    near, far = both

    def want() -> None:
        assert not reactor.is_wanted, "there was another poll"
        reactor.is_wanted = True

    heard = Heard(want)
    reactor.add(near.fileno(), heard, READ)
    far.send(b"x")
    assert reactor.select(None) == []  # without an end, if nobody had asked for one
    assert heard.masks == [select.EPOLLIN]
    reactor.want(near.fileno(), QUIET)
    reactor.select(0)
    assert not reactor.is_wanted


def test_every_poll_is_counted_and_moves_the_clock_on(reactor: Reactor) -> None:
    before = reactor.now
    reactor.select(0)
    reactor.select(-1)
    assert reactor.polls == 2
    assert reactor.now >= before


def test_a_crash_is_told_and_the_others_are_served(reactor: Reactor) -> None:
    crashed: list[tuple[object, str]] = []
    reactor.on_crash = lambda handler, crash: crashed.append((handler, str(crash)))

    def crash() -> None:
        message = "oops"
        raise ValueError(message)

    pairs = [socket.socketpair() for _ in range(3)]
    heard = [Heard(crash) for _ in pairs]
    for handler, (near, far) in zip(heard, pairs, strict=True):
        reactor.add(near.fileno(), handler, READ)
        far.send(b"x")
    reactor.select(0)
    assert {id(handler) for handler, _ in crashed} == {id(handler) for handler in heard}
    assert {words for _, words in crashed} == {"oops"}
    for sock in (one for pair in pairs for one in pair):
        sock.close()


def test_a_crash_that_nobody_is_told_of_is_not_swallowed(reactor: Reactor, both: Both) -> None:
    near, _ = both
    reactor.add(near.fileno(), Heard(lambda: 1 // 0), WRITE)
    with pytest.raises(ZeroDivisionError):
        reactor.select(0)


@pytest.mark.parametrize(
    ("wanted", "happens", "told"),
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
def test_asyncio_gets_what_it_watches_in_its_own_words(
    reactor: Reactor, both: Both, wanted: int, happens: Callable[[socket.socket], object], told: int
) -> None:
    near, far = both
    key = reactor.register(near, wanted, "data")
    happens(far)
    assert reactor.select(None) == [(key, told)]
    assert (key.fileobj, key.fd, key.events, key.data) == (near, near.fileno(), wanted, "data")


def test_hot_and_cold_descriptors_share_a_poll(reactor: Reactor, both: Both) -> None:
    near, far = both
    heard = Heard()
    reactor.add(near.fileno(), heard, READ)
    key = reactor.register(far.fileno(), selectors.EVENT_WRITE)
    far.send(b"x")
    assert reactor.select(None) == [(key, selectors.EVENT_WRITE)]
    assert heard.masks == [select.EPOLLIN]


def test_asyncios_table_is_kept(reactor: Reactor, both: Both) -> None:
    near, _ = both
    reactor.register(near, selectors.EVENT_READ, 1)
    with pytest.raises(KeyError, match="registered already"):
        reactor.register(near, selectors.EVENT_READ)
    same = reactor.modify(near, selectors.EVENT_READ, 2)
    assert reactor.get_key(near) is same
    assert same.data == 2
    other = reactor.modify(near, selectors.EVENT_WRITE, 3)
    assert reactor.select(None) == [(other, selectors.EVENT_WRITE)]
    assert dict(reactor.get_map()) == {near.fileno(): other}
    assert reactor.unregister(near) is other
    assert dict(reactor.get_map()) == {}
    with pytest.raises(KeyError):
        reactor.get_key(near)


def test_a_descriptor_that_is_closed_already_can_be_unregistered(reactor: Reactor) -> None:
    near, far = socket.socketpair()
    fd = near.fileno()
    key = reactor.register(fd, selectors.EVENT_READ)
    near.close()
    assert reactor.unregister(fd) is key
    far.close()


def test_everybody_is_heard_before_anything_is_said(reactor: Reactor) -> None:
    said: list[str] = []
    pairs = [socket.socketpair() for _ in range(3)]

    def hear(name: str) -> Callable[[], object]:
        def heard() -> None:
            said.append(f"heard {name}")
            reactor.at_end(lambda: said.append(f"told {name}"))

        return heard

    for name, (near, far) in zip("abc", pairs, strict=True):
        reactor.add(near.fileno(), Heard(hear(name)), READ)
        far.send(b"x")
    reactor.select(0)
    assert [word.split()[0] for word in said] == ["heard"] * 3 + ["told"] * 3
    assert [word[-1] for word in said[:3]] == [word[-1] for word in said[3:]]
    assert reactor.crowd == 3
    for near, far in pairs:
        near.close()
        far.close()


def test_what_comes_up_while_a_turn_ends_still_belongs_to_it(reactor: Reactor, both: Both) -> None:
    near, far = both
    said: list[int] = []

    def more() -> None:
        said.append(len(said))
        if len(said) < 4:
            reactor.at_end(more)

    reactor.add(near.fileno(), Heard(lambda: reactor.at_end(more)), READ)
    far.send(b"x")
    reactor.select(0)
    assert said == [0, 1, 2, 3]


def test_what_is_asked_for_outside_of_a_turn_is_done_before_the_next_poll(
    reactor: Reactor, both: Both
) -> None:
    near, far = both
    heard = Heard()
    reactor.add(near.fileno(), heard, READ)
    reactor.at_end(lambda: far.send(b"x"))
    reactor.select(0)
    assert heard.masks == [select.EPOLLIN]


def test_what_asyncio_is_given_before_a_poll_does_not_wait_for_it(reactor: Reactor, both: Both) -> None:
    near, far = both
    heard = Heard()  # and never done, so that there is always something to poll
    reactor.add(near.fileno(), heard, READ)
    far.send(b"x")
    reactor.at_end(lambda: setattr(reactor, "is_wanted", True))
    reactor.select(2)
    assert reactor.polls == 1


def test_a_crash_at_the_end_of_a_turn_is_told_with_whose_it_was(reactor: Reactor) -> None:
    told: list[object] = []
    reactor.on_crash = lambda culprit, crash: told.append((culprit, str(crash)))
    heard = Heard(lambda: None)

    def bad() -> None:
        raise ValueError("bad")

    reactor.at_end(bad)
    reactor.at_end(heard._crash)
    reactor.at_end(lambda: told.append("the rest"))
    reactor.select(0)
    assert told == [(bad, "bad"), (heard._crash, "of its own"), "the rest"]


def test_closing_ends_the_turn() -> None:
    reactor, said = Reactor(), list[str]()
    reactor.at_end(lambda: said.append("closed"))
    reactor.close()
    assert said == ["closed"]


@pytest.mark.parametrize(
    ("happens", "is_broken", "has_ended"),
    [
        (lambda far: None, False, False),
        (lambda far: far.send(b"x"), False, False),
        (lambda far: far.shutdown(socket.SHUT_WR), False, True),
        (lambda far: far.close(), True, True),
    ],
)
def test_whether_a_peer_hung_up_can_be_looked_at_again(
    both: Both, happens: Callable[[socket.socket], object], is_broken: bool, has_ended: bool
) -> None:
    near, far = both
    happens(far)
    assert hung_up(near.fileno()) is is_broken
    assert hung_up(near.fileno(), ended=True) is has_ended

# SPDX-License-Identifier: Apache-2.0
"""One epoll for everything: mail sockets are served inside ``select()``, asyncio's descriptors by asyncio.

A mail connection is an object with ``on_event``; the reactor calls it straight
from the poll, without a future, a handle or a callback in between.  The same
poll serves the stock asyncio loop, which is handed whatever belongs to it
(name look-ups, the supervisor's channel, cold timers).

All that one poll brought is a turn.  First everybody is heard, then everything
is said: what costs the kernel most (writing, connecting, closing) waits for
the end of the turn.  So the interpreter and the kernel's network code do not
drive each other out of the processor's caches at every event, and who is
spoken to is woken once for all of it.
"""

from __future__ import annotations

import math
import select
import selectors
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

READ: Final = select.EPOLLIN | select.EPOLLRDHUP
"""Wanted by who waits for bytes; the second bit tells of an end without another look."""
WRITE: Final = select.EPOLLOUT
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
"""Reported always: both directions are over."""
QUIET: Final = 0
"""Nothing is wanted; only ``BROKEN`` is reported."""

_BATCH: Final = 64
"""Events of a turn; bounds how long the cold side waits, and whoever was heard first in it for his answer."""


class Handler(Protocol):
    """Whatever owns a descriptor on the hot side."""

    def on_event(self, mask: int) -> object:
        """Deal with readiness.  May be called once too often, for a descriptor that was used again."""
        ...


class Reactor(selectors.BaseSelector):
    """The selector of a worker's loop, and the table of its hot descriptors.

    Attributes:
        now: Monotonic time of the newest poll, in seconds; good enough for
            idle times and cheaper than asking again.
        polls: How many polls brought something to do, or ran out of time.
        crowd: How many events the newest poll brought.
        at_end: ``at_end(call)`` does something when this turn ends, in the order
            asked for; outside of one, before the next poll.
        is_wanted: Whether asyncio was given something to do meanwhile; whoever
            does that says so here, and it gets its turn after this poll.
        on_crash: Called with the handler or deferred call that raised, and the
            exception; without it the exception ends the loop.
    """

    def __init__(self, on_crash: Callable[[object, Exception], None] | None = None) -> None:
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._handlers: dict[int, Handler] = {}
        self._keys: dict[FileDescriptorLike, selectors.SelectorKey] = {}
        self.on_crash = on_crash
        self.now = time.monotonic()
        self.polls = 0
        self.crowd = 0
        self._ending: list[Callable[[], object]] = []
        self.at_end: Callable[[Callable[[], object]], None] = self._ending.append
        self.is_wanted = False

    # -- the hot side

    def add(self, fd: int, handler: Handler, mask: int) -> None:
        """Serve a descriptor from now on."""
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def want(self, fd: int, mask: int) -> None:
        """Change what a descriptor is watched for."""
        self._epoll.modify(fd, mask)

    def hand_over(self, fd: int, handler: Handler) -> None:
        """Give a descriptor to another handler; what it is watched for stays."""
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Drop a descriptor that is closed next: closing takes it out of the kernel's set."""
        self._handlers.pop(fd, None)

    def remove(self, fd: int) -> None:
        """Drop a descriptor that stays open, here or in another process."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _end_turn(self) -> None:
        ending = self._ending
        for call in ending:  # grows while it goes on
            try:
                call()
            except Exception as crash:  # the outer edge of a session
                self.crashed(call, crash)
        ending.clear()

    def crashed(self, culprit: object, crash: Exception) -> None:
        """Pass on an exception that an entry point raised; ``on_crash`` ends its owner."""
        if self.on_crash is None:
            self._ending.clear()
            raise crash
        self.on_crash(culprit, crash)

    # -- asyncio's side

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 - asyncio's own
        """Watch a descriptor for asyncio."""
        fd = _descriptor(fileobj)
        if fd in self._keys:
            message = f"descriptor {fd} is registered already"
            raise KeyError(message)
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._epoll.register(fd, _epoll_mask(events))
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Stop watching a descriptor for asyncio."""
        fd = _descriptor(fileobj)
        key = self._keys.pop(fd)
        with suppress(OSError):  # closed already: the kernel has dropped it
            self._epoll.unregister(fd)
        return key

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 - asyncio's own
        """Change what asyncio watches a descriptor for."""
        fd = _descriptor(fileobj)
        old = self._keys[fd]
        if events != old.events:
            self._epoll.modify(fd, _epoll_mask(events))
        key = selectors.SelectorKey(old.fileobj, fd, events, data)
        self._keys[fd] = key
        return key

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """Tell what asyncio watches, by descriptor."""
        return self._keys

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Tell what asyncio watches a descriptor for."""
        return self._keys[_descriptor(fileobj)]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve hot descriptors until asyncio has something to do; return those of its own that are ready."""
        ready: list[tuple[selectors.SelectorKey, int]] = []
        poll, monotonic = self._poll, time.monotonic
        self.is_wanted = False
        if self._ending:
            self._end_turn()
            if self.is_wanted:
                timeout = 0.0  # asyncio did not know of it when it said how long to wait
        ends_at = math.inf if timeout is None else self.now + timeout if timeout > 0 else 0.0
        left = None if timeout is None else max(timeout, 0.0)  # a negative one would mean for ever
        while True:
            try:
                events = poll(left, _BATCH)
            except InterruptedError:
                return ready
            self.now = now = monotonic()
            self.polls += 1
            self.crowd = len(events)
            self._turn(events, ready)
            if ready or self.is_wanted or now >= ends_at:
                return ready
            if left is not None:
                left = ends_at - now

    def _turn(self, events: list[tuple[int, int]], ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        handlers = self._handlers
        for fd, mask in events:
            try:
                handler = handlers[fd]
            except KeyError:
                self._leave_to_asyncio(fd, mask, ready)
                continue
            try:
                handler.on_event(mask)
            except Exception as crash:  # the outer edge of a session
                self.crashed(handler, crash)
        if self._ending:
            self._end_turn()

    def _leave_to_asyncio(self, fd: int, mask: int, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        key = self._keys.get(fd)
        if key is not None:
            ready.append((key, _selector_mask(mask) & key.events))

    def close(self) -> None:
        """End the turn, and close the epoll descriptor; what it watched is the owners' to close."""
        self._end_turn()
        self._handlers.clear()
        self._keys.clear()
        self._epoll.close()


def hung_up(fd: int, *, ended: bool = False) -> bool:
    """Look once more whether a connection is broken: an event may have been meant for another.

    Args:
        fd: The socket.
        ended: Whether it is enough that the peer has shut its side.
    """
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP if ended else 0)
    return bool(poll.poll(0))


def _descriptor(fileobj: FileDescriptorLike) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _epoll_mask(events: int) -> int:
    mask = 0
    if events & selectors.EVENT_READ:
        mask |= select.EPOLLIN
    if events & selectors.EVENT_WRITE:
        mask |= select.EPOLLOUT
    return mask


def _selector_mask(mask: int) -> int:
    events = 0
    if mask & ~select.EPOLLIN:
        events |= selectors.EVENT_WRITE
    if mask & ~select.EPOLLOUT:
        events |= selectors.EVENT_READ
    return events

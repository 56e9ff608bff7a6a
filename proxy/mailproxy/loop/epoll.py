# SPDX-License-Identifier: Apache-2.0
"""The mail sockets of a worker: epoll, a handler per descriptor, and calls deferred to the iteration's end.

A mail connection is an object with ``on_event``.  It is called directly from
the poll, without a future, an asyncio handle or a callback in between.

One poll and the events that it returned are an iteration.  In each iteration
all events are read first.  Writing, connecting and closing, which take most
time in the kernel, are deferred to its end.  This keeps the interpreter and
the kernel's network code from evicting each other from the CPU caches at every
event, and a peer is woken once for all that it is sent.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

READ: Final = select.EPOLLIN | select.EPOLLRDHUP
"""Bytes, or the end of the stream: ``EPOLLRDHUP`` reports the end without another ``recv``."""
WRITE: Final = select.EPOLLOUT
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
"""Both directions are closed; always reported (epoll_ctl(2))."""
NO_EVENTS: Final = 0
"""Nothing is polled for; only ``BROKEN`` is reported."""

MAX_EVENTS: Final = 64
"""Events of one iteration.  Limits how long asyncio's callbacks and deferred writes wait."""


class Handler(Protocol):
    """What serves a descriptor."""

    def on_event(self, mask: int) -> object:
        """Serve readiness.  May be called once too often, for a descriptor number that was used again."""
        ...


class Epoll:
    """The descriptors of a worker and their handlers.

    Attributes:
        asyncio_has_work: Whether asyncio has something to do: ``serve`` returns after this iteration.
        defer: ``defer(call)`` calls something at the end of this iteration, in the
            order of the requests; outside of one, before the next poll.
        deferred: Those calls.
        handlers: By descriptor.  The last entry is nobody's: it is that of -1, the number of a closed socket.
        iterations: Number of polls that returned, with events or by their timeout.
        now: Monotonic time of the latest poll, in seconds.
        on_error: Called with the handler or deferred call that raised, and the
            exception.  Without it the exception ends the event loop.
        ready: Events that the latest poll returned: descriptor and mask.
    """

    __slots__ = (
        "asyncio_has_work",
        "defer",
        "deferred",
        "handlers",
        "iterations",
        "kernel",
        "now",
        "on_error",
        "ready",
    )

    def __init__(self) -> None:
        self.kernel = select.epoll()
        self.handlers: list[Handler | None] = [None]
        self.deferred: list[Callable[[], object]] = []
        self.defer: Callable[[Callable[[], object]], None] = self.deferred.append
        self.on_error: Callable[[object, Exception], None] | None = None
        self.now = monotonic()
        self.iterations = 0
        self.ready: list[tuple[int, int]] = []
        self.asyncio_has_work = False

    def add(self, fd: int, handler: Handler, mask: int) -> None:
        """Register a descriptor; one that the kernel refuses gets no handler.

        Raises:
            OSError: The kernel refuses it.
            ValueError: It is the number of a closed socket.
        """
        if fd + 1 >= len(self.handlers):
            self.handlers.extend([None] * (fd + 2))
        self.kernel.register(fd, mask)
        self.handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        """Change the events that a descriptor is polled for."""
        self.kernel.modify(fd, mask)

    def set_handler(self, fd: int, handler: Handler) -> None:
        """Replace the handler of a descriptor; its events stay."""
        self.handlers[fd] = handler

    def discard(self, fd: int) -> None:
        """Drop the handler of a descriptor; the kernel drops the descriptor itself when it is closed."""
        if fd < len(self.handlers):  # otherwise it was never registered
            self.handlers[fd] = None

    def remove(self, fd: int) -> None:
        """Unregister a descriptor that stays open, here or in another process."""
        if fd < len(self.handlers) and self.handlers[fd] is not None:
            self.handlers[fd] = None
            self.kernel.unregister(fd)

    def close_socket(self, sock: socket.SocketType, fd: int) -> None:
        """Close a socket at the end of the iteration.

        Until then its number cannot be used again, so no event of this
        iteration can be delivered to another connection.
        """
        if fd < len(self.handlers):  # otherwise it was never registered
            self.handlers[fd] = None
        self.deferred.append(sock.close)

    def serve(self, timeout: float) -> None:
        """Serve the descriptors until asyncio has work, or the timeout has passed.

        An iteration polls, calls the handlers of the descriptors that are ready, then what was deferred.

        Args:
            timeout: In seconds; with 0 there is one iteration, which does not wait.
        """
        poll, handlers, deferred = self.kernel.poll, self.handlers, self.deferred
        ends_at = self.now + timeout
        while True:
            self.ready = events = poll(timeout, MAX_EVENTS)
            self.now = now = monotonic()
            self.iterations += 1
            for fd, mask in events:
                handler = handlers[fd]
                if handler is None:
                    continue  # it was closed in this iteration
                try:
                    handler.on_event(mask)
                except Exception as error:  # an entry point
                    self.handle_error(handler, error)
            if deferred:
                self.run_deferred()
            if self.asyncio_has_work or now >= ends_at:
                return
            timeout = ends_at - now

    def run_deferred(self) -> None:
        """Make the calls that were deferred, and those that they defer."""
        deferred = self.deferred
        for call in deferred:  # grows meanwhile
            try:
                call()
            except Exception as error:  # an entry point
                self.handle_error(call, error)
        deferred.clear()

    def handle_error(self, source: object, error: Exception) -> None:
        """Pass an exception of an entry point to ``on_error``, which ends the connection that it belongs to.

        Args:
            source: The handler, deferred call or timeout that raised.
            error: What it raised.
        """
        if self.on_error is None:
            self.deferred.clear()
            raise error
        self.on_error(source, error)

    def close(self) -> None:
        """Make the deferred calls, and close the epoll descriptor; the sockets belong to their handlers."""
        self.run_deferred()
        self.handlers[:] = [None]
        self.kernel.close()


def hung_up(fd: int, *, half_closed: bool = False) -> bool:
    """Return whether a connection is broken.

    An event may belong to an earlier connection with the same number, so it is
    no proof.

    Args:
        fd: The socket.
        half_closed: Whether it is enough that the peer has shut down its direction.
    """
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP if half_closed else 0)
    return bool(poll.poll(0))

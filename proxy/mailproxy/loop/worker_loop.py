# SPDX-License-Identifier: Apache-2.0
"""The asyncio event loop of a worker: asyncio's own descriptors share the epoll of the mail sockets.

asyncio waits in ``selector.select()``.  Here that call serves the mail sockets,
and returns only when one of asyncio's descriptors is ready (name look-ups, the
supervisor's channel), a callback was scheduled, or its timeout has passed.
"""

from __future__ import annotations

import asyncio
import math
import select
import selectors
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVarTuple

from mailproxy.loop.epoll import Epoll

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Arguments = TypeVarTuple("Arguments")


class WorkerSelector(selectors.BaseSelector):
    """Asyncio's selector on an ``Epoll``.

    Attributes:
        asyncio_has_work: Whether a callback was scheduled since ``select`` was
            called; ``select`` then returns after this iteration.
        epoll: Serves the mail sockets.
    """

    def __init__(self) -> None:
        self.epoll = Epoll()
        self.asyncio_has_work = False
        self._kernel = self.epoll.kernel
        self._keys: dict[FileDescriptorLike, selectors.SelectorKey] = {}

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 - as in BaseSelector
        """Register a descriptor of asyncio."""
        fd = _descriptor(fileobj)
        if fd in self._keys:
            message = f"descriptor {fd} is registered already"
            raise KeyError(message)
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._kernel.register(fd, _epoll_mask(events))
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Unregister a descriptor of asyncio."""
        fd = _descriptor(fileobj)
        key = self._keys.pop(fd)
        with suppress(OSError):  # closed already: the kernel has dropped it
            self._kernel.unregister(fd)
        return key

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 - as in BaseSelector
        """Change the events that a descriptor of asyncio is polled for."""
        fd = _descriptor(fileobj)
        old = self._keys[fd]
        if events != old.events:
            self._kernel.modify(fd, _epoll_mask(events))
        key = selectors.SelectorKey(old.fileobj, fd, events, data)
        self._keys[fd] = key
        return key

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """Return asyncio's descriptors."""
        return self._keys

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Return the registration of a descriptor of asyncio."""
        return self._keys[_descriptor(fileobj)]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve mail sockets until asyncio has something to do; return its descriptors that are ready."""
        epoll = self.epoll
        self.asyncio_has_work = False
        if epoll.deferred:
            epoll.run_deferred()
            if self.asyncio_has_work:
                timeout = 0.0  # asyncio computed its timeout before that
        ends_at = math.inf if timeout is None else epoll.now + timeout if timeout > 0 else 0.0
        left = None if timeout is None else max(timeout, 0.0)  # a negative timeout means none
        while True:
            events = epoll.run_iteration(left)
            if events and (ready := self._ready(events)):
                return ready
            if self.asyncio_has_work or epoll.now >= ends_at:
                return []
            if left is not None:
                left = ends_at - epoll.now

    def _ready(self, events: list[tuple[int, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """Translate events of epoll; one whose descriptor was unregistered in this iteration is dropped."""
        keys = self._keys
        ready: list[tuple[selectors.SelectorKey, int]] = []
        for fd, mask in events:
            key = keys.get(fd)
            if key is not None:
                ready.append((key, _events(mask) & key.events))
        return ready

    def close(self) -> None:
        """Close the epoll descriptor; what was registered belongs to its owners."""
        self._keys.clear()
        self.epoll.close()


class WorkerLoop(asyncio.SelectorEventLoop):
    """The stock event loop on a ``WorkerSelector``, which it informs of scheduled callbacks.

    Attributes:
        epoll: Serves the mail sockets.
    """

    def __init__(self) -> None:
        self._worker_selector = selector = WorkerSelector()
        self.epoll = selector.epoll
        super().__init__(selector)

    def call_soon(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        """Call something in the next iteration of asyncio's loop."""
        self._worker_selector.asyncio_has_work = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something at a time of the loop's clock; ``call_later`` uses this, too."""
        self._worker_selector.asyncio_has_work = True
        return super().call_at(when, callback, *args, context=context)


def make_loop() -> WorkerLoop:
    """Make the event loop that an ``App`` runs on."""
    return WorkerLoop()


def _descriptor(fileobj: FileDescriptorLike) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _epoll_mask(events: int) -> int:
    mask = 0
    if events & selectors.EVENT_READ:
        mask |= select.EPOLLIN
    if events & selectors.EVENT_WRITE:
        mask |= select.EPOLLOUT
    return mask


def _events(mask: int) -> int:
    events = 0
    if mask & ~select.EPOLLIN:
        events |= selectors.EVENT_WRITE
    if mask & ~select.EPOLLOUT:
        events |= selectors.EVENT_READ
    return events

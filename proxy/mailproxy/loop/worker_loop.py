# SPDX-License-Identifier: Apache-2.0
"""The asyncio event loop of a worker: asyncio's own descriptors share the epoll of the mail sockets.

asyncio waits in ``selector.select()``.  Here that call serves the mail sockets,
and returns only when one of asyncio's descriptors is ready (name look-ups, the
supervisor's channel), a callback was scheduled, or its timeout has passed.
"""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple

from mailproxy.loop.epoll import Epoll

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Arguments = TypeVarTuple("Arguments")


_MAX_SECONDS: Final = 24 * 3600.0
"""The longest time that ``select`` waits, as in asyncio."""


class AsyncioHandler:
    """The handler of a descriptor of asyncio: ``select`` returns its event after this iteration."""

    __slots__ = ("_fd", "_selector")

    def __init__(self, selector: WorkerSelector, fd: int) -> None:
        self._selector = selector
        self._fd = fd

    def on_event(self, mask: int) -> None:
        """Record the event."""
        self._selector.events.append((self._fd, mask))
        self._selector.epoll.asyncio_has_work = True


class WorkerSelector(selectors.BaseSelector):
    """Asyncio's selector on an ``Epoll``.

    Attributes:
        epoll: Serves the mail sockets.
        events: Of asyncio's descriptors in this iteration: number and mask.
    """

    def __init__(self) -> None:
        self.epoll = Epoll()
        self.events: list[tuple[int, int]] = []
        self._keys: dict[FileDescriptorLike, selectors.SelectorKey] = {}

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 - as in BaseSelector
        """Register a descriptor of asyncio."""
        fd = _descriptor(fileobj)
        if fd in self._keys:
            message = f"descriptor {fd} is registered already"
            raise KeyError(message)
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self.epoll.add(fd, AsyncioHandler(self, fd), _epoll_mask(events))
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Unregister a descriptor of asyncio."""
        fd = _descriptor(fileobj)
        key = self._keys.pop(fd)
        with suppress(OSError):  # closed already: the kernel has dropped it
            self.epoll.remove(fd)
        return key

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 - as in BaseSelector
        """Change the events that a descriptor of asyncio is polled for."""
        fd = _descriptor(fileobj)
        old = self._keys[fd]
        if events != old.events:
            self.epoll.modify(fd, _epoll_mask(events))
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
        epoll.asyncio_has_work = False
        if epoll.deferred:
            epoll.run_deferred()
        if epoll.asyncio_has_work:
            timeout = 0.0  # asyncio computed its timeout before that
        epoll.serve(_MAX_SECONDS if timeout is None else max(timeout, 0.0))  # a negative timeout means none
        events, self.events = self.events, []
        return self._ready(events)

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
    """The stock event loop on a ``WorkerSelector``, whose ``select`` returns when a callback was scheduled.

    Attributes:
        epoll: Serves the mail sockets.
    """

    def __init__(self) -> None:
        selector = WorkerSelector()
        self.epoll = selector.epoll
        super().__init__(selector)

    def call_soon(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        """Call something in the next iteration of asyncio's loop."""
        self.epoll.asyncio_has_work = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something at a time of the loop's clock; ``call_later`` uses this, too."""
        self.epoll.asyncio_has_work = True
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

# SPDX-License-Identifier: Apache-2.0
"""Runs a protocol generator on a socket, resumed by readiness instead of by a task.

Consecutive ``Send`` effects are joined and sent before anything is waited for:
at the end of the event loop iteration where the peer's next bytes are awaited,
at once before any other effect.  The peer is read only while the generator
waits in ``Receive`` or ``Peek``.  A failure is thrown into the generator at the
``yield`` that it belongs to.
"""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, ClassVar, Final

from mailproxy.context import WorkerContext
from mailproxy.errors import PeerClosed, PeerReset, PeerTimedOut
from mailproxy.loop.epoll import BROKEN, NO_EVENTS, READ, WRITE, hung_up
from mailproxy.loop.timeouts import Deadlines
from mailproxy.net.nonblocking import CLOSED_BY_TLS, WOULD_BLOCK
from mailproxy.protocols import sansio
from mailproxy.protocols.sansio import Effect, ProtocolGenerator, Receive, Send
from mailproxy.tls.connection import TlsConnection

HIGH_WATER: Final = 16 * 1024
"""Bytes that are joined while the peer pipelines commands, before some must have been sent."""


class DriverState(Enum):
    """What a driver waits for."""

    IDLE = auto()
    """Nothing from the peer: the generator waits for something else, or has not begun."""
    READING = auto()
    """Bytes that the generator asked for (``Receive``)."""
    EARLY_TALKER = auto()
    """Bytes that the peer should not send yet (``Peek``)."""
    FLUSHING = auto()
    """The peer's acceptance of what was sent; after that the generator goes on."""
    DEFERRED = auto()
    """The end of the event loop iteration: then what was joined is sent, and the peer is read."""
    CLOSING = auto()
    """The peer's acceptance of the last bytes; the generator is over."""
    CLOSED = auto()
    """Nothing any more."""


# The hot path's states as plain globals: Python 3.11 takes 0.4 µs to look up a member of an enum.
_IDLE: Final = DriverState.IDLE
READING: Final = DriverState.READING
_DEFERRED: Final = DriverState.DEFERRED


class _Pending:
    """The result of an effect comes later, by ``resume`` or ``throw``."""


PENDING: Final = _Pending()


class ProtocolDriver(ABC):
    """Runs one protocol generator on one connection; the handler of its socket.

    A derived class performs the effects that need more than the peer and time
    (``_EFFECTS``).  Its ``_on_result`` or ``_on_error`` is called once, when
    the generator ends.

    Attributes:
        state: What it waits for.
        timer: Set by ``Timeouts``.
        tls: The same as ``sock`` where it is a TLS connection.
    """

    __slots__ = (
        "_deadline",
        "_events",
        "_generator",
        "_next_effect",
        "_outgoing",
        "_pending_error",
        "_read_limit",
        "_send_seconds",
        "_wait_timer",
        "context",
        "fd",
        "sock",
        "state",
        "timer",
        "tls",
    )
    _EFFECTS: ClassVar[Mapping[type[Effect], Callable[[Any, Any], object]]] = {}

    # Set before they are read, so not in ``__init__``.
    _next_effect: Effect | None
    """Performed when the peer has accepted what was sent; ``None`` resumes the generator."""
    _read_limit: int

    def __init__(self, context: WorkerContext, sock: socket.SocketType, fd: int, send_seconds: float) -> None:
        self.context = context
        self.sock = sock
        self.fd = fd
        self.state = _IDLE
        self.timer: Deadlines | None = None
        self.tls: TlsConnection | None = None
        self._deadline = 0.0  # monotonic, in seconds; 0 for none
        self._events = READ
        self._generator: ProtocolGenerator[Any] | None = None
        self._outgoing = b""
        self._pending_error: Exception | None = None
        self._send_seconds = send_seconds
        self._wait_timer: asyncio.TimerHandle | None = None

    # -- running the generator

    def begin(self, generator: ProtocolGenerator[Any]) -> None:
        """Run a generator from its start."""
        self._generator = generator
        self._run(None)

    def resume(self, result: object) -> None:
        """Resume the generator with the result of the effect that it waits for."""
        if self._generator is not None:
            self._run(result)

    def throw(self, error: Exception) -> None:
        """Raise an error from the effect that the generator waits for."""
        if self._generator is not None:
            self._run(error, self._generator.throw)

    def _run(self, value: object, step: Callable[[Any], Effect] | None = None) -> None:  # noqa: C901, PLR0912 - one loop: splitting it costs a call per effect
        generator = self._generator
        assert generator is not None  # noqa: S101 - what waits has one
        try:
            effect = generator.send(value) if step is None else step(value)
            while True:
                kind = effect.__class__
                if kind is Send:
                    if not self._outgoing:
                        self._outgoing = effect.data  # type: ignore[union-attr]
                    else:
                        self._outgoing += effect.data  # type: ignore[union-attr]
                        if len(self._outgoing) > HIGH_WATER and not self._flush():
                            return self._wait_until_sent(None)
                    effect = generator.send(None)
                    continue
                if kind is Receive:
                    self._read_limit = effect.limit  # type: ignore[union-attr]
                    if self._outgoing:
                        self.state = _DEFERRED
                        self.context.epoll.defer(self._send_then_read)
                        return None
                    self.state = READING
                    if self._events != READ or self._pending_error is not None or self.tls is not None:
                        self._start_reading()
                    return None
                if self._outgoing and not self._flush():
                    return self._wait_until_sent(effect)
                self.state = _IDLE
                result = self._EFFECTS[kind](self, effect)
                if result is PENDING:
                    return None
                effect = generator.send(result)
        except StopIteration as stop:
            self.state = _IDLE
            self._generator = None
            self._on_result(stop.value)
        except OSError as error:
            self.release()
            self._on_error(PeerReset(type(error).__name__))
        except Exception as error:  # the outer edge: each failure gets its reply there
            self.release()
            self._on_error(error)
        return None

    @abstractmethod
    def _on_result(self, result: Any) -> None:  # noqa: ANN401 - each generator returns its own
        """The generator returned; bytes may still have to be sent."""

    @abstractmethod
    def _on_error(self, error: Exception) -> None:
        """The generator raised, or the connection broke."""

    def release(self) -> None:
        """Drop the generator and all timeouts; the connection stays open."""
        self.state = DriverState.CLOSED
        self._next_effect = None
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None
        self.context.timers.disarm(self)
        self._generator = None

    # -- readiness and timeouts

    def on_event(self, mask: int) -> bool:
        """Read, where the generator asks for bytes; return whether there was something to do."""
        if self.state is not READING:
            self._on_other_event(mask)
            return True
        try:
            data = self.sock.recv(self._read_limit)
        except WOULD_BLOCK:
            return False
        except CLOSED_BY_TLS:
            data = b""
        except OSError:
            self.throw(PeerReset())
            return True
        if data:
            self._run(data)
        else:
            self.throw(PeerClosed())
        return True

    def _on_other_event(self, mask: int) -> None:
        """Send, or handle a peer that sends before it is its turn."""
        state = self.state
        if state is DriverState.EARLY_TALKER:
            self._read_early(mask)
        elif state is DriverState.FLUSHING or state is DriverState.CLOSING:
            if mask & (WRITE | BROKEN):
                self._continue_sending()
        elif mask & BROKEN and hung_up(self.fd):
            self.release()
            self._on_error(PeerReset())
        elif self._events != NO_EVENTS:
            self.set_events(NO_EVENTS)

    def _read_early(self, mask: int) -> None:
        """Read what should not come yet; without bytes ``Peek`` goes on."""
        wait_timer, self._wait_timer = self._wait_timer, None
        self.state = READING
        if not self.on_event(mask):
            self.state, self._wait_timer = DriverState.EARLY_TALKER, wait_timer
        elif wait_timer is not None:
            wait_timer.cancel()

    def on_timeout(self) -> None:
        """The deadline has passed, or the peer did not accept bytes in time."""
        state = self.state
        if state is READING or state is DriverState.FLUSHING:
            self.throw(PeerTimedOut())
        elif state is DriverState.CLOSING:
            self._on_last_sent()
        elif self._pending_error is None:
            self._pending_error = PeerTimedOut()

    @property
    def is_reading(self) -> bool:
        """Whether the generator waits for the peer's bytes."""
        return self.state is DriverState.READING or self.state is DriverState.EARLY_TALKER

    # -- reading

    def _send_then_read(self) -> None:
        """At the end of the event loop iteration: send what was joined, then wait for the peer."""
        if self.state is not _DEFERRED:
            return None
        data = self._outgoing
        try:
            sent = self.sock.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            return self.throw(PeerReset())
        self._outgoing = data[sent:]
        if self._outgoing:
            return self._wait_until_sent(Receive(self._read_limit))
        self.state = READING
        if self._events != READ or self._pending_error is not None or self.tls is not None:
            self._start_reading()
        return None

    def _start_reading(self) -> None:
        """Poll for the peer's bytes, unless an error is pending."""
        self.set_events(READ)
        if self._pending_error is not None:
            self.throw(self._pending_error)
        else:
            self._read_tls_buffer()

    def _read_tls_buffer(self) -> None:
        """Read what TLS has taken from the socket already, of which there will be no event.

        Not before the next iteration, so that a client that floods does not delay the others.
        """
        if self.tls is not None and self.tls.pending():
            self.context.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self.is_reading:
            self.on_event(READ)

    # -- sending

    def _flush(self) -> bool:
        """Send what was joined; return whether the kernel accepted all of it."""
        data = self._outgoing
        try:
            sent = self.sock.send(data)
        except WOULD_BLOCK:
            sent = 0
        if sent == len(data):
            self._outgoing = b""
            return True
        self._outgoing = data[sent:]
        return False

    def _wait_until_sent(self, effect: Effect | None) -> None:
        """Perform ``effect`` (``None``: resume the generator) when the peer has accepted what was sent."""
        self._next_effect = effect
        self.state = DriverState.FLUSHING
        self._arm_send_timeout()
        self.set_events(WRITE)

    def _arm_send_timeout(self) -> None:
        """Limit the time to accept bytes; while the generator runs, by its deadline, too."""
        seconds = self._send_seconds
        if self._deadline and self._generator is not None:
            seconds = min(seconds, max(self._deadline - time.monotonic(), 0.0))
        self.context.timers.arm(self, seconds)

    def _continue_sending(self) -> None:
        is_closing = self.state is DriverState.CLOSING
        before = len(self._outgoing)
        try:
            done = self._flush()
        except OSError:
            return self._on_last_sent() if is_closing else self.throw(PeerReset())
        if is_closing:
            return self._on_last_sent() if done else None
        if not done:
            if len(self._outgoing) != before:
                self._arm_send_timeout()
            return None
        self._arm_deadline()
        self.set_events(NO_EVENTS)
        effect, self._next_effect = self._next_effect, None
        if effect is None:
            return self.resume(None)
        return self._run(effect, _same)

    def _send_last(self, data: bytes) -> None:
        """Send the last bytes; ``_on_last_sent`` is called when the peer has accepted them, or never will."""
        self.state = DriverState.CLOSING
        self._outgoing += data
        try:
            if self._outgoing and not self._flush():
                self._arm_send_timeout()
                self.set_events(WRITE)
                return
        except OSError:
            self._outgoing = b""
        self._on_last_sent()

    def _on_last_sent(self) -> None:
        """The peer has accepted the last bytes, or did not in time, or the connection broke."""
        self.release()

    # -- events and deadlines

    def set_events(self, mask: int) -> None:
        """Change the events that the socket is polled for."""
        if mask != self._events:
            self._events = mask
            self.context.epoll.modify(self.fd, mask)

    def _arm_deadline(self) -> None:
        """Start the timeout for the rest of the deadline again."""
        if self._deadline:
            self.context.timers.arm(self, max(self._deadline - time.monotonic(), 0.0))
        else:
            self.context.timers.disarm(self)

    # -- the effects that need only the peer and time

    def set_deadline(self, effect: sansio.SetDeadline) -> None:
        """Perform ``Deadline``."""
        context, seconds = self.context, effect.seconds
        self._deadline = context.epoll.now + seconds
        context.timers.arm(self, seconds)

    def peek(self, effect: sansio.Peek) -> object:
        """Perform ``Peek``."""
        self._read_limit = effect.limit
        self.state = DriverState.EARLY_TALKER
        self._wait_timer = self.context.loop.call_later(effect.seconds, self.on_wait_over, b"")
        self.set_events(READ)
        self._read_tls_buffer()
        return PENDING

    def wait(self, effect: sansio.Wait) -> object:
        """Perform ``Wait``."""
        self._wait_timer = self.context.loop.call_later(effect.seconds, self.on_wait_over, None)
        return PENDING

    def on_wait_over(self, result: object) -> None:
        """End the pause of a ``Wait`` or ``Peek``; called by a timer."""
        self._wait_timer = None
        self.resume(result)


def _same(effect: Effect) -> Effect:
    return effect

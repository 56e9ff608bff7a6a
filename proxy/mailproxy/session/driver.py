# SPDX-License-Identifier: Apache-2.0
"""The interpreter: performs a dialogue on a socket, resumed by readiness instead of by a task.

What the peer is told is joined and leaves before anything is waited for (at
the end of the turn, where it is the peer's reply); the peer is read only while
the dialogue asks for bytes; a failure is thrown in at the ``yield`` it
belongs to.
"""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from mailproxy.context import WorkerContext
from mailproxy.errors import PeerClosed, PeerReset, PeerTimedOut
from mailproxy.loop.epoll import BROKEN, QUIET, READ, WRITE, hung_up
from mailproxy.loop.timeouts import Deadlines
from mailproxy.net.nonblocking import CLOSED_BY_TLS, WOULD_BLOCK
from mailproxy.protocols import sansio
from mailproxy.protocols.sansio import Effect, ProtocolGenerator, Receive, Send
from mailproxy.tls.connection import TlsConnection

HIGH_WATER: Final = 16 * 1024
"""Bytes for the peer that may gather while it pipelines, before it has to take some."""

# The order counts: between ASIDE and FLUSHING the peer's bytes are awaited.
ASIDE: Final = 0  # nothing is expected of the peer
READING: Final = 1
OVERHEARING: Final = 2
FLUSHING: Final = 3
LEAVING: Final = 4  # as READING, once the turn has ended and what was told has left
OVER: Final = 5


class _Pending:
    """The answer to an action comes later."""


PENDING: Final = _Pending()


class ProtocolDriver(ABC):
    """One dialogue on one connection; a reactor's handler.

    Whoever derives from this performs the actions that need more than a peer
    (``_PERFORM``), and is told once how it ended: ``_finished`` or ``_failed``.

    Attributes:
        tls: The same as ``sock`` where it is a TLS connection.
    """

    __slots__ = (
        "_deadline",
        "_dialogue",
        "_doom",
        "_held",
        "_limit",
        "_mask",
        "_outgoing",
        "_state",
        "_wake",
        "_write_seconds",
        "engine",
        "fd",
        "sock",
        "timer",
        "tls",
    )
    _PERFORM: ClassVar[Mapping[type[Effect], Callable[[Any, Any], object]]] = {}

    # set before they are looked at, so not at the start
    _held: Effect | None
    _limit: int
    _wake: asyncio.TimerHandle | None

    def __init__(self, engine: WorkerContext, sock: socket.SocketType, fd: int, write_seconds: float) -> None:
        self.engine = engine
        self.sock = sock
        self.fd = fd
        self.timer: Deadlines | None = None
        self.tls: TlsConnection | None = None
        self._dialogue: ProtocolGenerator[Any] | None = None
        self._doom: Exception | None = None
        self._outgoing = b""
        self._mask = READ
        self._state = ASIDE
        self._deadline = 0.0
        self._wake = None
        self._write_seconds = write_seconds

    # -- what others call

    def begin(self, dialogue: ProtocolGenerator[Any]) -> None:
        """Perform a dialogue from its start."""
        self._dialogue = dialogue
        self._run(None)

    def resume(self, answer: object) -> None:
        """Give the dialogue the answer it waits for."""
        if self._dialogue is not None:
            self._run(answer)

    def throw(self, error: Exception) -> None:
        """Let what the dialogue waits for fail."""
        if self._dialogue is not None:
            self._run(error, self._dialogue.throw)

    @property
    def is_listening(self) -> bool:
        """Whether the dialogue waits for the peer's bytes."""
        return self._state in (READING, OVERHEARING)

    def on_event(self, mask: int) -> bool:
        """Readiness: read, where the dialogue asks for bytes; tell whether that came to anything."""
        if self._state != READING:
            self._on_other_event(mask)
            return True
        try:
            data = self.sock.recv(self._limit)
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
        """Readiness: write, or put up with a peer that speaks before it is asked."""
        if self._state == OVERHEARING:
            self._overheard(mask)
        elif self._state == FLUSHING:
            if mask & (WRITE | BROKEN):
                self._continue_flushing()
        elif mask & BROKEN and hung_up(self.fd):
            self._broken()
        elif self._mask != QUIET:
            self._watch(QUIET)

    def _overheard(self, mask: int) -> None:
        """Read what should not come, unless it turns out to be nothing yet."""
        wake, self._wake = self._wake, None
        self._state = READING
        if not self.on_event(mask):
            self._state, self._wake = OVERHEARING, wake
        elif wake is not None:
            wake.cancel()

    def on_timeout(self) -> None:
        """The deadline, or the time for a peer to take what it was told, is over."""
        if self._state in (READING, FLUSHING):
            self.throw(PeerTimedOut())
        elif self._doom is None:
            self._doom = PeerTimedOut()

    # -- what derived classes may change

    @abstractmethod
    def _finished(self, result: Any) -> None:  # noqa: ANN401 - each dialogue returns its own
        """The dialogue returned; nothing is awaited any more, but bytes may wait to leave."""

    @abstractmethod
    def _failed(self, error: Exception) -> None:
        """The dialogue ended with an error, or the connection broke."""

    def _broken(self) -> None:
        """The connection broke while nothing was asked of the peer."""
        self.release()
        self._failed(PeerReset())

    # -- performing

    def _run(self, value: object, step: Callable[[Any], Effect] | None = None) -> None:  # noqa: C901, PLR0912 - the interpreter's one loop: splitting it costs a call per action
        dialogue = self._dialogue
        assert dialogue is not None  # noqa: S101 - whoever waits has one
        try:
            action = dialogue.send(value) if step is None else step(value)
            while True:
                kind = action.__class__
                if kind is Send:
                    if not self._outgoing:
                        self._outgoing = action.data  # type: ignore[union-attr]
                    else:
                        self._outgoing += action.data  # type: ignore[union-attr]
                        if len(self._outgoing) > HIGH_WATER and not self._flush():
                            return self._hold(None)
                    action = dialogue.send(None)
                    continue
                if kind is Receive:
                    self._limit = action.limit  # type: ignore[union-attr]
                    if self._outgoing:
                        self._state = LEAVING
                        self.engine.reactor.at_end(self._leave_and_listen)
                        return None
                    self._state = READING
                    if self._mask != READ or self._doom is not None or self.tls is not None:
                        self._listen()
                    return None
                if self._outgoing and not self._flush():
                    return self._hold(action)
                self._state = ASIDE
                answer = self._PERFORM[kind](self, action)
                if answer is PENDING:
                    return None
                action = dialogue.send(answer)
        except StopIteration as stop:
            self._state = ASIDE
            self._dialogue = None
            self._finished(stop.value)
        except OSError as error:
            self.release()
            self._failed(PeerReset(type(error).__name__))
        except Exception as error:  # the outer edge: every failure gets its words there
            self.release()
            self._failed(error)
        return None

    def _leave_and_listen(self) -> None:
        """The turn ends: the peer is told, and heard after that."""
        if self._state != LEAVING:
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
            return self._hold(Receive(self._limit))
        self._state = READING
        if self._mask != READ or self._doom is not None or self.tls is not None:
            self._listen()
        return None

    def _listen(self) -> None:
        """See to it that the peer is heard, unless its time is over."""
        self._watch(READ)
        if self._doom is not None:
            self.throw(self._doom)
        else:
            self._look_above()

    def _look_above(self) -> None:
        """See to it that bytes are read of which no event tells, for TLS has taken them from the socket."""
        if self.tls is not None and self.tls.pending():
            self.engine.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Read what waits above the socket: a turn of the loop later, so that a flood makes nobody wait."""
        if self.is_listening:
            self.on_event(READ)

    def _flush(self) -> bool:
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

    def _hold(self, action: Effect | None) -> None:
        """Go on with ``action`` (``None``: with the dialogue) when the peer has taken what it was told."""
        self._held = action
        self._state = FLUSHING
        self._limit_flushing()
        self._watch(WRITE)

    def _limit_flushing(self) -> None:
        """Give the peer time to take bytes: never more than its deadline leaves, but for the last words."""
        seconds = self._write_seconds
        if self._deadline and self._dialogue is not None:
            seconds = min(seconds, max(self._deadline - time.monotonic(), 0.0))
        self.engine.timers.arm(self, seconds)

    def _continue_flushing(self) -> None:
        before = len(self._outgoing)
        try:
            done = self._flush()
        except OSError:
            return self.throw(PeerReset())
        if not done:
            if len(self._outgoing) != before and self._dialogue is not None:
                self._limit_flushing()
            return None
        self._rearm()
        self._watch(QUIET)
        held, self._held = self._held, None
        self._flushed(held)
        return None

    def _flushed(self, held: Effect | None) -> None:
        if held is None:
            self.resume(None)
        else:
            self._run(held, _same)

    def _rearm(self) -> None:
        if self._deadline:
            self.engine.timers.arm(self, max(self._deadline - time.monotonic(), 0.0))
        else:
            self.engine.timers.disarm(self)

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self.engine.reactor.want(self.fd, mask)

    def release(self) -> None:
        """Forget the dialogue and every deadline; the connection stays."""
        self._state = OVER
        self._held = None
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self.engine.timers.disarm(self)
        self._dialogue = None

    # -- the actions that need nothing but the peer and time

    def set_deadline(self, action: sansio.SetDeadline) -> None:
        """Perform ``Deadline``."""
        engine, seconds = self.engine, action.seconds
        self._deadline = engine.reactor.now + seconds
        engine.timers.arm(self, seconds)

    def overhear(self, action: sansio.Peek) -> object:
        """Perform ``Overhear``."""
        self._limit = action.limit
        self._state = OVERHEARING
        self._wake = self.engine.loop.call_later(action.seconds, self._woken, b"")
        self._watch(READ)
        self._look_above()
        return PENDING

    def wait(self, action: sansio.Wait) -> object:
        """Perform ``Wait``."""
        self._wake = self.engine.loop.call_later(action.seconds, self._woken, None)
        return PENDING

    def _woken(self, answer: object) -> None:
        self._wake = None
        self.resume(answer)


def _same(action: Effect) -> Effect:
    return action

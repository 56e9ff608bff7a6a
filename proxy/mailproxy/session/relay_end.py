# SPDX-License-Identifier: Apache-2.0
"""Copying bytes from one side of a relay to the other, with nothing kept that does not have to be.

Little goes by ``recv`` and ``send``; a read that fills its buffer makes that
direction *bulk*: through a pipe inside the kernel where both sides are plain,
through one large buffer of the worker's where TLS is in the way.  While one
side has not taken what it was given, the other is not read: that is held in
memory (at most ``HELD`` bytes per direction) or in the pipe.
"""

from __future__ import annotations

from typing import Final, Protocol

from mailproxy.closing import end_writing
from mailproxy.context import WorkerContext
from mailproxy.loop.epoll import BROKEN, QUIET, READ, WRITE
from mailproxy.net.nonblocking import CLOSED_BY_TLS, WOULD_BLOCK
from mailproxy.session.relay_socket import RelaySocket, SinkBroken

SMALL: Final = 16 * 1024
"""Bytes of an ordinary read; one that fills it makes the direction bulk."""
ROUNDS: Final = 4
"""Bulk transfers per event (1 MiB in all under TLS), so that a busy session does not delay the others."""
_PARKED: Final = -1


class Account(Protocol):
    """What two ends share, as far as they deal with it themselves.

    Attributes:
        active: When something last moved, by the reactor's clock.
        spoke_last: The end that did.
        upstream: The end that is told when the other has ended.
    """

    active: float
    engine: WorkerContext
    spoke_last: RelayEnd
    upstream: RelayEnd

    def has_ended(self, end: RelayEnd) -> bool:
        """One side has said everything; tell whether it is the first to."""
        ...

    def is_complete(self) -> bool:
        """Whether nobody has anything left to say that the other waits for."""
        ...

    def bound_silence(self) -> None:
        """Bound the time that what is left has."""
        ...

    def go_on(self, end: RelayEnd) -> None:
        """Carry what a turn has left above a side's socket; called a turn later."""
        ...

    def broke(self, side: RelaySocket) -> None:
        """A connection broke: the end of both."""
        ...

    def close(self) -> None:
        """Close both sides."""
        ...


class RelayEnd(RelaySocket):
    """A side that says what it says to another one; a reactor's handler.

    Attributes:
        account: What it shares with the other side.
        other: The other side.
    """

    __slots__ = ("account", "other")

    account: Account
    other: RelayEnd

    # -- readiness

    def on_event(self, mask: int) -> None:
        """Write what waits to be written here, then read what came."""
        relay, other = self.account, self.other
        try:
            if mask & WRITE and self.is_behind:
                self._write_pending()
            if mask & (READ | BROKEN) and not self.is_over:
                self.carry()
            elif mask & BROKEN:
                relay.broke(self)
                return
        except SinkBroken as broken:
            relay.broke(broken.side)
            return
        except CLOSED_BY_TLS:
            self._ended()
        except OSError:
            relay.broke(self)
            return
        relay.active = relay.engine.reactor.now
        if mask & BROKEN or self.is_over or self.is_behind or other.is_behind or self.mask != other.mask:
            self._settle(is_broken=bool(mask & BROKEN))

    def _settle(self, *, is_broken: bool) -> None:
        """Watch both sides for what can go on now; end when nothing can."""
        relay, other = self.account, self.other
        if relay.is_complete():
            relay.close()
            return
        if is_broken and other.is_behind:
            self._park()
            relay.bound_silence()
        self.watch()
        other.watch()

    def watch(self) -> None:
        """Read here unless the other side is behind; write here if it is this one."""
        wanted = QUIET
        if not self.is_over and not self.other.is_behind:
            wanted = READ
        if self.is_behind:
            wanted |= WRITE
        if wanted == self.mask:
            return
        reactor = self.account.engine.reactor
        if self.mask != _PARKED:
            reactor.want(self.fd, wanted)
        elif wanted == QUIET:
            return
        else:
            reactor.add(self.fd, self, wanted)
        self.mask = wanted

    def _park(self) -> None:
        """Stop watching altogether: a hang-up is reported again and again, wanted or not."""
        if self.mask != _PARKED:
            self.mask = _PARKED
            self.account.engine.reactor.remove(self.fd)

    @property
    def owner(self) -> Account:
        """What ends with an exception of our own."""
        return self.account

    # -- from this side to the other

    def carry(self) -> None:
        """Read what there is, and write it to the other side."""
        other = self.other
        if other.is_behind:
            return
        try:
            data = self.sock.recv(SMALL)
        except WOULD_BLOCK:
            return
        if not data:
            self._ended()
            return
        size = len(data)
        self.moved += size
        self.counter.value += size
        self.account.spoke_last = self
        other.write(data)
        tls = self.tls
        if not (size == SMALL if tls is None else tls.pending()) or other.is_behind:
            return  # what is left waits where it is while the other side is behind: it must not overtake
        if tls is None and other.tls is None:
            self._carry_through_pipe()
        else:
            self._carry_through_buffer()

    def _carry_through_buffer(self) -> None:
        buffer = self.account.engine.buffer
        most = self.most(len(buffer))
        view = memoryview(buffer)[:most]
        for _ in range(ROUNDS * len(buffer) // most):
            filled, ended = self.fill(view)
            if filled:
                taken = self.other.write_from(view[:filled])
                self.took(view[:taken])
                self.count(taken)
            if ended:
                self._ended()
                return
            if self.other.is_behind or (filled < most and not (self.tls and self.tls.pending())):
                return
        if self.tls is not None and self.tls.pending():
            relay = self.account
            relay.engine.loop.call_soon(relay.go_on, self)

    def _carry_through_pipe(self) -> None:
        engine, other = self.account.engine, self.other
        pipe = engine.pipes.take()
        if pipe is None:
            self._carry_through_buffer()
            return
        try:
            for _ in range(ROUNDS):
                count = self.into(pipe)
                if count <= 0:
                    if count == 0:
                        self._ended()
                    return
                self.count(count)
                pipe.holds = count
                if not other.out_of(pipe):
                    other.pipe, other.is_behind = pipe, True
                    return
                if count < SMALL:
                    return
        finally:
            if other.pipe is not pipe:
                engine.pipes.give_back(pipe)

    def count(self, data: int) -> None:
        """Book bytes that this side said."""
        self.moved += data
        self.counter.value += data
        self.account.spoke_last = self

    # -- to this side

    def _write_pending(self) -> None:
        if self.pipe is not None:
            if not self.out_of(self.pipe):
                return
            self.account.engine.pipes.give_back(self.pipe)
            self.pipe, self.is_behind = None, False
        else:
            data, self.pending, self.is_behind = self.pending, b"", False
            self.write(data)
        other = self.other
        if not self.is_behind:
            if other.is_over:
                self.finish_writing()
            elif other.tls and other.tls.pending():
                self.account.engine.loop.call_soon(self.account.go_on, other)  # its errors are its own

    # -- the end

    def _ended(self) -> None:
        self.is_over = True
        relay, other = self.account, self.other
        is_first = relay.has_ended(self)
        if not relay.is_complete():
            if is_first:
                relay.bound_silence()
            if not other.is_behind:
                other.finish_writing()

    def finish_writing(self) -> None:
        """The other side has ended, and everything it said is written: say so to this one."""
        if not self.is_over and self is self.account.upstream:
            end_writing(self.sock)

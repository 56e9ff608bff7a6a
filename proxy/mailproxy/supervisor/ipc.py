# SPDX-License-Identifier: Apache-2.0
"""Messages and open sockets between the supervisor and one worker, over a unix stream socket pair.

A message is one JSON object.  On the wire it is eight bytes (the length of
the JSON and the number of descriptors, both big-endian), then the JSON.  The
descriptors are sent as ``SCM_RIGHTS``, each batch with one byte of the JSON,
since the kernel accepts about 250 of them per call.  The receiver reads the
first eight bytes alone, so that it can close reserved descriptors before the
kernel passes the new ones: those for which there is no room are lost
(``MSG_CTRUNC``).  Both ends are processes of the same proxy; the limits bound
the memory that a defective peer can use.

The same class serves both ends, on any asyncio event loop with ``add_reader``.
Nothing here blocks: what does not fit the socket's buffer is queued, and the
channel is closed when the queue is longer than ``MAX_BACKLOG``.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

Message = dict[str, object]

MAX_MESSAGE_SIZE: Final = 16 * 1024 * 1024
"""The largest JSON text of one message, in bytes."""

MAX_DESCRIPTORS: Final = 1600
"""The maximum number of descriptors of one message."""

MAX_BACKLOG: Final = 64 * 1024 * 1024
"""The maximum number of bytes that are queued for a peer that does not read."""

_HEADER: Final = struct.Struct(">II")
_BATCH: Final = 200
_READ: Final = 256 * 1024
_ANCILLARY: Final = socket.CMSG_SPACE(253 * array.array("i").itemsize)


class ChannelError(Exception):
    """The peer sent an invalid message, does not read, or has closed its end."""


class Channel:
    """One end of the pair.

    Args:
        sock: The connected end; the channel owns it from now on.
        received: Called with each message and its descriptors, which the
            callee owns; without descriptors where some were lost because too
            many files are open.  The event loop's exception handler gets its
            exceptions.
        closed: Called once when the peer has closed its end, with ``None``
            after a complete message and the reason otherwise.  Not called
            after ``close``.
        reserve_room: Called with the number of descriptors that the next message carries.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        received: Callable[[Message, list[int]], None],
        closed: Callable[[ChannelError | None], None],
        reserve_room: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._sock = sock
        self._received = received
        self._closed = closed
        self._reserve_room = reserve_room
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in = bytearray()
        self._in_descriptors: list[int] = []
        self._has_lost_descriptors = False
        self._out: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._out_bytes = 0
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether messages can still be sent."""
        return self._is_open

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start reading, on ``loop``."""
        self._sock.setblocking(False)
        self._loop = loop
        loop.add_reader(self._sock.fileno(), self._read)

    def send(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send a message, now or as soon as there is room.

        Args:
            message: A JSON object.
            descriptors: Open descriptors to send with it, in order.  They are
                duplicated; the caller may close its own.

        Raises:
            ChannelError: The channel is closed, the message is larger than
                the limits, or the peer has stopped reading.
            OSError: The descriptors cannot be duplicated; nothing was sent.
        """
        if not self._is_open:
            raise ChannelError("the channel is closed")
        text = json.dumps(message, separators=(",", ":")).encode()
        _require_within_limits(len(text), len(descriptors))
        if self._out_bytes + len(text) > MAX_BACKLOG:
            raise ChannelError("the peer does not read")
        was_idle = not self._out
        duplicates = _duplicates(descriptors)
        self._out.append((memoryview(_HEADER.pack(len(text), len(descriptors))), ()))
        self._enqueue(text, duplicates)
        if was_idle:
            self._write()

    def close(self) -> None:
        """Close this end; what has not been sent is dropped, and ``closed`` is not called."""
        if not self._is_open:
            return
        self._is_open = False
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        for _, descriptors in self._out:
            _close_all(descriptors)
        self._out.clear()
        _close_all(self._in_descriptors)
        self._in_descriptors.clear()
        self._sock.close()

    def flush(self, seconds: float) -> None:
        """Send what is queued before the process exits; blocks for about ``seconds`` at most."""
        if not self._is_open:
            return
        self._sock.settimeout(seconds)
        while self._out and self._write_first():
            pass

    def _enqueue(self, text: bytes, duplicates: Sequence[int]) -> None:
        rest = memoryview(text)
        for start in range(0, len(duplicates), _BATCH):
            is_last = start + _BATCH >= len(duplicates)
            head = rest if is_last else rest[:1]
            self._out.append((head, tuple(duplicates[start : start + _BATCH])))
            rest = rest[len(head) :]
        if rest:
            self._out.append((rest, ()))
        self._out_bytes += _HEADER.size + len(text)

    def _write(self) -> None:
        while self._out:
            if not self._write_first():
                break
        if not self._is_open or self._loop is None:
            return
        if self._out:
            self._loop.add_writer(self._sock.fileno(), self._write)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _write_first(self) -> bool:
        """Send as much of the first queued item as fits; returns whether to go on."""
        data, descriptors = self._out[0]
        try:
            sent = socket.send_fds(self._sock, [data], descriptors) if descriptors else self._sock.send(data)
        except (BlockingIOError, InterruptedError, TimeoutError):
            return False
        except OSError as error:
            self._fail(ChannelError(f"cannot send: {error.strerror or error}"))
            return False
        _close_all(descriptors)
        self._out_bytes -= sent
        if sent == len(data):
            self._out.popleft()
        else:
            self._out[0] = (data[sent:], ())
        return True

    def _read(self) -> None:
        """Read one message, as far as it has arrived."""
        while self._is_open:
            try:
                missing = self._missing()
            except ChannelError as error:
                self._fail(error)
                return
            if not missing:
                self._deliver()
                return
            if not self._receive(min(missing, _READ)):
                return

    def _missing(self) -> int:
        """Return how many bytes of a message's header, or of the message, are still to be read."""
        if len(self._in) < _HEADER.size:
            return _HEADER.size - len(self._in)
        length, count = _HEADER.unpack_from(self._in)
        if len(self._in) == _HEADER.size:
            _require_within_limits(length, count)
            self._reserve_room(count)
        return int(_HEADER.size + length - len(self._in))

    def _receive(self, size: int) -> bool:
        """Receive at most ``size`` bytes; returns whether to go on."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._fail(ChannelError(f"cannot receive: {error.strerror or error}"))
            return False
        self._in_descriptors.extend(_descriptors(ancillary))
        self._has_lost_descriptors = self._has_lost_descriptors or bool(flags & socket.MSG_CTRUNC)
        self._in += data
        if not data:
            self._fail(ChannelError("the peer closed the channel within a message") if self._in else None)
        return bool(data)

    def _deliver(self) -> None:
        """Pass the complete message to ``received``."""
        _, count = _HEADER.unpack_from(self._in)
        descriptors, self._in_descriptors = self._in_descriptors, []
        has_lost_descriptors, self._has_lost_descriptors = self._has_lost_descriptors, False
        text, self._in = bytes(self._in[_HEADER.size :]), bytearray()
        if has_lost_descriptors:
            _close_all(descriptors)
            descriptors = []
        try:
            message = _parse_json(text)
            if len(descriptors) != count and not has_lost_descriptors:
                raise ChannelError("descriptors are missing")
        except ChannelError as error:
            _close_all(descriptors)
            self._fail(error)
            return
        self._received(message, descriptors)

    def _fail(self, error: ChannelError | None) -> None:
        if self._is_open:
            self.close()
            self._closed(error)


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return a socket pair: the supervisor's end, and the one that a worker inherits."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _require_within_limits(length: int, count: int) -> None:
    if length > MAX_MESSAGE_SIZE:
        raise ChannelError(f"message of {length} bytes, at most {MAX_MESSAGE_SIZE} accepted")
    if count > MAX_DESCRIPTORS:
        raise ChannelError(f"{count} descriptors in one message, at most {MAX_DESCRIPTORS} accepted")


def _parse_json(text: bytes) -> Message:
    try:
        message = json.loads(text)
    except ValueError as error:
        raise ChannelError("a message is not JSON") from error
    if not isinstance(message, dict):
        raise ChannelError("a message is not a JSON object")
    return message


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    duplicates: list[int] = []
    try:
        for descriptor in descriptors:
            duplicates.append(os.dup(descriptor))  # noqa: PERF401 - whatever was duplicated is closed again
    except OSError:
        _close_all(duplicates)
        raise
    return duplicates


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

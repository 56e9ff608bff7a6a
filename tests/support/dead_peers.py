# SPDX-License-Identifier: Apache-2.0
"""A connection whose peer drops every segment and acknowledges none."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any, Final

_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_RETURN_NOTHING: Final = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A classic BPF program of one instruction, ``ret 0``: keep no byte of any packet (bpf(2), socket(7))."""


def stop_acknowledging(sock: Any) -> None:
    """Drop all segments that arrive for this socket from now on, as a firewall without the connection does.

    On a listening socket, connection requests are dropped, so that ``connect`` does not return.
    """
    program = ctypes.create_string_buffer(_RETURN_NOTHING, len(_RETURN_NOTHING))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def acknowledge_again(sock: Any) -> None:
    """Undo ``stop_acknowledging``."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: which ones a configuration needs, how to open them, and what to do on reload.

``plan`` decides and is pure; ``open_sockets`` acts.  Nobody accepts here.
"""

from mailproxy.runtime.sockets.names import resolve_names
from mailproxy.runtime.sockets.opening import CannotListen, close_sockets, open_sockets
from mailproxy.runtime.sockets.options import Clamp, clamps
from mailproxy.runtime.sockets.plan import Difference, Route, SocketPlan, difference, plan

__all__ = [
    "CannotListen",
    "Clamp",
    "Difference",
    "Route",
    "SocketPlan",
    "clamps",
    "close_sockets",
    "difference",
    "open_sockets",
    "plan",
    "resolve_names",
]

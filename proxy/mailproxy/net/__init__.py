# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: which ones a configuration needs, how to open them, and what to do on reload.

``plan`` decides and is pure; ``open_sockets`` acts.  Nobody accepts here.
"""

from mailproxy.net.listen_names import resolve_names
from mailproxy.net.listen_open import CannotListen, close_sockets, open_sockets
from mailproxy.net.listen_plan import Difference, Route, SocketPlan, difference, plan
from mailproxy.net.socket_options import Clamp, clamps

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

# SPDX-License-Identifier: Apache-2.0
"""Exceptions of non-blocking sockets, with TLS or without, that are no errors."""

from __future__ import annotations

import ssl
from typing import Final

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""Nothing can be read or written now."""
CLOSED_BY_TLS: Final = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
"""The peer sends nothing more; a socket without TLS returns no bytes then."""

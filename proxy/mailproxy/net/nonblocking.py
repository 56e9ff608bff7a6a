# SPDX-License-Identifier: Apache-2.0
"""What a socket that does not block raises, with TLS or without, where nothing is broken."""

from __future__ import annotations

import ssl
from typing import Final

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""The operation would block."""
CLOSED_BY_TLS: Final = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
"""The peer has closed TLS; a plain socket returns no bytes instead."""

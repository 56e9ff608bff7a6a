# SPDX-License-Identifier: Apache-2.0
"""The stubs with an SMTP server that accepts AUTH PLAIN, with or without an initial response.

Run as ``python -m benchmarks.verdict_stub_servers AUTH IMAP BARE POP3 SMTP`` (ports).
"""

from __future__ import annotations

import gc
import os
import sys

from benchmarks.stub_servers import StubServers

_LINES = 4096
_EHLO = b"250-backend\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n"


class VerdictStubServers(StubServers):
    """The same, with AUTH."""

    def _serve_smtp(self, fd: int) -> None:
        received = os.read(fd, _LINES)
        if received.startswith(b"EHLO"):
            os.write(fd, _EHLO)
        else:
            os.write(fd, b"334 \r\n" if received == b"AUTH PLAIN\r\n" else b"235 2.7.0 OK\r\n")


if __name__ == "__main__":
    stub_servers = VerdictStubServers(*map(int, sys.argv[1:]))
    gc.disable()  # this module creates no reference cycles
    stub_servers.serve()

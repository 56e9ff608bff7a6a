# SPDX-License-Identifier: Apache-2.0
"""Asyncio streams of the tests' own clients and servers."""

from __future__ import annotations

import asyncio


def abort(writer: asyncio.StreamWriter) -> None:
    """Abort a connection, which may be closed already.

    Python before 3.11.4 raises AttributeError for a TLS connection that was closed twice.
    """
    transport = writer.transport
    if getattr(transport, "_ssl_protocol", transport) is not None:
        transport.abort()

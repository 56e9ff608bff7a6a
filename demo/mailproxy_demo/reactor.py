# SPDX-License-Identifier: Apache-2.0
"""Twisted's reactor on asyncio's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import installReactor
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner


def install_reactor(report: Callable[[str], object]) -> AsyncioSelectorReactor:
    """Make Twisted use the running event loop.

    Must be called once in a process, before any module of Twisted that uses the reactor is imported.

    Args:
        report: Receives the errors that Twisted logs.

    Raises:
        twisted.internet.error.ReactorAlreadyInstalledError: It was called before.
    """

    def observe(event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.error:
            failure = event.get("log_failure")
            report(f"mail server: {failure.getErrorMessage() if failure else formatEvent(event)}")

    globalLogBeginner.beginLoggingTo(
        [cast(ILogObserver, observe)], discardBuffer=True, redirectStandardIO=False
    )
    reactor = AsyncioSelectorReactor(asyncio.get_running_loop())
    installReactor(reactor)
    reactor.startRunning(installSignalHandlers=False)
    return reactor

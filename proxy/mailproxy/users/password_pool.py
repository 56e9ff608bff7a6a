# SPDX-License-Identifier: Apache-2.0
"""Verifies passwords in threads of a worker, so that the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

from mailproxy.protocols.types import Secret
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.users.password_hash import verify_password

THREADS: Final = 2
"""Verifications at the same time in one worker.  With argon2id each may need 64 MiB of memory."""
MAX_PENDING: Final = 64
"""Verifications that wait or run in one worker; further logins are an outage."""

Verified = Callable[[bool | Exception], None]
"""Gets whether the password is right, or the error of the library."""


class PasswordPool:
    """The threads of one worker that verify passwords; they begin with the first verification.

    Args:
        loop: The worker's event loop, on which results are delivered.
        metrics: The worker's metrics.
    """

    __slots__ = ("_executor", "_loop", "_metrics", "_pending")

    def __init__(self, loop: asyncio.AbstractEventLoop, metrics: WorkerMetrics) -> None:
        self._loop = loop
        self._metrics = metrics
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="password")
        self._pending = 0

    def submit(self, hashed: bytes, password: Secret, on_verified: Verified) -> Verification | None:
        """Begin to verify a password; ``None`` if too many wait already.

        Args:
            hashed: A hash that ``hash_cost`` accepts.
            password: The password.
            on_verified: Called on the event loop, never from here, and not after a cancellation.
        """
        if self._pending >= MAX_PENDING:
            return None
        self._set_pending(self._pending + 1)
        future = self._executor.submit(_verify, hashed, password)
        future.add_done_callback(partial(self._on_done, on_verified))
        return future

    def close(self) -> None:
        """Drop what waits; verifications that run come to their end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _on_done(self, on_verified: Verified, future: Verification) -> None:
        """Runs in a thread of the pool, or where the verification was cancelled."""
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._finish, on_verified, future)

    def _finish(self, on_verified: Verified, future: Verification) -> None:
        self._set_pending(self._pending - 1)
        if future.cancelled():
            return
        error = future.exception()
        if isinstance(error, Exception):
            on_verified(error)
            return
        is_right, seconds = future.result()
        self._metrics.password_seconds.observe(seconds)
        on_verified(is_right)

    def _set_pending(self, number: int) -> None:
        self._pending = number
        self._metrics.passwords_pending.value = number


Verification = Future[tuple[bool, float]]
"""A verification in the pool; its result is whether the password is right, and the seconds that it took."""


def _verify(hashed: bytes, password: Secret) -> tuple[bool, float]:
    started = time.monotonic()
    is_right = verify_password(hashed, password.reveal())
    return is_right, time.monotonic() - started

# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of refused passwords for the log (``log_password_fingerprint``).

The same password has the same fingerprint in all lines of a pod, so that one password that is tried with
many users can be seen.  The key is random, in memory only, and the same for all workers of the pod.
"""

from __future__ import annotations

import hmac
from typing import Final

from mailproxy.enums import CLEAR_PASSWORD_METHODS
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.protocols.types import Credentials

BYTES: Final = 8
"""Of a fingerprint."""


class PasswordFingerprints:
    """Makes the fingerprints of one worker.

    Args:
        memory: Shared by all workers; it contains the key.
    """

    __slots__ = ("_key",)

    def __init__(self, memory: SharedMemory) -> None:
        self._key = memory.random_key()

    def make(self, credentials: Credentials) -> str:
        """Return the fingerprint in hexadecimal; empty where there is no password in clear text."""
        secret = credentials.password
        if secret is None or credentials.method not in CLEAR_PASSWORD_METHODS:
            return ""
        return hmac.digest(self._key, secret.reveal(), "sha256")[:BYTES].hex()

# SPDX-License-Identifier: Apache-2.0
"""Time to verify a password of each kind of hash, and how long the event loop's thread has to wait meanwhile.

``python -m benchmarks.passwords``: CPU time of one verification, and the longest pause of a thread that
runs Python meanwhile.  A library that holds the interpreter's lock makes a pause as long as itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import bcrypt
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from passlib.hash import sha512_crypt

from mailproxy.users.password_hash import verify_password

PASSWORD = b"correct-horse"


def hashes() -> Iterator[tuple[str, bytes]]:
    """Yield a hash of each kind and cost, with its name."""
    for cost in (5, 10, 12):
        yield f"bcrypt, cost {cost}", bcrypt.hashpw(PASSWORD, bcrypt.gensalt(cost))
    for rounds in (5000, 100_000, 200_000):
        made = sha512_crypt.using(rounds=rounds).hash(PASSWORD)
        yield f"sha512-crypt, {rounds} rounds", made.encode()
    for memory, passes, lanes in ((19456, 2, 1), (65536, 3, 4), (65536, 10, 1)):
        derivation = Argon2id(
            salt=b"0123456789abcdef", length=32, iterations=passes, lanes=lanes, memory_cost=memory
        )
        yield (
            f"argon2id, m={memory},t={passes},p={lanes}",
            derivation.derive_phc_encoded(PASSWORD).encode(),
        )


def measure(hashed: bytes) -> tuple[float, float]:
    """Return the CPU time of one verification, and the longest pause of this thread, in seconds."""
    seconds = 0.0

    def verify() -> None:
        nonlocal seconds
        started = time.process_time()
        verify_password(hashed, PASSWORD)
        seconds = time.process_time() - started

    verify()
    alone = seconds
    thread = threading.Thread(target=verify)
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while thread.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return alone, longest


def main() -> None:
    """Print a table."""
    for name, hashed in hashes():
        alone, longest = min(measure(hashed) for _ in range(3))
        print(f"| {name} | {alone * 1000:.1f} ms | {longest * 1000:.0f} ms |")


if __name__ == "__main__":
    main()

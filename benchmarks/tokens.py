# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.tokens``: the cost of validating an access token, and whether a thread helps.

Needs no network: an issuer of the tests makes tokens, and ``authMode: Jwt``'s functions validate
them in this process.  ``benchmarks/TOKENS.md`` has the results.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from mailproxy.oauth.access_token import ParsedToken, check_claims, parse_token
from mailproxy.oauth.issuer_keys import IssuerKey, parse_jwks
from mailproxy_config.oauth_issuer import TokenAlgorithm
from support.token_issuer import KEY_IDS, Issuer

ROUNDS: Final = 15
_ALL: Final = tuple(TokenAlgorithm)


def microseconds(call: Callable[[], object], times: int) -> tuple[float, float]:
    """Return the minimum and the median of several rounds, per call, in CPU time."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(times):
            call()
        rounds.append((time.process_time_ns() - started) / times / 1000)
    return min(rounds), statistics.median(rounds)


def in_threads(verify: Callable[[], object], times: int) -> float:
    """Return how much sooner two threads are done than one, with the same work: 2 is twice as fast."""

    def repeat(count: int) -> None:
        for _ in range(count):
            verify()

    def seconds(*counts: int) -> float:
        threads = [threading.Thread(target=repeat, args=(count,)) for count in counts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    return min(seconds(times) for _ in range(3)) / min(seconds(times // 2, times // 2) for _ in range(3))


async def hop(times: int) -> float:
    """Return the microseconds of a call in a thread of the event loop's executor that does nothing."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, int)
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(times):
            await loop.run_in_executor(None, int)
        rounds.append((time.process_time_ns() - started) / times / 1000)
    return min(rounds)


def main() -> None:
    """Print the tables."""
    issuer = Issuer()
    keys: dict[str, IssuerKey] = parse_jwks(issuer.jwks())
    config, now = issuer.config(), time.time()
    print("| Algorithm | bytes | parse | signature | claims | all | two threads |")
    print("|---|---|---|---|---|---|---|")
    for algorithm, kid in KEY_IDS.items():
        token, key = issuer.token(algorithm), keys[kid]
        parsed: ParsedToken = parse_token(token)

        def validate(token: bytes = token, key: IssuerKey = key) -> None:
            found = parse_token(token)
            key.verify(found, _ALL)
            check_claims(found, config, b"", now)

        def verify(parsed: ParsedToken = parsed, key: IssuerKey = key) -> None:
            key.verify(parsed, _ALL)

        parts = (
            microseconds(lambda token=token: parse_token(token), 500)[0],  # type: ignore[misc]
            microseconds(verify, 100)[0],
            microseconds(lambda parsed=parsed: check_claims(parsed, config, b"", now), 500)[0],  # type: ignore[misc]
        )
        minimum, _ = microseconds(validate, 100)
        columns = " | ".join(f"{part:.0f}" for part in (*parts, minimum))
        print(f"| {algorithm} | {len(token)} | {columns} | {in_threads(verify, 400):.2f} |")
    longest = issuer.token(padding="x" * 11_500)
    largest = b"." * 16_384
    parsing = microseconds(lambda: parse_token(longest), 200)[0]
    refusing = microseconds(lambda: _refused(largest), 200)[0]
    print(f"\nA token of {len(longest)} bytes: {parsing:.0f} µs to parse.")
    print(f"Refusing {len(largest)} bytes that are none: {refusing:.1f} µs.")
    print(f"A call in a thread that does nothing: {asyncio.run(hop(300)):.0f} µs.")
    body = issuer.jwks()
    print(f"Reading a set of {len(keys)} keys: {microseconds(lambda: parse_jwks(body), 20)[0]:.0f} µs.")


def _refused(token: bytes) -> None:
    try:
        parse_token(token)
    except Exception:
        return
    raise AssertionError


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""When refusals of logins are sent that waited before they were checked (``auth_mode upstream``)."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.penalty import pod_state
from mailproxy.penalty.rules import PenaltyRules
from mailproxy.session.refusal_times import RefusalTimes
from mailproxy_config.limits import LimitReq, LimitReqZone
from mailproxy_config.model import Protocol
from mailproxy_config.policy_server import AuthPolicyServer
from support.loopback_worker import LoopbackWorker, run
from support.policy_server import answer, policy_server
from support.routed_worker import routed_worker

STRANGER: Final = b"bob@example.com"
"""No route leads to an upstream."""
REFUSED: Final = b"a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
RATE: Final = LimitReqZone(zone="rate", key="$remote_addr", size=65536, rate=60)
DELAYS: Final[dict[str, tuple[dict[str, Any], float]]] = {
    "penalty": ({"auth_penalty": True}, 0.5),
    "limit_req": ({"limit_req_zone": (RATE,), "limit_req": (LimitReq(zone="rate", burst=3),)}, 0.5),
    "policy server": ({}, 1.0),
}
"""Directives, and the seconds that the second login waits with them at least."""


async def refuse(w: LoopbackWorker, user: bytes, password: bytes) -> None:
    client = await w.client()
    await client.read_line()
    await client.send(b"a LOGIN %b %b\r\n" % (user, password))
    if user != STRANGER:
        upstream = await w.upstream.accept()
        for line in (b"* OK ready\r\n", b"+ go\r\n", b"+ go\r\n"):
            await upstream.exchange(line)
        await upstream.send(b"a NO [AUTHENTICATIONFAILED] no\r\n")
    assert await client.read_line() == REFUSED
    client.close()
    await w.wait_for_sessions(0)


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("user", [STRANGER, b"bob@example.org"], ids=["no route", "route"])
def test_delay_before_the_check_is_no_part_of_the_time_of_a_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: bytes, delay: str
) -> None:
    """Else a refusal without an upstream would be the earlier one after a long delay."""
    elapsed: list[float] = []

    def seconds_left(_: RefusalTimes, seconds: float, **__: Any) -> float:
        elapsed.append(seconds)
        return 0.0

    monkeypatch.setattr(RefusalTimes, "seconds_left", seconds_left)
    monkeypatch.setattr(pod_state, "RULES", PenaltyRules(waits=(0.0, 1.0, 1.0)))
    nonce = tmp_path / "nonce"
    nonce.write_bytes(b"nonce-of-the-test\n")
    fixed, least = DELAYS[delay]
    directives = dict(fixed)

    async def play() -> None:
        async with AsyncExitStack() as stack:
            if delay == "policy server":
                policy = await stack.enter_async_context(policy_server(answer(1)))
                asked = AuthPolicyServer(url=policy.url, nonce_file=str(nonce), check_after=False)
                directives["auth_policy_server"] = asked
            w = await stack.enter_async_context(routed_worker(Protocol.IMAP, **directives))
            for password in (b"one", b"two"):
                await refuse(w, user, password)
            durations = [float(found) for found in re.findall(r" login=([\d.]+)s", w.read_log())]
            assert len(durations) == len(elapsed) == 2
            assert durations[1] >= least
            assert elapsed[1] <= durations[1] - least + 0.0001  # the log has four digits

    run(play)

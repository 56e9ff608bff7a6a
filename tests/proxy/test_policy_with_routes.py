# SPDX-License-Identifier: Apache-2.0
"""Refusals of a policy server without an authentication service (``auth_mode upstream``, ``static``)."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.session import refusal_times
from mailproxy_config.model import AuthMode, Protocol
from mailproxy_config.policy_server import AuthPolicyServer
from mailproxy_config.upstream_login import ProxyAuth
from support.loopback_worker import LoopbackWorker, run
from support.policy_server import answer, policy_server
from support.routed_worker import routed_worker

REFUSED: Final = {
    Protocol.IMAP: b"a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n",
    Protocol.POP3: b"-ERR [AUTH] Authentication failed.\r\n",
    Protocol.SMTP: b"535 5.7.8 Authentication failed.\r\n",
}
"""The replies to a wrong password."""
BCRYPT: Final = "$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS"
"""Of the password ``correct-horse``."""


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 0.01)


async def login(w: LoopbackWorker, protocol: Protocol, user: bytes) -> bytes:
    client = await w.client()
    await client.read_line()
    if protocol is Protocol.IMAP:
        return await client.exchange(b"a LOGIN %b correct-horse\r\n" % user)
    return await client.exchange(b"AUTH PLAIN " + b64encode(b"\0%b\0correct-horse" % user) + b"\r\n")


@pytest.mark.parametrize("check_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("mode", [AuthMode.UPSTREAM, AuthMode.STATIC])
@pytest.mark.parametrize("protocol", Protocol)
def test_refused_login_gets_the_reply_to_a_wrong_password(
    tmp_path: Path, protocol: Protocol, mode: AuthMode, check_before: bool
) -> None:
    """With and without a route; which domains have one is not seen."""
    nonce, users = tmp_path / "nonce", tmp_path / "users"
    nonce.write_bytes(b"nonce-of-the-test\n")
    users.write_text(f"bob@example.org:{BCRYPT}\n")
    directives: dict[str, Any] = {"auth_mode": mode}
    if mode is AuthMode.STATIC:
        directives["auth_user_file"] = str(users)
        if protocol is Protocol.SMTP:
            directives |= {"proxy_smtp_auth": True, "proxy_auth": (ProxyAuth.PLAIN,)}

    async def play() -> None:
        async with policy_server(answer(-1, msg="country")) as policy:
            directives["auth_policy_server"] = AuthPolicyServer(
                url=policy.url, nonce_file=str(nonce), check_before=check_before
            )
            async with routed_worker(protocol, **directives) as w:
                for user in (b"bob@example.org", b"bob@example.com"):
                    assert await login(w, protocol, user) == REFUSED[protocol]
                assert w.upstream.accepted.empty()
                asked = [body["login"] for body in policy.bodies("allow")]
                assert asked == ["bob@example.org", "bob@example.com"][: 1 + check_before]
                assert w.read_log().count("info policy_refused") == len(asked)

    run(play)

# SPDX-License-Identifier: Apache-2.0
"""How an exception of our own finds what it ends: owners, the event loop, draining, loading."""

from __future__ import annotations

import asyncio
import functools
import gc
import socket
from typing import Any

import pytest

from mailproxy import app
from mailproxy.containment import name_of, owner_of
from mailproxy.session import session
from mailproxy.session.relay import Relay
from mailproxy.session.session import Session
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import Protocol, ProxyConfig
from support import invariants
from support.faults import HIDDEN, Fault, breaking, clear, descriptors
from support.siege import GREETINGS, heard, relayed, serving
from support.world import GRANT, answer, run, world

GREETING = GREETINGS[Protocol.POP3]


def test_an_owner_is_found_behind_every_kind_of_callback() -> None:
    class Owner:
        def crashed(self) -> None: ...
        def give_up(self) -> None: ...
        def callback(self, _: object = None) -> None: ...

    class Helper:
        def __init__(self, owner: Owner) -> None:
            self.owner = owner

        def callback(self) -> None: ...

    owner = Owner()
    helper = Helper(owner)
    loop = asyncio.new_event_loop()
    handle = loop.call_soon(functools.partial(helper.callback))
    loop.close()
    for culprit in (
        owner,
        owner.callback,
        functools.partial(owner.callback, 1),
        helper,
        helper.callback,
        handle,
    ):
        assert owner_of(culprit) is owner
    for culprit in (None, print, socket.socket.close, object(), lambda: None):
        assert owner_of(culprit) is None


def test_the_log_names_code_and_no_values() -> None:
    loop = asyncio.new_event_loop()
    handle = loop.call_soon(print, HIDDEN)
    loop.close()
    assert name_of(handle) == "print"
    assert name_of(functools.partial(print, HIDDEN)) == "print"
    assert name_of(HIDDEN) == "str"


@pytest.mark.parametrize("how", ["callback", "task"])
def test_what_the_event_loop_catches_is_logged_without_values(how: str) -> None:
    async def fails() -> None:
        raise Fault(HIDDEN)

    def callback(_: str) -> None:
        raise Fault(HIDDEN)

    async def play() -> None:
        async with world(serving(Protocol.POP3), answer(GRANT)) as w:
            loop = asyncio.get_running_loop()
            if how == "callback":
                loop.call_soon(callback, HIDDEN)
            else:
                task = loop.create_task(fails())
                await asyncio.wait([task])
                del task
            await asyncio.sleep(0.05)
            gc.collect()
            await asyncio.sleep(0.05)
            log = w.read_log()
            assert log.count(" internal_error ") == 1, log
            assert HIDDEN not in log

    run(play)


@pytest.mark.parametrize("name", ["say_goodbye", "cut"])
def test_a_session_that_raises_does_not_keep_the_others_from_draining(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with world(serving(Protocol.POP3), answer(GRANT), closes=True) as w:
            peers = [await w.client() for _ in range(3)]
            for peer in peers:
                await peer.line()
            breaking(monkeypatch, (Session, name))()
            if name == "cut":
                w.app.stop()
            else:
                await w.app.drain(5.0)
            await asyncio.gather(*(heard(peer) for peer in peers))
            assert w.app.sessions == 0
            closed = invariants.series(w.metrics, "mailproxy_connections_closed_total")
            assert {labels[2]: count for labels, count in closed.items()} == {"drain": 2, "internal_error": 1}

    run(play)


def test_what_raises_while_it_ends_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the orderly end works: descriptors, gauges and the slot are given back by force."""

    async def play() -> None:
        async with world(serving(Protocol.POP3), answer(GRANT), closes=True) as w:
            before = invariants.descriptors()
            peers = [await w.client() for _ in range(3)]
            for peer in peers:
                await peer.line()
            relaying = await relayed(w)

            def fails(*_: Any) -> None:
                raise Fault(HIDDEN)

            for holder, name in ((session, "lingering_close"), (Session, "_leave"), (Relay, "close")):
                monkeypatch.setattr(holder, name, fails)
            for peer in (*peers, *relaying):
                await peer.say(b"QUIT\r\n")
                peer.writer.write_eof()
            await asyncio.gather(*(heard(peer) for peer in (*peers, *relaying)))
            clear(w)
            await invariants.settle(w.app, w.metrics)
            assert await descriptors(w.app, before) <= before
            assert HIDDEN not in w.read_log()

    run(play)


def test_a_configuration_whose_loading_raises_is_refused_and_the_old_one_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> None:
        async with world(serving(Protocol.POP3), answer(GRANT)) as w:
            config = ProxyConfig(servers=tuple(server.config for server in w.app._servers.values()))
            breaking(monkeypatch, (app, "_template"))()
            with pytest.raises(ConfigError, match=r"servers\[pop3\]: internal error \(Fault\)"):
                await w.app.apply(config, {}, names={}, ticket_keys={})
            peer = await w.client()
            assert await peer.line() == GREETING
            log = w.read_log()
            assert log.count(" internal_error ") == 1
            assert HIDDEN not in log

    run(play)

# SPDX-License-Identifier: Apache-2.0
"""An internal error ends only what it belongs to: owners, the event loop, draining, loading."""

from __future__ import annotations

import asyncio
import functools
import gc
import socket
from typing import Any

import pytest

from mailproxy import app
from mailproxy.context import name_of, owner_of
from mailproxy.session import session
from mailproxy.session.relay import Relay
from mailproxy.session.session import Session
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import Protocol
from support import invariants
from support.checked_worker import GREETINGS, open_relay, read_until_closed, server_builder
from support.fault_injection import SECRET_TEXT, Fault, close_peers, descriptors, inject_fault
from support.loopback_worker import GRANT, http_response, loopback_worker, run

GREETING = GREETINGS[Protocol.POP3]


def test_owner_is_found_for_every_kind_of_callback() -> None:
    class Owner:
        def on_internal_error(self) -> None: ...
        def force_close(self) -> None: ...
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
    for source in (
        owner,
        owner.callback,
        functools.partial(owner.callback, 1),
        helper,
        helper.callback,
        handle,
    ):
        assert owner_of(source) is owner
    for source in (None, print, socket.socket.close, object(), lambda: None):
        assert owner_of(source) is None


def test_name_of_contains_no_values() -> None:
    loop = asyncio.new_event_loop()
    handle = loop.call_soon(print, SECRET_TEXT)
    loop.close()
    assert name_of(handle) == "print"
    assert name_of(functools.partial(print, SECRET_TEXT)) == "print"
    assert name_of(SECRET_TEXT) == "str"


@pytest.mark.parametrize("how", ["callback", "task"])
def test_exception_caught_by_the_event_loop_is_logged_without_values(how: str) -> None:
    async def fails() -> None:
        raise Fault(SECRET_TEXT)

    def callback(_: str) -> None:
        raise Fault(SECRET_TEXT)

    async def play() -> None:
        async with loopback_worker(server_builder(Protocol.POP3), http_response(GRANT)) as w:
            loop = asyncio.get_running_loop()
            if how == "callback":
                loop.call_soon(callback, SECRET_TEXT)
            else:
                task = loop.create_task(fails())
                await asyncio.wait([task])
                del task
            await asyncio.sleep(0.05)
            gc.collect()
            await asyncio.sleep(0.05)
            log = w.read_log()
            assert log.count(" internal_error ") == 1, log
            assert SECRET_TEXT not in log

    run(play)


@pytest.mark.parametrize("name", ["drain", "abort"])
def test_exception_in_one_session_does_not_stop_draining_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with loopback_worker(server_builder(Protocol.POP3), http_response(GRANT), closes=True) as w:
            peers = [await w.client() for _ in range(3)]
            for peer in peers:
                await peer.read_line()
            inject_fault(monkeypatch, (Session, name))()
            if name == "abort":
                w.app.stop()
            else:
                await w.app.drain(5.0)
            await asyncio.gather(*(read_until_closed(peer) for peer in peers))
            assert w.app.sessions == 0
            closed = invariants.series(w.metrics, "mailproxy_connections_closed_total")
            assert {labels[2]: count for labels, count in closed.items()} == {"drain": 2, "internal_error": 1}

    run(play)


def test_session_whose_end_raises_is_closed_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors are closed and gauges decremented although every orderly way to close raises."""

    async def play() -> None:
        async with loopback_worker(server_builder(Protocol.POP3), http_response(GRANT), closes=True) as w:
            before = invariants.descriptors()
            peers = [await w.client() for _ in range(3)]
            for peer in peers:
                await peer.read_line()
            relaying = await open_relay(w)

            def fails(*_: Any) -> None:
                raise Fault(SECRET_TEXT)

            for holder, name in ((session, "lingering_close"), (Session, "_close"), (Relay, "close")):
                monkeypatch.setattr(holder, name, fails)
            for peer in (*peers, *relaying):
                await peer.send(b"QUIT\r\n")
                peer.writer.write_eof()
            await asyncio.gather(*(read_until_closed(peer) for peer in (*peers, *relaying)))
            close_peers(w)
            await invariants.wait_until_idle(w.app, w.metrics)
            assert await descriptors(w.app, before) <= before
            assert SECRET_TEXT not in w.read_log()

    run(play)


def test_configuration_whose_loading_raises_is_refused_and_the_old_one_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> None:
        async with loopback_worker(server_builder(Protocol.POP3), http_response(GRANT)) as w:
            inject_fault(monkeypatch, (app, "_template"))()
            with pytest.raises(ConfigError, match=r"servers\[pop3\]: internal error \(Fault\)"):
                await w.app.apply(w.config, {}, names={}, ticket_keys={})
            peer = await w.client()
            assert await peer.read_line() == GREETING
            log = w.read_log()
            assert log.count(" internal_error ") == 1
            assert SECRET_TEXT not in log

    run(play)

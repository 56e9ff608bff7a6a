# SPDX-License-Identifier: Apache-2.0
"""The pool: replacement of workers, reloads, draining."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from mailproxy.enums import RestartReason
from mailproxy.supervisor import child_process, launcher, worker_process
from mailproxy.supervisor import worker_pool as module
from mailproxy.supervisor.worker_pool import MAX_STARTUP_FAILURES, StartupError, WorkerPool
from mailproxy.supervisor.worker_process import WorkerProcess
from mailproxy.telemetry.metrics import Snapshot
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import LogLevel
from support.worker_processes import make_launcher, make_revision, our_sources

__all__ = ["our_sources"]
pytestmark = pytest.mark.usefixtures("our_sources")


class Bench:
    """A pool, one socket per slot, and its log events."""

    def __init__(self, tasks: asyncio.TaskGroup, listeners: list[socket.socket]) -> None:
        self.listeners = listeners
        self.events: list[tuple[str, dict[str, object]]] = []
        self.on_exit: list[int] = []
        self.snapshots: dict[int, Snapshot] = {}
        self.writers: list[asyncio.StreamWriter] = []
        self._news = asyncio.Event()
        self.launcher = make_launcher(tasks, log_event=self.log_event)
        self.pool = WorkerPool(
            tasks,
            self.launcher,
            on_snapshot=self.on_snapshot,
            on_exit=self.on_exit.append,
            log_event=self.log_event,
        )

    def on_snapshot(self, key: int, snapshot: Snapshot) -> None:
        self.snapshots[key] = snapshot

    def log_event(self, level: LogLevel, name: str, /, **fields: object) -> None:
        self.events.append((name, fields))
        self._news.set()

    def logged(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.events if event == name]

    async def wait_until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def client(self, slot: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.listeners[slot].getsockname())
        self.writers.append(writer)
        self.greeted = (await asyncio.wait_for(reader.readline(), 20)).decode().split()
        return reader, writer

    async def relay(self, slot: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.client(slot)
        writer.write(b"RELAY\r\n")
        assert await reader.readline() == b"RELAY\r\n"
        return reader, writer

    async def greeting(self, slot: int = 0) -> list[str]:
        _, writer = await self.client(slot)
        writer.close()
        return self.greeted

    def pids(self) -> list[int]:
        return [fields["pid"] for fields in self.logged("worker_ready")]  # type: ignore[misc]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, listeners)
        try:
            yield bench
        finally:
            for writer in bench.writers:
                writer.close()
            await bench.pool.stop_and_wait()
    for listener in listeners:
        listener.close()
    assert bench.pool.alive == 0


async def test_every_slot_has_a_worker_on_its_own_socket(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=3))
    assert bench.pool.is_settled
    assert (bench.pool.alive, bench.pool.serving) == (3, 3)
    greetings = [await bench.greeting(slot) for slot in range(3)]
    assert {int(greeting[2]) for greeting in greetings} == set(bench.pids())


async def test_one_socket_can_serve_all_slots(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners[:1], workers=2))
    assert int((await bench.greeting())[2]) in bench.pids()


async def test_queued_clients_of_killed_worker_are_served_by_its_replacement(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=1))
    killed = bench.pids()[0]
    os.kill(killed, signal.SIGKILL)
    assert int((await bench.greeting())[2]) != killed
    await bench.wait_until(lambda: bench.logged("worker_exited"))
    assert bench.logged("worker_exited") == [{"pid": killed, "exit_code": -9}]
    assert bench.pool.restarts[RestartReason.KILLED] == 1
    assert len(bench.on_exit) == 1


async def test_draining_worker_is_replaced_before_it_exits(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=1, drain_timeout=60.0))
    reader, writer = await bench.relay()
    leaving = bench.pids()[0]
    os.kill(leaving, signal.SIGTERM)
    await bench.wait_until(lambda: len(bench.pids()) == 2)
    assert int((await bench.greeting())[2]) != leaving
    assert bench.pool.restarts[RestartReason.REQUESTED] == 1
    assert bench.logged("worker_exited") == []
    writer.write(b"still here\r\n")
    assert await reader.readline() == b"still here\r\n"
    writer.close()
    await bench.wait_until(lambda: bench.logged("worker_exited"))
    assert bench.logged("worker_exited") == [{"pid": leaving, "exit_code": 0}]


async def test_reload_applies_to_all_workers_without_restart(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=2))
    await bench.pool.change_to(make_revision(bench.listeners, "pop3", serial=2, workers=2))
    assert bench.pool.is_settled
    assert [(await bench.greeting(slot))[1] for slot in (0, 1)] == ["pop3", "pop3"]
    assert sum(bench.pool.restarts.values()) == 0


@pytest.mark.parametrize("bad", ["refused", "crash"])
async def test_configuration_rejected_by_one_worker_is_applied_to_none(bench: Bench, bad: str) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=2))
    with pytest.raises(ConfigError):
        await bench.pool.change_to(make_revision(bench.listeners, bad, serial=2, workers=2))
    await bench.wait_until(lambda: bench.pool.is_settled)
    assert [(await bench.greeting(slot))[1] for slot in (0, 1)] == ["imap", "imap"]


async def test_more_workers_start_and_surplus_workers_drain(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=1))
    await bench.pool.change_to(make_revision(bench.listeners, serial=2, workers=3))
    await bench.wait_until(lambda: bench.pool.is_settled)
    assert bench.pool.serving == 3
    reader, _ = await bench.client(2)
    await bench.pool.change_to(make_revision(bench.listeners, serial=3, workers=1))
    assert await reader.readline() == b"BYE\r\n"
    await bench.wait_until(lambda: bench.pool.alive == 1)
    assert bench.pool.is_settled
    assert sum(bench.pool.restarts.values()) == 0


async def test_start_fails_with_the_problems_of_the_worker(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="no worker wants this"):
        await bench.pool.start(make_revision(bench.listeners, "refused", workers=2))


async def test_start_fails_when_workers_keep_exiting(bench: Bench) -> None:
    with pytest.raises(StartupError, match=f"{MAX_STARTUP_FAILURES} workers ended"):
        await bench.pool.start(make_revision(bench.listeners, "crash"))


async def test_start_has_no_timeout(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELOAD_SECONDS", 0.1)
    await bench.pool.start(make_revision(bench.listeners, "slow", workers=2))
    assert bench.logged("worker_exited") == []
    with pytest.raises(ConfigError, match="ended while it applied this"):
        await bench.pool.change_to(make_revision(bench.listeners, "slow", serial=2, workers=2))


async def test_hung_worker_does_not_count_as_startup_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await bench.launcher.start(bench.on_snapshot)).kill()  # the fork server has imported everything by now
    monkeypatch.setattr(child_process, "HUNG_SECONDS", 2.0)
    monkeypatch.setattr(launcher, "INTERVAL_SECONDS", 0.01)
    start, stopped = bench.launcher.start, []

    async def stop_at_first(on_snapshot: worker_process.SnapshotCallback) -> WorkerProcess:
        worker = await start(on_snapshot)
        if len(stopped) <= MAX_STARTUP_FAILURES:
            os.kill(worker.pid, signal.SIGSTOP)
            stopped.append(worker.pid)
        else:
            monkeypatch.setattr(child_process, "HUNG_SECONDS", 60.0)
        return worker

    monkeypatch.setattr(bench.launcher, "start", stop_at_first)
    await bench.pool.start(make_revision(bench.listeners))
    assert [event["pid"] for event in bench.logged("worker_hangs")] == stopped
    assert bench.pool.restarts[RestartReason.UNRESPONSIVE] == MAX_STARTUP_FAILURES + 1


async def test_hung_worker_that_survives_sigkill_is_logged_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=1))
    worker = next(iter(bench.pool.workers))
    monkeypatch.setattr(worker.heartbeat, "is_hung", lambda **_: True)
    monkeypatch.setattr(worker, "kill", lambda: None)
    for _ in range(3):
        bench.pool.check_heartbeat(worker)
    assert len(bench.logged("worker_hangs")) == 1


async def test_start_can_be_stopped(bench: Bench) -> None:
    asyncio.get_running_loop().call_later(0.3, bench.pool.stop)
    with pytest.raises(StartupError, match="stopped during the start"):
        await bench.pool.start(make_revision(bench.listeners, "hang"))


async def test_failed_fork_is_retried(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = bench.launcher.start, [OSError(11, "Resource temporarily unavailable")] * 6

    async def start(on_snapshot: worker_process.SnapshotCallback) -> WorkerProcess:
        if failures:
            raise failures.pop()
        return await real(on_snapshot)

    monkeypatch.setattr(bench.launcher, "start", start)
    monkeypatch.setattr(launcher, "INTERVAL_SECONDS", 0.01)
    await bench.pool.start(make_revision(bench.listeners))
    assert bench.logged("worker_not_started") == [{"reason": "Resource temporarily unavailable"}] * 6
    assert bench.pool.restarts[RestartReason.CRASH] == 6


async def test_report_requests_snapshots_of_all_workers(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=2))
    await bench.pool.report(1, 10.0)
    assert len(bench.snapshots) == 2


async def test_report_has_a_timeout(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=2))
    os.kill(bench.pids()[0], signal.SIGSTOP)
    await bench.pool.report(1, 0.3)
    assert len(bench.snapshots) == 1
    os.kill(bench.pids()[0], signal.SIGKILL)


async def test_drain_returns_after_the_last_session(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=2))
    _, writer = await bench.relay(1)
    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(bench.pool.drain(0.0, 60.0))
        await bench.wait_until(lambda: bench.pool.alive == 1)
        assert not draining.done()
        writer.close()
    assert bench.pool.alive == 0
    assert sum(bench.pool.restarts.values()) == 0


async def test_stop_ends_a_drain(bench: Bench) -> None:
    await bench.pool.start(make_revision(bench.listeners, workers=1))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.pool.drain(1000.0, 1000.0))
        await asyncio.sleep(0)
        bench.pool.stop()
    assert bench.pool.alive == 0


async def test_worker_that_ignores_stop_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORCE_SECONDS", 0.1)
    await bench.pool.start(make_revision(bench.listeners, workers=1))
    os.kill(bench.pids()[0], signal.SIGSTOP)
    await bench.pool.stop_and_wait()
    assert bench.logged("worker_exited") == [{"pid": bench.pids()[0], "exit_code": -9}]

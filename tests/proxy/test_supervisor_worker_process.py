# SPDX-License-Identifier: Apache-2.0
"""A worker process handles the supervisor's messages, and exits with it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from mailproxy.enums import RestartReason
from mailproxy.supervisor.worker_process import WorkerExited, WorkerProcess
from mailproxy.telemetry.metrics import Snapshot
from mailproxy_config.errors import ConfigError
from support.worker_processes import STAND_IN, make_launcher, make_revision, our_sources

__all__ = ["our_sources"]
pytestmark = pytest.mark.usefixtures("our_sources")


class Bench:
    """One worker, its listening socket and its snapshots."""

    def __init__(self, worker: WorkerProcess, listener: socket.socket, snapshots: list[Snapshot]) -> None:
        self.worker = worker
        self.listener = listener
        self.snapshots = snapshots

    async def configure(self, name: str = "imap", *, serial: int = 1, seconds: float | None = None) -> None:
        wanted = make_revision([self.listener], name, serial=serial)
        await self.worker.configure(wanted.configure_message(), wanted.sockets_for(0), seconds=seconds)

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.listener.getsockname())
        self.greeting = (await asyncio.wait_for(reader.readline(), 10)).decode().split()
        return reader, writer

    def value(self, name: str) -> object:
        return [tuple(cell) for cell in self.snapshots[-1]["series"][name]]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    snapshots: list[Snapshot] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            starting = make_launcher(tasks)
            worker = await starting.start(lambda _, snapshot: snapshots.append(snapshot))
            tasks.create_task(worker.wait_for_exit())
            try:
                yield Bench(worker, listener, snapshots)
            finally:
                worker.kill()
                starting.close()


async def test_worker_applies_configuration_and_reports_metrics(bench: Bench) -> None:
    await bench.configure()
    assert bench.worker.running == 1
    _, writer = await bench.client()
    assert bench.greeting == ["server", "imap", str(bench.worker.pid), "imap.example.com"]
    await bench.worker.report(7, 10)
    assert bench.value("mailproxy_connections_accepted_total") == [(["imap", "imap"], 1)]
    assert bench.value("mailproxy_config_generation") == [([], 4)]
    assert bench.value("mailproxy_config_last_reload_success_timestamp_seconds") == [([], 1234.5)]
    writer.close()


async def test_reload_keeps_open_sessions(bench: Bench) -> None:
    await bench.configure()
    reader, writer = await bench.client()
    await bench.configure("pop3", serial=2)
    assert bench.worker.running == 2
    writer.write(b"still here\r\n")
    assert await reader.readline() == b"still here\r\n"
    _, second = await bench.client()
    assert bench.greeting[1] == "pop3"
    writer.close()
    second.close()


async def test_rejected_configuration_returns_problems_and_keeps_the_previous_one(bench: Bench) -> None:
    await bench.configure()
    with pytest.raises(ConfigError, match="no worker wants this") as caught:
        await bench.configure("refused", serial=2)
    assert [problem.path for problem in caught.value.problems] == ["spec.servers[0]"]
    assert bench.worker.running == 1
    _, writer = await bench.client()
    assert bench.greeting[1] == "imap"
    writer.close()


async def test_invalid_configuration_is_rejected(bench: Bench) -> None:
    wanted = make_revision([bench.listener])
    broken = wanted.configure_message()
    object.__setattr__(broken, "config", '{"format": "nonsense"}')
    with pytest.raises(ConfigError):
        await bench.worker.configure(broken, wanted.sockets_for(0))


async def test_drain_closes_waiting_clients_and_keeps_relays(bench: Bench) -> None:
    await bench.configure()
    waiting, first = await bench.client()
    relaying, second = await bench.client()
    second.write(b"RELAY\r\n")
    assert await relaying.readline() == b"RELAY\r\n"
    bench.worker.drain(0.0, 30.0)
    assert await waiting.readline() == b"BYE\r\n"
    second.write(b"still here\r\n")
    assert await relaying.readline() == b"still here\r\n"
    second.close()
    await bench.worker.exited.wait()
    assert bench.worker.exit_code == 0
    assert bench.value("mailproxy_connections_accepted_total") == [(["imap", "imap"], 2)]
    first.close()


async def test_drain_timeout_closes_relays(bench: Bench) -> None:
    await bench.configure()
    reader, writer = await bench.client()
    writer.write(b"RELAY\r\n")
    assert await reader.readline() == b"RELAY\r\n"
    bench.worker.drain(0.0, 0.1)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    await bench.worker.exited.wait()
    assert bench.worker.exit_code == 0
    writer.close()


async def test_stop_exits_at_once_while_draining(bench: Bench) -> None:
    await bench.configure()
    _, writer = await bench.client()
    bench.worker.drain(1000.0, 1000.0)
    bench.worker.stop()
    await bench.worker.exited.wait()
    assert bench.worker.exit_code == 0
    writer.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
async def test_sigterm_to_a_worker_drains_it_and_notifies_the_supervisor(
    bench: Bench, signum: signal.Signals
) -> None:
    await bench.configure()
    reader, writer = await bench.client()
    writer.write(b"RELAY\r\n")
    assert await reader.readline() == b"RELAY\r\n"
    os.kill(bench.worker.pid, signum)
    await bench.worker.stopped_accepting.wait()
    assert not bench.worker.exited.is_set()
    writer.close()
    await bench.worker.exited.wait()
    assert bench.worker.reason is RestartReason.REQUESTED


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
async def test_worker_ignores_signals_of_the_terminal(bench: Bench, signum: signal.Signals) -> None:
    await bench.configure()
    os.kill(bench.worker.pid, signum)
    await bench.worker.report(1, 10)
    assert not bench.worker.stopped_accepting.is_set()
    assert os.getsid(bench.worker.pid) != os.getsid(0)


async def test_worker_drains_when_the_supervisor_exits(bench: Bench) -> None:
    await bench.configure()
    reader, writer = await bench.client()
    bench.worker.channel.close()
    assert await reader.readline() == b"BYE\r\n"
    await bench.worker.exited.wait()
    assert bench.worker.exit_code == 0
    writer.close()


async def test_exit_while_configuring_is_a_crash(bench: Bench) -> None:
    with pytest.raises(WorkerExited):
        await bench.configure("crash")
    await bench.worker.exited.wait()
    assert bench.worker.reason is RestartReason.CRASH
    assert bench.worker.exit_code == 7
    with pytest.raises(WorkerExited):
        await bench.worker.report(1, 10)


async def test_worker_without_reply_is_killed(bench: Bench) -> None:
    with pytest.raises(WorkerExited):
        await bench.configure("hang", seconds=0.5)
    await bench.worker.exited.wait()
    assert bench.worker.reason is RestartReason.KILLED


async def test_worker_inherits_no_descriptors(bench: Bench) -> None:
    strange = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(strange, True)
    try:
        await bench.configure()
        folder = f"/proc/{bench.worker.pid}/fd"
        targets = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    finally:
        os.close(strange)
    assert "/dev/zero" not in targets
    inodes = [
        target for target in targets if target == f"socket:[{os.fstat(bench.listener.fileno()).st_ino}]"
    ]
    assert len(inodes) == 1


def descriptors(pid: int) -> list[int]:
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


async def test_reload_works_while_clients_use_all_descriptors(bench: Bench) -> None:
    await bench.configure()
    reader, writer = await bench.client()
    pid = bench.worker.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid)[-1] + 4, 1024))
    more = [socket.create_connection(bench.listener.getsockname()) for _ in range(16)]
    async with asyncio.timeout(20):
        while descriptors(pid) != list(range(descriptors(pid)[-1] + 1)):
            await asyncio.sleep(0.02)
    for serial in (2, 3, 4):
        await bench.configure("pop3", serial=serial)
    assert bench.worker.running == 4
    writer.write(b"still here\r\n")
    assert await reader.readline() == b"still here\r\n"
    writer.close()
    for sock in more:
        sock.close()


async def test_reload_with_too_many_sockets_is_rejected_and_keeps_sessions(bench: Bench) -> None:
    await bench.configure()
    reader, writer = await bench.client()
    resource.prlimit(bench.worker.pid, resource.RLIMIT_NOFILE, (3, 1024))
    with pytest.raises(ConfigError, match=r"too many open files to take .* \(its limit is 3\)"):
        await bench.configure("pop3", serial=2)
    assert bench.worker.running == 1
    resource.prlimit(bench.worker.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    writer.write(b"still here\r\n")
    assert await reader.readline() == b"still here\r\n"
    await bench.configure("pop3", serial=3)
    assert bench.worker.running == 3
    writer.close()


async def test_reload_is_rejected_when_supervisor_has_no_free_descriptors(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.configure()

    def no_room(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", no_room)
    with pytest.raises(
        ConfigError, match="cannot pass the listening sockets to a worker: Too many open files"
    ):
        await bench.configure("pop3", serial=2)
    monkeypatch.undo()
    await bench.configure("pop3", serial=3)
    assert bench.worker.running == 3


async def test_many_reloads_leak_no_descriptor(bench: Bench) -> None:
    counts = []
    for serial in range(1, 6):
        await bench.configure(serial=serial)
        counts.append(len(os.listdir(f"/proc/{bench.worker.pid}/fd")))
    assert len(set(counts[1:])) == 1


@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        ((), False),  # error_log of the configuration
        (("--log-level", "info"), True),
        (("--log-level", "crit"), False),
    ],
)
async def test_log_level_option_overrides_error_log(
    options: tuple[str, ...], is_told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            starting = make_launcher(tasks, (*STAND_IN, *options))
            worker = await starting.start(lambda *_: None)
            tasks.create_task(worker.wait_for_exit())
            bench = Bench(worker, listener, [])
            await bench.configure()
            _, writer = await bench.client()
            worker.stop()
            starting.close()
        writer.close()
    assert (" info greeted" in capfd.readouterr().err) is is_told

# SPDX-License-Identifier: Apache-2.0
"""Workers are forked from a process with one thread, and inherit nothing else."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mailproxy.supervisor import child_process, fork_server
from mailproxy.supervisor.launcher import WorkerLauncher
from mailproxy.supervisor.worker_process import WorkerProcess
from mailproxy_config.model import LogLevel
from support.proxy_process import process_name
from support.worker_processes import STAND_IN, make_launcher, make_revision, our_sources

__all__ = ["our_sources"]
pytestmark = pytest.mark.usefixtures("our_sources")


class Bench:
    """A launcher, its log events, and its workers."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.events: list[tuple[str, dict[str, object]]] = []
        self.workers: list[WorkerProcess] = []
        self.launcher: WorkerLauncher = make_launcher(tasks, STAND_IN, self._log_event)

    def _log_event(self, level: LogLevel, name: str, /, **fields: object) -> None:
        self.events.append((name, fields))

    async def start(self) -> WorkerProcess:
        worker = await self.launcher.start(lambda *_: None)
        self.workers.append(worker)
        self.tasks.create_task(worker.wait_for_exit())
        return worker

    async def wait_until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        bench = Bench(tasks)
        try:
            yield bench
        finally:
            bench.launcher.close()
            for worker in bench.workers:
                worker.kill()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def ignored_signals(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))


async def test_worker_is_a_child_in_its_own_session(bench: Bench) -> None:
    worker = await bench.start()
    await worker.report(1, 60)
    assert parent(worker.pid) == os.getpid()
    assert os.getsid(worker.pid) == worker.pid
    assert process_name(worker.pid) == fork_server.WORKER_NAME
    assert process_name(bench.launcher.pid) == fork_server.NAME


async def test_the_fork_server_has_one_thread_and_four_descriptors(bench: Bench) -> None:
    strange = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(strange, True)
    try:
        await bench.start()
    finally:
        os.close(strange)
    assert len(os.listdir(f"/proc/{bench.launcher.pid}/task")) == 1
    folder = f"/proc/{bench.launcher.pid}/fd"
    assert len(os.listdir(folder)) == 4
    assert os.readlink(f"{folder}/0") == "/dev/null"


async def test_worker_has_no_channel_of_another_worker(bench: Bench) -> None:
    first, second = await bench.start(), await bench.start()
    await asyncio.gather(first.report(1, 60), second.report(1, 60))  # both have their event loop by now
    sockets = [
        {
            target
            for name in os.listdir(f"/proc/{pid}/fd")
            if (target := os.readlink(f"/proc/{pid}/fd/{name}")).startswith("socket:")
        }
        for pid in (first.pid, second.pid, bench.launcher.pid)
    ]
    assert not sockets[0] & sockets[1]
    assert not sockets[2] & (sockets[0] | sockets[1])


async def test_a_worker_inherits_no_pipe(bench: Bench) -> None:
    worker = await bench.start()
    await worker.report(1, 60)
    folder = f"/proc/{worker.pid}/fd"
    found = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder) if int(name) > 2]
    assert not [target for target in found if target.startswith("pipe:")]


async def test_a_worker_handles_signals_as_a_fresh_process_does(bench: Bench) -> None:
    worker = await bench.start()
    await worker.report(1, 60)
    for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR2):
        bit = 1 << (signum - 1)
        assert ignored_signals(bench.launcher.pid) & bit
        assert not ignored_signals(worker.pid) & bit


async def test_workers_have_different_random_numbers(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    keys = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(2):
            worker = await bench.start()
            wanted = make_revision([listener], "random")
            await worker.configure(wanted.configure_message(), wanted.sockets_for(0))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            keys.add((await reader.readline()).split()[3])
            writer.close()
            worker.kill()
            await worker.exited.wait()
    assert len(keys) == 2


async def test_killed_fork_server_is_replaced_and_its_workers_stay(bench: Bench) -> None:
    first = await bench.start()
    on_exit = bench.launcher.pid
    os.kill(on_exit, signal.SIGKILL)
    await bench.wait_until(lambda: bench.launcher.pid != on_exit)
    assert bench.events == [("fork_server_exited", {"pid": on_exit, "exit_code": -9})]
    await first.report(1, 60)
    assert parent(first.pid) == os.getpid()
    second = await bench.start()
    await second.report(1, 60)


async def test_exit_code_is_known_after_the_fork_server_exits(bench: Bench) -> None:
    worker = await bench.start()
    os.kill(bench.launcher.pid, signal.SIGKILL)
    await bench.wait_until(lambda: bench.events)
    os.kill(worker.pid, signal.SIGABRT)
    await worker.exited.wait()
    assert worker.exit_code == -signal.SIGABRT


async def test_pending_start_fails_when_the_fork_server_exits(bench: Bench) -> None:
    await bench.start()
    os.kill(bench.launcher.pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(0.1, os.kill, bench.launcher.pid, signal.SIGKILL)
    with pytest.raises(OSError, match="the fork server has ended"):
        await bench.start()


async def test_a_fork_server_that_hangs_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start()
    monkeypatch.setattr(child_process, "HUNG_SECONDS", 2.0)
    hung = bench.launcher.pid
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(OSError, match="the fork server has ended"):
        await bench.start()
    assert bench.events[0] == ("fork_server_hangs", {"pid": hung})
    await bench.wait_until(lambda: bench.launcher.pid != hung)
    await bench.start()


async def test_failed_fork_raises_an_error_with_its_reason(bench: Bench) -> None:
    await bench.start()
    # Root is not held to RLIMIT_NPROC, so the fork server runs out of descriptors instead.
    pid = bench.launcher.pid
    for limit in (4, 5):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, 64))
        with pytest.raises(OSError, match="Too many open files"):
            await bench.start()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
    await bench.start()
    assert bench.launcher.pid == pid


async def test_cancelled_start_leaves_no_worker(bench: Bench) -> None:
    bench.launcher.close()
    with pytest.raises(OSError, match="the fork server has ended"):
        await bench.launcher.start(lambda *_: None)


def test_fork_server_that_ends_during_a_fork_leaves_no_traceback() -> None:
    """The pipe to the fork server has no reader any more, as when it is killed while a worker starts."""
    code = (
        "import os, signal, socket\n"
        "from mailproxy.supervisor.fork_server import _fork_again\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "one, other = socket.socketpair()\n"
        "raise SystemExit(_fork_again(write, one, lambda: 0))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")

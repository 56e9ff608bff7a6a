# SPDX-License-Identifier: Apache-2.0
"""Worker processes with a stand-in application, and their configuration."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from mailproxy.net import shared_memory
from mailproxy.supervisor import fork_server
from mailproxy.supervisor.config_loader import ConfigRevision
from mailproxy.supervisor.key_rotation import KeyRotation
from mailproxy.supervisor.launcher import WorkerLauncher
from mailproxy.supervisor.listening_sockets import SocketSet
from mailproxy.supervisor.worker_process import LogCallback
from mailproxy_config.model import DrainConfig, Protocol, ProxyConfig, Seconds
from mailproxy_config.rendered import config_hash, dump
from support.configs import server

ROOT: Final = Path(__file__).parents[2]
PYTHONPATH: Final = os.pathsep.join([str(ROOT / "proxy"), str(ROOT / "tests")])
WORKER: Final = "support.standin_worker"
STAND_IN: Final = ("--log-format", "text")
"""The command line of a stand-in worker."""


def make_launcher(
    tasks: asyncio.TaskGroup, arguments: Sequence[str] = STAND_IN, log_event: LogCallback | None = None
) -> WorkerLauncher:
    """Start stand-in workers from a fork server, since the test process has threads."""
    fork_server.become_subreaper()
    spawn = functools.partial(fork_server.spawn, WORKER)
    return WorkerLauncher(
        tasks,
        spawn(),
        arguments,
        spawn=spawn,
        memory=shared_memory.create(),
        log_event=log_event or (lambda *_, **__: None),
    )


@pytest.fixture
def our_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make processes that a test starts import the sources of this checkout."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def make_revision(
    listeners: Sequence[socket.socket],
    name: str = "imap",
    *,
    serial: int = 1,
    workers: int = 1,
    drain_timeout: float = 0.5,
) -> ConfigRevision:
    """One server on one listener, which has a socket for every worker."""
    config = ProxyConfig(
        servers=(server(Protocol.IMAP, name=name, server_name=f"{name}.example.com"),),
        drain=DrainConfig(timeout=Seconds(drain_timeout)),
    )
    return ConfigRevision(
        serial=serial,
        config=config,
        text=dump(config).decode(),
        hash=config_hash(config),
        generation=4,
        loaded_at=1234.5,
        hostname="host.example.com",
        names={},
        workers=workers,
        sockets=SocketSet(by_key={"one": list(listeners)}),
        ticket_keys=KeyRotation(),
    )

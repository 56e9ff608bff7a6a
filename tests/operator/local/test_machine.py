# SPDX-License-Identifier: Apache-2.0
"""One machine as a cluster: the same reconcile, with a process behind it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import DAEMON_SET, DEPLOYMENT, POD
from mailproxy_operator.controller.reconciler import Outcome, Reconciler
from mailproxy_operator.local.container import way_out
from mailproxy_operator.local.machine import LOCAL_VERSION, LocalCluster
from mailproxy_operator.local.process import proxy_command
from mailproxy_operator.settings import Platform
from support import operator_proxy
from support.operator_bodies import body

EDGE = Key("mail", "edge")


def stand_in(words: Sequence[str]) -> list[str]:
    return [sys.executable, str(Path(operator_proxy.__file__)), *words[1:]]


class Machine:
    """A local cluster with a reconciler on it."""

    def __init__(self, tasks: asyncio.TaskGroup, root: Path) -> None:
        self.woken = asyncio.Event()
        self.said: list[str] = []
        self.logged: list[str] = []
        self.config = root / "config" / "mailproxy.json"
        self.cluster = LocalCluster(
            tasks,
            wake=self.woken.set,
            say=self.said.append,
            log=self.logged.append,
            secrets=root / "secrets",
            launch=stand_in,
        )
        platform = Platform(
            kube_version=LOCAL_VERSION, config_dir=str(root / "config"), refs_dir=str(root / "refs")
        )
        self.reconciler = Reconciler(self.cluster, platform)

    async def put(self, **spec: Any) -> Outcome:
        await self.cluster.apply(body(**spec))
        return await self.reconciler.reconcile(EDGE)

    async def until(self, name: str, reason: str) -> dict[str, Any]:
        """Reconcile whenever something happens, until a condition has this reason."""
        async with asyncio.timeout(20):
            while True:
                self.woken.clear()
                self.cluster.refresh_volumes()
                outcome = await self.reconciler.reconcile(EDGE)
                found: dict[str, Any] = next(
                    one for one in outcome.status["conditions"] if one["type"] == name
                )
                if found["reason"] == reason:
                    return found
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self.woken.wait()


@asynccontextmanager
async def machine(root: Path) -> AsyncIterator[Machine]:
    async with asyncio.TaskGroup() as tasks:
        running = Machine(tasks, root)
        try:
            yield running
        finally:
            await running.cluster.shut_down()


async def test_a_resource_becomes_a_process_that_is_drained_at_the_end(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        [pod] = await local.cluster.list_labelled(POD, "mail", {})
        config = await local.cluster.running_config(pod)
        assert config is not None
        assert json.loads(local.config.read_text())["format"] == "mailproxy.dev/proxy-configuration"
    assert local.logged == ["listening", "drained"]


async def test_a_change_of_configuration_reaches_the_file_and_keeps_the_process(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        await local.put(replicas=1, mail={"authHttp": "http://127.0.0.1:1/", "timeout": "7s"})
        servers = json.loads(local.config.read_text())["config"]["servers"]
        assert servers[0]["timeout"] == 7
    assert local.logged.count("listening") == 1


async def test_a_new_port_replaces_the_process(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        listen = [{"port": 1143}, {"port": 2143}]
        await local.put(replicas=1, servers=[{"name": "imap", "protocol": "imap", "listen": listen}])
        await local.until("Available", "MinimumReplicasAvailable")
    assert local.logged == ["listening", "drained", "listening", "drained"]


async def test_a_missing_secret_is_told_and_waited_for(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        mail = {
            "authHttp": "http://127.0.0.1:1/",
            "starttls": "Enabled",
            "sslCertificate": [{"secretName": "tls"}],
        }
        await local.put(replicas=1, mail=mail)
        found = await local.until("ResolvedRefs", "SecretNotFound")
        assert 'secret "tls" not found' in found["message"]
        assert "--secrets DIR" in found["message"]
        place = tmp_path / "secrets" / "tls"
        place.mkdir(parents=True)
        (place / "tls.crt").write_text("C")
        found = await local.until("ResolvedRefs", "SecretKeyNotFound")
        (place / "tls.key").write_text("K")
        await local.until("ResolvedRefs", "ResolvedRefs")
        assert (tmp_path / "refs" / "secrets" / "tls" / "tls.key").read_text() == "K"


async def test_one_machine_runs_one_replica(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=3)
        await local.until("Available", "MinimumReplicasAvailable")
        live = await local.cluster.get(DEPLOYMENT, EDGE)
        assert live is not None
        assert live["status"]["replicas"] == live["spec"]["replicas"] == 1
    assert any("3 replicas" in line for line in local.said)


async def test_a_daemon_set_is_one_process_too(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(mode="DaemonSet")
        await local.until("Available", "MinimumReplicasAvailable")
        assert await local.cluster.get(DAEMON_SET, EDGE)


async def test_scaling_to_zero_ends_the_process(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        await local.put(replicas=0)
        await local.until("Available", "ScaledToZero")
        assert await local.cluster.list_labelled(POD, "mail", {}) == []


async def test_a_process_that_does_not_start_is_told_with_the_way_out(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        [container] = local.cluster._containers.values()
        assert container.process is not None
        container.process._command = [sys.executable, "-c", "raise SystemExit('Permission denied')"]
        assert container.process._process is not None
        container.process._process.kill()
        await local.until("Available", "PodsNotReady")
        while "need root" not in (await local.until("Available", "PodsNotReady"))["message"]:
            local.woken.clear()
            await local.woken.wait()
        assert local.cluster.restarts >= 1


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("bind: [Errno 13] Permission denied", "portStrategy: HighPort"),
        ("something else", ""),
    ],
)
def test_the_way_out(said: str, advice: str) -> None:
    assert advice in way_out(said)
    assert bool(way_out(said)) is bool(advice)


def test_the_proxy_of_this_installation_is_run() -> None:
    assert proxy_command(["mailproxy", "run"]) == [sys.executable, "-m", "mailproxy", "run"]

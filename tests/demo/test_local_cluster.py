# SPDX-License-Identifier: Apache-2.0
"""The reconciler with a cluster on this machine: a process for each workload."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mailproxy_demo.container_process import proxy_command
from mailproxy_demo.local_cluster import LOCAL_VERSION, LocalCluster, port_advice
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import DAEMON_SET, DEPLOYMENT, POD
from mailproxy_operator.controller.reconciler import Outcome, Reconciler
from mailproxy_operator.settings import Platform
from support import operator_proxy
from support.operator_bodies import body

EDGE = Key("mail", "edge")
Launch = Callable[[Sequence[str]], list[str]]


def fake_proxy(words: Sequence[str]) -> list[str]:
    return [sys.executable, str(Path(operator_proxy.__file__)), *words[1:]]


def exiting_proxy(_: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", "raise SystemExit('Permission denied')"]


class Machine:
    """A local cluster and its reconciler."""

    def __init__(self, tasks: asyncio.TaskGroup, root: Path, launch: Launch) -> None:
        self.changed = asyncio.Event()
        self.reported: list[str] = []
        self.logged: list[str] = []
        self.config = root / "config" / "mailproxy.json"
        self.cluster = LocalCluster(
            tasks,
            changed=self.changed.set,
            report=self.reported.append,
            log=self.logged.append,
            secrets=root / "secrets",
            launch=launch,
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
                self.changed.clear()
                self.cluster.refresh_volumes()
                outcome = await self.reconciler.reconcile(EDGE)
                found: dict[str, Any] = next(
                    one for one in outcome.status["conditions"] if one["type"] == name
                )
                if found["reason"] == reason:
                    return found
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self.changed.wait()


@asynccontextmanager
async def machine(root: Path, launch: Launch = fake_proxy) -> AsyncIterator[Machine]:
    async with asyncio.TaskGroup() as tasks:
        running = Machine(tasks, root, launch)
        try:
            yield running
        finally:
            await running.cluster.shut_down()


async def test_resource_becomes_process_that_is_drained_at_end(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        [pod] = await local.cluster.list_labelled(POD, "mail", {})
        config = await local.cluster.running_config(pod)
        assert config is not None
        assert json.loads(local.config.read_text())["format"] == "mailproxy.dev/proxy-configuration"
    assert local.logged == ["listening", "drained"]


async def test_changed_configuration_is_written_and_process_is_kept(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        await local.put(replicas=1, mail={"authHttp": "http://127.0.0.1:1/", "timeout": "7s"})
        servers = json.loads(local.config.read_text())["config"]["servers"]
        assert servers[0]["timeout"] == 7
    assert local.logged.count("listening") == 1


async def test_new_port_replaces_process(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        listen = [{"port": 1143}, {"port": 2143}]
        await local.put(replicas=1, servers=[{"name": "imap", "protocol": "imap", "listen": listen}])
        await local.until("Available", "MinimumReplicasAvailable")
    assert local.logged == ["listening", "drained", "listening", "drained"]


async def test_missing_secret_is_reported_until_it_exists(tmp_path: Path) -> None:
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
        secret = tmp_path / "secrets" / "tls"
        secret.mkdir(parents=True)
        (secret / "tls.crt").write_text("C")
        found = await local.until("ResolvedRefs", "SecretKeyNotFound")
        (secret / "tls.key").write_text("K")
        await local.until("ResolvedRefs", "ResolvedRefs")
        assert (tmp_path / "refs" / "secrets" / "tls" / "tls.key").read_text() == "K"


async def test_one_replica_runs_of_several(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=3)
        await local.until("Available", "MinimumReplicasAvailable")
        live = await local.cluster.get(DEPLOYMENT, EDGE)
        assert live is not None
        assert live["status"]["replicas"] == live["spec"]["replicas"] == 1
    assert any("3 replicas" in line for line in local.reported)


async def test_daemon_set_is_one_process(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(mode="DaemonSet")
        await local.until("Available", "MinimumReplicasAvailable")
        assert await local.cluster.get(DAEMON_SET, EDGE)


async def test_scaling_to_zero_ends_process(tmp_path: Path) -> None:
    async with machine(tmp_path) as local:
        await local.put(replicas=1)
        await local.until("Available", "MinimumReplicasAvailable")
        await local.put(replicas=0)
        await local.until("Available", "ScaledToZero")
        assert await local.cluster.list_labelled(POD, "mail", {}) == []


async def test_process_that_exits_is_restarted_and_reported_with_advice(tmp_path: Path) -> None:
    async with machine(tmp_path, exiting_proxy) as local:
        await local.put(replicas=1)
        while "need root" not in (await local.until("Available", "PodsNotReady"))["message"]:
            local.changed.clear()
            await local.changed.wait()
        assert local.cluster.restarts >= 1


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("bind: [Errno 13] Permission denied", "portStrategy: HighPort"),
        ("something else", ""),
    ],
)
def test_advice_for_ports_that_need_root(output: str, advice: str) -> None:
    assert advice in port_advice(output)
    assert bool(port_advice(output)) is bool(advice)


def test_proxy_of_this_installation_is_run() -> None:
    assert proxy_command(["mailproxy", "run"]) == [sys.executable, "-m", "mailproxy", "run"]

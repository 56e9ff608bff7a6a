# SPDX-License-Identifier: Apache-2.0
"""``local``: prints the status, follows the file, and ends at a signal."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_config.errors import ConfigError
from mailproxy_demo import local
from mailproxy_demo.container_process import proxy_command
from mailproxy_demo.local import LocalOptions, run_local
from mailproxy_demo.manifest_file import ManifestFile
from support import operator_proxy
from support.operator_bodies import body, server
from support.proxy_process import free_port


def fake_proxy(words: Sequence[str]) -> list[str]:
    return [sys.executable, str(Path(operator_proxy.__file__)), *words[1:]]


def exiting_proxy(_: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", "raise SystemExit('exited')"]


class Run:
    """A run of ``local``, with everything it prints."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.out = io.StringIO()
        self.reported: list[str] = []
        self.logged: list[str] = []
        self.write()
        chosen = {"secrets": None, "when_ready": None, "once": False, "launch": fake_proxy, **options}
        self.options = LocalOptions(
            out=self.out, report=self.reported.append, log=self.logged.append, **chosen
        )

    def write(self, **spec: Any) -> None:
        self.path.write_text(yaml.safe_dump(body(replicas=1, **spec)))

    async def run(self) -> int:
        async with asyncio.timeout(30):
            return await run_local(ManifestFile(self.path), self.options)

    def statuses(self) -> list[dict[str, Any]]:
        return [one["status"] for one in yaml.safe_load_all(self.out.getvalue())]

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not what():
                await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("mailproxy_demo.container_process.BACK_OFF_SECONDS", (0.05,))


@pytest.mark.parametrize(("has_passed", "code"), [(True, 0), (False, 1)])
async def test_once_ends_after_check(tmp_path: Path, has_passed: bool, code: int) -> None:
    async def check(_: object) -> bool:
        return has_passed

    run = Run(tmp_path / "edge.yaml", when_ready=check, once=True, launch=configured_proxy)
    assert await run.run() == code
    assert run.logged == ["listening", "drained"]


def configured_proxy(words: Sequence[str]) -> list[str]:
    """A fake proxy that reports the hash of its configuration."""
    return ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", *fake_proxy(words), "--real-hash"]


async def test_status_is_printed_when_it_changes(tmp_path: Path) -> None:
    run = Run(tmp_path / "edge.yaml", launch=configured_proxy)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.run())
        await run.until(lambda: "reason: Ready\n" in run.out.getvalue())
        run.write(mail={"authHttp": "http://127.0.0.1:1/", "timeout": "7s"})
        await run.until(lambda: run.statuses()[-1]["observedGeneration"] == 2)
        await run.until(lambda: _ready(run) == "True")
        run.write(servers=[server("imap", "imap", 70000)])
        await run.until(lambda: _ready(run) == "False")
        run.path.write_text("kind: [")
        await run.until(lambda: any("is kept" in line for line in run.reported))
        run.path.write_text(yaml.safe_dump({**body(), "metadata": {"name": "other"}}))
        await run.until(lambda: any("now called default/other" in line for line in run.reported))
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
    hashes = [status.get("configHash") for status in run.statuses()]
    assert len(set(hashes)) == 2
    assert run.logged == ["listening", "drained"]


async def test_addresses_and_metrics_page_are_reported_once_ready(tmp_path: Path) -> None:
    run = Run(tmp_path / "edge.yaml", launch=configured_proxy)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.run())
        await run.until(lambda: any("edge is ready" in line for line in run.reported))
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
    [text] = [line for line in run.reported if "edge is ready" in line]
    assert re.search(r"^  IMAP   127\.0\.0\.1:1?143  plain$", text, re.MULTILINE), text
    assert re.search(r"^Metrics: +http://127\.0\.0\.1:\d+/metrics$", text, re.MULTILINE)
    assert [_ready(run)] == ["True"]
    assert len(run.statuses()) == 1
    assert not any(line.startswith("Normal ") for line in run.reported)


async def test_status_that_does_not_settle_is_printed_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "UNSETTLED_SECONDS", 0.2)
    run = Run(tmp_path / "edge.yaml", launch=exiting_proxy)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.run())
        await run.until(lambda: "CrashLoopBackOff" in run.out.getvalue())
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
    assert _ready(run) == "False"
    assert not any("is ready" in line for line in run.reported)


def _ready(run: Run) -> str:
    return str(next(one["status"] for one in run.statuses()[-1]["conditions"] if one["type"] == "Ready"))


async def test_once_fails_when_proxy_does_not_start(tmp_path: Path) -> None:
    run = Run(tmp_path / "edge.yaml", once=True, launch=exiting_proxy)
    assert await run.run() == 1
    assert "exited" in run.reported[-1]


async def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "edge.yaml", launch=slow_proxy)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.run())
        await run.until(lambda: "listening" in run.logged)
        os.kill(os.getpid(), signal.SIGTERM)
        await run.until(lambda: "SIGTERM" in run.logged)
        assert not running.done()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0
    assert "ending at once" in run.reported


def slow_proxy(_: Sequence[str]) -> list[str]:
    source = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "print('listening', flush=True)\n"
        "signal.sigwait({signal.SIGTERM}); print('SIGTERM', flush=True)\n"
        "signal.sigwait({signal.SIGTERM})\n"
    )
    return [sys.executable, "-c", source]


async def test_sidecar_runs_nothing(tmp_path: Path) -> None:
    async def check(_: object) -> bool:
        return True

    run = Run(tmp_path / "edge.yaml", when_ready=check, once=True)
    run.write(mode="Sidecar")
    assert await run.run() == 0
    assert any("nothing is run here" in line for line in run.reported)
    assert run.logged == []


async def test_invalid_manifest_is_refused_at_start(tmp_path: Path) -> None:
    run = Run(tmp_path / "edge.yaml")
    run.write(servers=[])
    with pytest.raises(ConfigError, match=r"spec\.servers"):
        await run.run()


async def test_refused_table_of_a_real_proxy_is_in_the_status(tmp_path: Path) -> None:
    """Proxy and operator together: the line is named, and no user."""
    table = tmp_path / "refs" / "moves" / "users"
    table.parent.mkdir(parents=True)
    table.write_text("bob@example.org new\n")
    spec: dict[str, Any] = {
        "mail": {
            "authMode": "Upstream",
            "routes": [{"table": {"configMapKeyRef": {"name": "moves", "key": "users"}}}],
        },
        "upstreams": [{"name": "new", "servers": [{"address": "127.0.0.1:1"}]}],
        "servers": [
            {"name": "imap", "protocol": "imap", "listen": [{"address": "127.0.0.1", "port": free_port()}]}
        ],
    }
    run = Run(tmp_path / "edge.yaml", secrets=tmp_path / "refs", launch=proxy_command, events=True)
    run.write(**spec)

    def condition() -> dict[str, Any]:
        found = run.statuses()[-1]["conditions"] if run.out.getvalue() else []
        return next((one for one in found if one["type"] == "RoutesReady"), {})

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run.run())
        await run.until(lambda: condition().get("status") == "True")
        table.with_suffix(".new").write_text("bob@example.org new\nzoe@example.org nowhere\n")
        table.with_suffix(".new").replace(table)
        await run.until(lambda: any("route_table_kept" in line for line in run.logged))
        spec["mail"]["timeout"] = "7s"
        run.write(**spec)  # the operator looks at the pods again
        await run.until(lambda: condition().get("reason") == "RouteTableRefused")
        message = condition()["message"]
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
    assert "ConfigMap moves, key users, line 2: the upstream is not in spec.upstreams (new)" in message
    assert "correct it (spec.mail.routes[0].table.configMapKeyRef)" in message
    assert "zoe" not in run.out.getvalue()
    [event] = [line for line in run.reported if line.startswith("Warning RouteTableRefused: ")]
    assert "line 2" in event
    assert "zoe" not in event

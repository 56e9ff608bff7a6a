# SPDX-License-Identifier: Apache-2.0
"""The whole loop on one machine: what it shows, how it follows the file, how it ends."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_config.errors import ConfigError
from mailproxy_demo import local as runner
from mailproxy_demo.local import LocalOptions, run_local
from mailproxy_demo.manifest_file import FileSource
from support import operator_proxy
from support.operator_bodies import body, server


def stand_in(words: Sequence[str]) -> list[str]:
    return [sys.executable, str(Path(operator_proxy.__file__)), *words[1:]]


def broken(_: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", "raise SystemExit('no such luck')"]


class Local:
    """A run, with everything it says."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.out = io.StringIO()
        self.said: list[str] = []
        self.logged: list[str] = []
        self.write()
        chosen = {"secrets": None, "when_ready": None, "once": False, "launch": stand_in, **options}
        self.options = LocalOptions(out=self.out, say=self.said.append, log=self.logged.append, **chosen)

    def write(self, **spec: Any) -> None:
        self.path.write_text(yaml.safe_dump(body(replicas=1, **spec)))

    async def run(self) -> int:
        async with asyncio.timeout(30):
            return await run_local(FileSource(self.path), self.options)

    def statuses(self) -> list[dict[str, Any]]:
        return [one["status"] for one in yaml.safe_load_all(self.out.getvalue())]

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not what():
                await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr("mailproxy_demo.container_process.BACK_OFF_SECONDS", (0.05,))


@pytest.mark.parametrize(("is_well", "code"), [(True, 0), (False, 1)])
async def test_it_ends_after_the_visit_when_asked_to(tmp_path: Path, is_well: bool, code: int) -> None:
    async def visit(_: object) -> bool:
        return is_well

    # The stand-in's hash is not the configuration's, so readiness is told by the visit being made.
    local = Local(tmp_path / "edge.yaml", when_ready=visit, once=True)
    local.options = LocalOptions(
        **{name: getattr(local.options, name) for name in LocalOptions.__slots__ if name != "launch"},
        launch=honest,
    )
    assert await local.run() == code
    assert local.logged == ["listening", "drained"]


def honest(words: Sequence[str]) -> list[str]:
    """The stand-in with the hash that the proxy would tell."""
    return ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", *stand_in(words), "--honest"]


async def test_the_status_is_shown_whenever_it_changes(tmp_path: Path) -> None:
    local = Local(tmp_path / "edge.yaml", launch=honest)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(local.run())
        await local.until(lambda: "reason: Ready\n" in local.out.getvalue())
        local.write(mail={"authHttp": "http://127.0.0.1:1/", "timeout": "7s"})
        await local.until(lambda: local.statuses()[-1]["observedGeneration"] == 2)
        await local.until(lambda: _ready(local) == "True")
        local.write(servers=[server("imap", "imap", 70000)])
        await local.until(lambda: _ready(local) == "False")
        local.path.write_text("kind: [")
        await local.until(lambda: any("is kept" in line for line in local.said))
        local.path.write_text(yaml.safe_dump({**body(), "metadata": {"name": "other"}}))
        await local.until(lambda: any("now called default/other" in line for line in local.said))
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
    hashes = [status.get("configHash") for status in local.statuses()]
    assert len(set(hashes)) == 2
    assert local.logged == ["listening", "drained"]


def _ready(local: Local) -> str:
    return str(next(one["status"] for one in local.statuses()[-1]["conditions"] if one["type"] == "Ready"))


async def test_it_gives_up_on_a_proxy_that_does_not_start_when_asked_to_end(tmp_path: Path) -> None:
    local = Local(tmp_path / "edge.yaml", once=True, launch=broken)
    assert await local.run() == 1
    assert "no such luck" in local.said[-1]


async def test_a_second_signal_hurries(tmp_path: Path) -> None:
    local = Local(tmp_path / "edge.yaml", launch=stubborn)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(local.run())
        await local.until(lambda: "listening" in local.logged)
        os.kill(os.getpid(), signal.SIGTERM)
        await local.until(lambda: "asked" in local.logged)
        assert not running.done()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0
    assert "not waiting any longer" in local.said


def stubborn(_: Sequence[str]) -> list[str]:
    source = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "print('listening', flush=True)\n"
        "signal.sigwait({signal.SIGTERM}); print('asked', flush=True)\n"
        "signal.sigwait({signal.SIGTERM})\n"
    )
    return [sys.executable, "-c", source]


async def test_a_sidecar_has_nothing_to_run(tmp_path: Path) -> None:
    async def visit(_: object) -> bool:
        return True

    local = Local(tmp_path / "edge.yaml", when_ready=visit, once=True)
    local.write(mode="Sidecar")
    assert await local.run() == 0
    assert any("nothing is run here" in line for line in local.said)
    assert local.logged == []


async def test_what_is_wrong_to_begin_with_is_refused(tmp_path: Path) -> None:
    local = Local(tmp_path / "edge.yaml")
    local.write(servers=[])
    with pytest.raises(ConfigError, match=r"spec\.servers"):
        await local.run()

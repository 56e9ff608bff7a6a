# SPDX-License-Identifier: Apache-2.0
"""The whole loop on one machine: watch a file, reconcile, run, show the status."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.local.machine import LOCAL_VERSION, LocalCluster
from mailproxy_operator.local.process import proxy_command
from mailproxy_operator.local.source import FileSource
from mailproxy_operator.settings import Platform

LOOK_SECONDS = 1.0
READY_SECONDS = 30.0
TRIES = 3

WhenReady = Callable[[LocalCluster], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What `local` was asked to do.

    Attributes:
        secrets: Where Secrets and ConfigMaps are looked for: ``DIR/NAME/KEY``.
        when_ready: Called once, when the proxy serves; tells whether all was well.
        once: Whether to end after that.
        out: Where the status goes as YAML, if anywhere.
        say: Takes lines for people.
        log: Takes lines that the proxy wrote.
        launch: Turns a container's command into one for this machine.
    """

    secrets: Path | None
    when_ready: WhenReady | None
    once: bool
    out: TextIO | None
    say: Callable[[str], None]
    log: Callable[[str], None]
    launch: Callable[[Sequence[str]], list[str]] = proxy_command


async def run_local(source: FileSource, options: LocalOptions) -> int:
    """Run a resource on this machine until a signal comes.

    Returns:
        The exit code.

    Raises:
        ConfigError: The resource is not valid to begin with.
    """
    body = source.read()
    if body is None:
        return 0
    parse_manifest(body)
    with tempfile.TemporaryDirectory(prefix="mailproxy-") as root:
        async with asyncio.TaskGroup() as tasks:
            run = _Run(source, options, tasks, Path(root))
            with run.signals():
                return await run.go(body)


class _Run:
    """One run: the state between two looks."""

    def __init__(
        self, source: FileSource, options: LocalOptions, tasks: asyncio.TaskGroup, root: Path
    ) -> None:
        self._source = source
        self._options = options
        self._tasks = tasks
        self._woken = asyncio.Event()
        self._stopping = False
        self._code = 0
        self._shown: Manifest = {}
        self._key = Key("default", "")
        self._visit: asyncio.Task[None] | None = None
        self._cluster = LocalCluster(
            tasks,
            wake=self._woken.set,
            say=options.say,
            log=options.log,
            secrets=options.secrets,
            launch=options.launch,
        )
        platform = Platform(
            kube_version=LOCAL_VERSION, config_dir=str(root / "config"), refs_dir=str(root / "refs")
        )
        self._reconciler = Reconciler(self._cluster, platform)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take the first signal as the wish to drain, the second as the wish to be quick."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self._stopping:
            self._options.say("not waiting any longer")
            self._tasks.create_task(self._cluster.shut_down())
        else:
            self._options.say("draining; once more ends it at once")
        self._stopping = True
        self._woken.set()

    async def go(self, body: Manifest) -> int:
        """Look, act, wait, until told to stop; then drain."""
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        try:
            await self._take(body)
            await self._look()
            while not self._stopping:
                if self._is_hopeless(deadline):
                    self._give_up()
                    break
                await self._wait()
                if not self._stopping:
                    await self._look_if_needed()
        finally:
            if self._visit is not None:
                self._visit.cancel()
            await self._cluster.shut_down()
        return self._code

    def _is_hopeless(self, deadline: float) -> bool:
        """Tell whether somebody waits for the end and the proxy never gets as far."""
        if not self._options.once or self._visit is not None:
            return False
        return asyncio.get_running_loop().time() > deadline or self._cluster.restarts >= TRIES

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._woken.wait()

    async def _look_if_needed(self) -> None:
        try:
            body = self._source.read()
        except ConfigError as error:
            self._options.say(f"{error}\nthe configuration that runs is kept")
            body = None
        if body is not None:
            await self._take(body)
        self._cluster.refresh_volumes()
        if self._woken.is_set() or body is not None or not self._is_settled():
            await self._look()

    async def _take(self, body: Manifest) -> None:
        metadata: Any = body.get("metadata") or {}
        key = Key(str(metadata.get("namespace", "default")), str(metadata.get("name", "")))
        if self._key.name and key != self._key:
            self._options.say(f"the resource is now called {key}; stop and start to follow it")
            return
        self._key = key
        if (body.get("spec") or {}).get("mode") == "Sidecar":
            self._options.say("mode Sidecar has no pods of its own, so nothing is run here")
        await self._cluster.apply(body)

    async def _look(self) -> None:
        self._woken.clear()
        outcome = await self._reconciler.reconcile(self._key)
        if outcome.status and outcome.status != self._shown:
            self._shown = outcome.status
            self._show()
        if self._visit is None and self._is_ready() and self._options.when_ready is not None:
            self._visit = self._tasks.create_task(self._visited(self._options.when_ready))

    def _show(self) -> None:
        if self._options.out is not None:
            shown = yaml.safe_dump({"status": self._shown}, sort_keys=False, allow_unicode=True)
            self._options.out.write(f"---\n{shown}")
            self._options.out.flush()

    async def _visited(self, when_ready: WhenReady) -> None:
        if not await when_ready(self._cluster):
            self._code = 1
        if self._options.once:
            self._stopping = True
            self._woken.set()

    def _give_up(self) -> None:
        self._code = 1
        found = self._condition("Ready")
        self._options.say(f"the proxy does not become ready: {found.get('reason')}: {found.get('message')}")

    def _condition(self, name: str) -> Manifest:
        found: list[Manifest] = self._shown.get("conditions", [])
        return next((one for one in found if one["type"] == name), {})

    def _is_ready(self) -> bool:
        return bool(self._condition("Ready").get("status") == "True")

    def _is_settled(self) -> bool:
        return self._is_ready() or bool(self._condition("Stalled").get("status") == "True")

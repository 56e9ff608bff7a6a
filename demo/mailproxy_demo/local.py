# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator local``: watches a file, reconciles it as the operator does, and prints the status.

The status is printed when it is settled.  A status that does not settle, such as that of a pod that does not
start, is printed after some seconds.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from mailproxy_config.errors import ConfigError
from mailproxy_config.manifest import parse_manifest
from mailproxy_demo.addresses import find_addresses, format_addresses
from mailproxy_demo.container_process import proxy_command
from mailproxy_demo.local_cluster import LOCAL_VERSION, LocalCluster
from mailproxy_demo.manifest_file import ManifestFile
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.settings import Platform

POLL_SECONDS = 1.0
UNSETTLED_SECONDS = 3.0
"""How long a status that still changes is not printed."""
READY_SECONDS = 30.0
MAX_RESTARTS = 3

WhenReady = Callable[[LocalCluster], Awaitable[bool]]


def local_command(
    file: Path | None, *, secrets: Path | None, demo: bool, once: bool, events: bool = False
) -> int:
    """Run a manifest on this machine: the status goes to standard output, everything else to standard error.

    Args:
        file: The manifest.
        secrets: The directory of Secrets and ConfigMaps: ``DIR/NAME/KEY``.
        demo: Add mail servers, and log in through them.
        once: End when the proxy is ready, or after the logins.
        events: Print the events that the operator creates.

    Returns:
        The exit code.

    Raises:
        ConfigError: The manifest is not valid.
    """

    def report(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def log(line: str) -> None:
        report(f"  proxy | {line}")

    async def is_ready(_: LocalCluster) -> bool:
        return True

    if demo:
        from mailproxy_demo.demo import run_demo  # noqa: PLC0415  Twisted takes time to import

        return asyncio.run(run_demo(file, once=once, events=events, report=report, log=log))
    if file is None:
        raise ValueError("only the demo has a default manifest")
    options = LocalOptions(
        secrets=secrets,
        when_ready=is_ready if once else None,
        once=once,
        events=events,
        out=sys.stdout,
        report=report,
        log=log,
    )
    return asyncio.run(run_local(ManifestFile(file), options))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """The options of `local`.

    Attributes:
        secrets: The directory of Secrets and ConfigMaps: ``DIR/NAME/KEY``.
        when_ready: Called once, when the proxy is ready; ``False`` makes the exit code 1.
        once: Whether to end after that.
        out: Receives the status as YAML; ``None`` to leave status and addresses out.
        report: Receives lines for the user.
        log: Receives the lines that the proxy writes.
        launch: Translates a container's command into one for this machine.
        events: Whether to report the events that the operator creates.
    """

    secrets: Path | None
    when_ready: WhenReady | None
    once: bool
    out: TextIO | None
    report: Callable[[str], None]
    log: Callable[[str], None]
    launch: Callable[[Sequence[str]], list[str]] = proxy_command
    events: bool = False


async def run_local(file: ManifestFile, options: LocalOptions) -> int:
    """Run a manifest until a signal arrives.

    Returns:
        The exit code.

    Raises:
        ConfigError: The manifest is not valid at the start.
    """
    manifest = file.read()
    if manifest is None:
        return 0
    parse_manifest(manifest)
    with tempfile.TemporaryDirectory(prefix="mailproxy-") as root:
        async with asyncio.TaskGroup() as tasks:
            run = _LocalRun(file, options, tasks, Path(root))
            with run.signal_handlers():
                return await run.run(manifest)


def summary(name: str, addresses: Sequence[str], admin: str) -> str:
    """Return where a proxy that is ready is reached."""
    return "\n".join(
        [
            "",
            f"{name} is ready, and listens here:",
            "",
            *addresses,
            "",
            f"Metrics:        {admin}/metrics",
            f"Configuration:  {admin}/config",
            "",
            "A change of the manifest is loaded at once. Ctrl-C drains the proxy and ends it.",
            "",
        ]
    )


class _LocalRun:
    """One run: what is kept between two reconciles."""

    def __init__(
        self, file: ManifestFile, options: LocalOptions, tasks: asyncio.TaskGroup, root: Path
    ) -> None:
        self._file = file
        self._options = options
        self._tasks = tasks
        self._changed = asyncio.Event()
        self._is_stopping = False
        self._exit_code = 0
        self._status: Manifest = {}
        self._changed_at = 0.0
        self._is_printed = True
        self._manifest: Manifest = {}
        self._reported_addresses: list[str] = []
        self._key = Key("default", "")
        self._check: asyncio.Task[None] | None = None
        self._cluster = LocalCluster(
            tasks,
            changed=self._changed.set,
            report=options.report,
            log=options.log,
            secrets=options.secrets,
            events=options.events,
            launch=options.launch,
        )
        platform = Platform(
            kube_version=LOCAL_VERSION,
            config_dir=str(root / "config"),
            refs_dir=str(root / "refs"),
            members_dir="",
        )
        self._reconciler = Reconciler(self._cluster, platform)

    @contextmanager
    def signal_handlers(self) -> Iterator[None]:
        """The first signal drains the proxy, the second ends it at once."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._is_stopping:
            self._options.report("ending at once")
            self._tasks.create_task(self._cluster.shut_down())
        else:
            self._options.report("draining; a second signal ends it at once")
        self._stop()

    def _stop(self) -> None:
        self._is_stopping = True
        self._changed.set()

    async def run(self, manifest: Manifest) -> int:
        """Reconcile whenever something changes, until a signal arrives; then drain.

        Returns:
            The exit code.
        """
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        try:
            await self._apply(manifest)
            await self._reconcile()
            while not self._is_stopping:
                if self._has_failed_to_start(deadline):
                    ready = self._condition("Ready")
                    self._options.report(
                        f"the proxy does not become ready: {ready.get('reason')}: {ready.get('message')}"
                    )
                    self._exit_code = 1
                    break
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._changed.wait()
                if not self._is_stopping:
                    await self._poll()
        finally:
            if self._check is not None:
                self._check.cancel()
            self._print_status(is_due=True)
            await self._cluster.shut_down()
        return self._exit_code

    def _has_failed_to_start(self, deadline: float) -> bool:
        """Return whether a run that ends by itself would wait for a proxy that never becomes ready."""
        if not self._options.once or self._check is not None:
            return False
        return asyncio.get_running_loop().time() > deadline or self._cluster.restarts >= MAX_RESTARTS

    async def _poll(self) -> None:
        """Read the file and the volumes, and reconcile if anything changed or is not settled."""
        try:
            manifest = self._file.read()
        except ConfigError as error:
            self._options.report(f"{error}\nthe running configuration is kept")
            manifest = None
        if manifest is not None:
            await self._apply(manifest)
        self._cluster.refresh_volumes()
        if self._changed.is_set() or manifest is not None or not self._is_settled():
            await self._reconcile()
        has_waited = asyncio.get_running_loop().time() - self._changed_at > UNSETTLED_SECONDS
        self._print_status(is_due=has_waited)

    async def _apply(self, manifest: Manifest) -> None:
        metadata: Any = manifest.get("metadata") or {}
        key = Key(str(metadata.get("namespace", "default")), str(metadata.get("name", "")))
        if self._key.name and key != self._key:
            self._options.report(f"the resource is now called {key}; restart to run it")
            return
        self._key = key
        if (manifest.get("spec") or {}).get("mode") == "Sidecar":
            self._options.report("mode Sidecar has no pods of its own, so nothing is run here")
        self._manifest = manifest
        await self._cluster.apply(manifest)

    async def _reconcile(self) -> None:
        self._changed.clear()
        outcome = await self._reconciler.reconcile(self._key)
        if outcome.status and outcome.status != self._status:
            self._status = outcome.status
            self._changed_at, self._is_printed = asyncio.get_running_loop().time(), False
            self._print_status(is_due=self._is_settled())
        if self._check is None and self._is_true("Ready") and self._options.when_ready is not None:
            self._check = self._tasks.create_task(self._run_check(self._options.when_ready))

    async def _run_check(self, when_ready: WhenReady) -> None:
        if not await when_ready(self._cluster):
            self._exit_code = 1
        if self._options.once:
            self._stop()

    def _is_settled(self) -> bool:
        return self._is_true("Ready") or self._is_true("Stalled")

    def _print_status(self, *, is_due: bool) -> None:
        """Print the status if it has changed since it was printed, and the addresses of a ready proxy."""
        out = self._options.out
        if out is None or self._is_printed or not is_due:
            return
        text = yaml.safe_dump({"status": self._status}, sort_keys=False, allow_unicode=True)
        out.write(f"---\n{text}")
        out.flush()
        self._is_printed = True
        lines = list(format_addresses(find_addresses(self._manifest))) if self._is_true("Ready") else []
        if lines and lines != self._reported_addresses:
            self._reported_addresses = lines
            self._options.report(summary(self._key.name, lines, self._cluster.admin_url))

    def _condition(self, name: str) -> Manifest:
        conditions: list[Manifest] = self._status.get("conditions", [])
        return next((one for one in conditions if one["type"] == name), {})

    def _is_true(self, name: str) -> bool:
        return bool(self._condition(name).get("status") == "True")

# SPDX-License-Identifier: Apache-2.0
"""The proxy, started by its command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client.parser import text_string_to_metric_families

from mailproxy_config.compile import compile_proxy
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.rendered import dump
from mailproxy_config.secret_refs import Mounts
from support.servers.programs import TIMEOUT_SECONDS, Running, eventually

ROOT: Final = Path(__file__).parents[3]
_SOURCES: Final = os.pathsep.join([str(ROOT / "proxy"), str(ROOT / "operator")])


def manifest(servers: Sequence[Mapping[str, Any]], mail: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """Return a ``MailProxy`` with these server blocks, and without a drain delay."""
    defaults = {"errorLog": {"level": "info"}, "drain": {"delay": "0s", "timeout": "20s"}}
    return {
        "apiVersion": "mailproxy.dev/v1alpha1",
        "kind": "MailProxy",
        "metadata": {"name": "tested"},
        "spec": {**defaults, **spec, "mail": dict(mail), "servers": list(servers)},
    }


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        file: Its configuration file; to change it, write to the file and call ``reload``.
        admin: Its admin endpoint, as ``address:port``.
    """

    file: Path
    running: Running
    admin: str = field(init=False)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of its log with this name, including ``session``."""
        lines = self.running.output_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in events if event["event"] == name]

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """Wait for an event with these fields; return the last one."""

        def found() -> dict[str, Any] | None:
            fitting = [event for event in self.events(name) if fields.items() <= event.items()]
            return fitting[-1] if fitting else None

        event = eventually(found, f"{name} {fields}")
        assert event is not None
        return event

    def get(self, path: str) -> tuple[int, str]:
        """Request a path of the admin endpoint; return status and body."""
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=TIMEOUT_SECONDS) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def value(self, sample: str, **labels: str) -> float:
        """Return the sum of all series of a metric with these labels."""
        _, page = self.get("/metrics")
        return sum(
            found.value
            for family in text_string_to_metric_families(page)
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )

    def reload(self, body: Mapping[str, Any]) -> None:
        """Write another configuration, and wait until the proxy has applied it."""
        before = len(self.events("configuration_loaded"))
        written = self.file.with_suffix(".new")
        written.write_text(yaml.safe_dump(body))
        written.replace(self.file)
        self.signal(signal.SIGHUP)
        eventually(lambda: len(self.events("configuration_loaded")) > before, "the new configuration")

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the first process of the proxy."""
        os.kill(self.running.pid, signum)

    def stop(self) -> None:
        """Terminate the proxy; send a second signal if draining takes too long."""
        if self.running.process.poll() is None:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                eventually(self.running.has_exited, "its end", timeout=0.5)
        self.running.stop(timeout=5.0)


def start(folder: Path, body: Mapping[str, Any] | str, *options: str, members: Path | None = None) -> Proxy:
    """Start the proxy with a manifest or the text of an ``nginx.conf``, and wait until it is ready.

    With a file of members, the manifest is rendered first, as by the operator.
    """
    folder.mkdir(exist_ok=True)
    file = folder / ("nginx.conf" if isinstance(body, str) else "manifest.yaml")
    if members is not None and not isinstance(body, str):
        file = folder / "mailproxy.json"
        file.write_bytes(dump(compile_proxy(parse_manifest(body), mounts=Mounts(members=str(members)))))
    else:
        file.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    command = [sys.executable, "-m", "mailproxy", "run", "-f", str(file), "--admin", "127.0.0.1:0", *options]
    running = Running(command, output=folder / "proxy.log", env={"PYTHONPATH": _SOURCES})
    proxy = Proxy(file, running)
    try:
        proxy.admin = running.eventually(lambda: proxy.events("listening"), "listening")[0]["admin"]
        running.eventually(lambda: proxy.get("/readyz")[0] == 200, "ready")
    except AssertionError:
        proxy.stop()
        raise
    return proxy

# SPDX-License-Identifier: Apache-2.0
"""A Prometheus with rules, and targets labelled like pods."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from support.servers.programs import TIMEOUT_SECONDS, Running

Json = dict[str, Any]

VARIABLES: Final = {
    "$namespace": ".*",
    "$job": ".*",
    "$protocol": ".*",
    "$__rate_interval": "10s",
    "$__range": "1m",
}
"""Values of Grafana's variables for a scrape interval of half a second."""


def substituted(expression: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """Replace a dashboard's variables by values."""
    for name, value in variables.items():
        expression = re.sub(re.escape(name) + r"\b", value, expression)
    assert "$" not in expression, expression
    return expression


@dataclass
class Watcher:
    """A running Prometheus."""

    port: int
    running: Running

    def is_ready(self) -> bool:
        """Return whether it responds to queries."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/-/ready", timeout=TIMEOUT_SECONDS
            ) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """Send a request to its API; return the data of the response."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def page(self, url: str) -> str:
        """Scrape a target."""
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            text: str = response.read().decode()
            return text

    def now(self, expression: str) -> list[Json]:
        """Return the instant vector of an expression."""
        found: list[Json] = self.ask("query", query=expression)["result"]
        return found

    def over(self, expression: str, start: float, end: float, step: float) -> list[Json]:
        """Return the series of an expression over a time range."""
        window = {"start": str(start), "end": str(end), "step": str(step)}
        found: list[Json] = self.ask("query_range", query=expression, **window)["result"]
        return found


def watch(
    path: str,
    folder: Path,
    port: int,
    scrapes: Sequence[Json],
    *,
    rules: Sequence[Path] = (),
    interval: str = "500ms",
) -> Watcher:
    """Start Prometheus, and wait until it responds to queries.

    Args:
        path: The program.
        folder: An empty folder.
        port: Port of its API.
        scrapes: Elements of ``scrape_configs``.
        rules: Rule files.
        interval: Time between scrapes, and between evaluations of rules.
    """
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(one) for one in rules],
        "scrape_configs": list(scrapes),
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = [
        path,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    watcher = Watcher(port, Running(command, output=folder / "output"))
    try:
        watcher.running.eventually(watcher.is_ready, "ready")
    except AssertionError:
        watcher.running.stop()
        raise
    return watcher


def as_pods(job: str, namespace: str, targets: Mapping[str, str]) -> Json:
    """Return scrape targets, by the names of their pods, with the labels that a PodMonitor sets."""
    return {
        "job_name": job,
        "static_configs": [
            {"targets": [target], "labels": {"namespace": namespace, "pod": pod, "container": "mailproxy"}}
            for pod, target in targets.items()
        ],
    }

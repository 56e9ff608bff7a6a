# SPDX-License-Identifier: Apache-2.0
"""Prometheus, which scrapes one target every half second."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.servers.programs import TIMEOUT_SECONDS, Running

_CONFIGURATION: Final = """
global:
  scrape_interval: 500ms
  scrape_timeout: 500ms
scrape_configs:
  - job_name: mailproxy
    static_configs:
      - targets: ["{target}"]
"""


@dataclass
class Prometheus:
    """A running Prometheus."""

    port: int
    running: Running

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the instant vector of an expression: each item has ``metric`` (labels) and ``value``."""
        question = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{question}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


def start(path: str, folder: Path, port: int, target: str) -> Prometheus:
    """Start Prometheus, and wait until it answers queries."""
    (folder / "prometheus.yml").write_text(_CONFIGURATION.format(target=target))
    command = [
        path,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    prometheus = Prometheus(port, Running(command, output=folder / "output"))
    try:
        prometheus.running.wait_for_ports(port)
        prometheus.running.eventually(lambda: _is_ready(port), "ready")
    except AssertionError:
        prometheus.running.stop()
        raise
    return prometheus


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=TIMEOUT_SECONDS) as response:
            return bool(response.status == 200)
    except OSError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""The probes of a pod: a normal start causes no warning event, and a slow start is not ended."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned
from mailproxy_operator.render.pod import container
from mailproxy_operator.settings import Platform
from support.operator_bodies import body
from support.servers import proxy as proxies
from support.servers.programs import Ports

ROOT: Final = Path(__file__).parents[3]
SLOW_START_SECONDS: Final = 600
"""A start on a busy node, or with a small CPU limit, takes minutes and succeeds."""


def startup_probe() -> dict[str, Any]:
    found = container(planned(Resource.read(body()), Platform()))["startupProbe"]
    assert isinstance(found, dict)
    return found


def test_first_probe_is_sent_after_a_normal_start(tmp_path: Path) -> None:
    """A failed probe is a warning event of the pod. CPU time is measured, so other load does not matter."""
    listen = [{"address": "127.0.0.1", "port": Ports().take()}]
    server = {"name": "imap", "protocol": "imap", "listen": listen}
    started = proxies.start(
        tmp_path / "proxy", proxies.manifest([server], {"authHttp": "http://127.0.0.1:9/"})
    )
    try:
        with urllib.request.urlopen(
            f"http://{started.admin}{startup_probe()['httpGet']['path']}"
        ) as response:
            assert response.status == 200
        spent = Path(f"/proc/{started.running.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        seconds = sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")
    finally:
        started.stop()
    assert seconds < startup_probe()["initialDelaySeconds"]


def test_startup_probe_allows_slow_start() -> None:
    probe = startup_probe()
    assert probe["periodSeconds"] * probe["failureThreshold"] >= SLOW_START_SECONDS
    assert probe["timeoutSeconds"] >= 5, "a starting process may respond slowly"


@pytest.mark.parametrize(
    "file", ["deploy/operator.yaml", "charts/mailproxy-operator/templates/deployment.yaml"]
)
def test_startup_probe_of_operator_allows_slow_start(file: str) -> None:
    """It imports two Kubernetes client libraries before it can respond."""
    text = (ROOT / file).read_text()
    probe = yaml.safe_load(text[text.index("startupProbe:") : text.index("livenessProbe:")])["startupProbe"]
    assert probe["initialDelaySeconds"] >= 5
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 120

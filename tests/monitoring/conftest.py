# SPDX-License-Identifier: Apache-2.0
"""The path of the dashboards' and rules' sources, which are not installed, and a proxy under traffic."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.needs import Needs
from support.prometheus_world.places import Places, places
from support.prometheus_world.traffic import traffic
from support.prometheus_world.watcher import Watcher, as_pods, watch
from support.servers.programs import Ports

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/monitoring"
sys.path.insert(0, str(MONITORING))


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """A proxy under continuous traffic, which ends with the module: client threads would disturb tests
    that replace functions, count descriptors, or use random values."""
    with places(tmp_path_factory.mktemp("busy")) as found, traffic(found) as faults:
        yield found
    assert faults == []


@pytest.fixture(scope="module")
def watcher(needs: Needs, busy: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    """A Prometheus that scrapes this proxy."""
    path = needs("prometheus")
    scrape = as_pods("mail/edge", "mail", {"edge-0": busy.proxies[0].admin})
    rules = [MONITORING / "rules/mailproxy.yaml"]
    running = watch(path, tmp_path_factory.mktemp("watcher"), Ports().take(), [scrape], rules=rules)
    yield running
    running.running.stop()
